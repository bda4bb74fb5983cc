"""The paper's objectives as pure functions of tensors: one term per file, one line per preset."""

from t3d.objectives.ddo import ddo_loss

__all__ = ["ddo_loss"]
