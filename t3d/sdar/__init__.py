"""The SDAR networks, dense and mixture of experts: configurations, models, attention layouts, checkpoints."""

from t3d.sdar.configuration import SDARConfig
from t3d.sdar.mixture import SDARMoeConfig, SDARMoeForCausalLM
from t3d.sdar.modeling import SDARForCausalLM

__all__ = ["SDARConfig", "SDARForCausalLM", "SDARMoeConfig", "SDARMoeForCausalLM"]
