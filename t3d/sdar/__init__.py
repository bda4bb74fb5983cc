"""The SDAR network: configuration, model, attention layouts, checkpoints."""

from t3d.sdar.configuration import SDARConfig
from t3d.sdar.modeling import SDARForCausalLM

__all__ = ["SDARConfig", "SDARForCausalLM"]
