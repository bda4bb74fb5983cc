"""Configuration: what can be set (`schema`, `table`), and how it is read (`loading`)."""

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
    TrainingConfig,
)
from t3d.config.table import TableConfig

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
    "help_text",
    "load_config",
    "named_keys",
    "save_config",
]
