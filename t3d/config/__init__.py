"""Configuration: what can be set (`schema`, `training`, `validation`, `table`), and how it is read (`loading`)."""

from t3d.config.loading import load_config, named_keys, save_config
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
    "load_config",
    "named_keys",
    "save_config",
]
