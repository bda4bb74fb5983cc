"""Configuration: what can be set (`schema`), and how it is read (`loading`)."""

from t3d.config.loading import help_text, load_config, named_groups, save_config
from t3d.config.schema import (
    DatasetConfig,
    EvalConfig,
    ExecuteConfig,
    RolloutConfig,
    SchedulerConfig,
    SchedulerParams,
    TableConfig,
    TrainConfig,
    TrainingConfig,
)

__all__ = [
    "DatasetConfig",
    "EvalConfig",
    "ExecuteConfig",
    "RolloutConfig",
    "SchedulerConfig",
    "SchedulerParams",
    "TableConfig",
    "TrainConfig",
    "TrainingConfig",
    "help_text",
    "load_config",
    "named_groups",
    "save_config",
]
