"""Configuration: what can be set (`schema`, `training`, `validation`, `table`), and how it is read (`loading`)."""

from t3d.config.loading import help_text, load_config, named_keys, save_config
from t3d.config.schema import (
    DatasetConfig,
    EvalConfig,
    ExecuteConfig,
    RolloutConfig,
    SampleConfig,
    SchedulerConfig,
    SchedulerParams,
    TrainConfig,
)
from t3d.config.table import TableConfig
from t3d.config.training import TrainingConfig
from t3d.config.validation import ValidationConfig

__all__ = [
    "DatasetConfig",
    "EvalConfig",
    "ExecuteConfig",
    "RolloutConfig",
    "SampleConfig",
    "SchedulerConfig",
    "SchedulerParams",
    "TableConfig",
    "TrainConfig",
    "TrainingConfig",
    "ValidationConfig",
    "help_text",
    "load_config",
    "named_keys",
    "save_config",
]
