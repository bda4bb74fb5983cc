"""Few-step block-diffusion language models by trajectory self-distillation (T3D, arXiv:2602.12262).

    from t3d import load

    model = load()  # the built-in toy teacher; or a folder, or a hub id such as "JetLM/SDAR-4B-Chat"
    answer = model.generate("A shop has 3 drawers of 6 caps and gets 5 more. How many caps does it have?")

See `t3d.api`.  PyTorch is imported with the first of these names, not with `t3d`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from t3d.api import Answer, Block, Message, Model, Settings, load

__all__ = ["Answer", "Block", "Message", "Model", "Settings", "load"]


def __getattr__(name: str) -> Any:
    """Imports the Python interface when it is asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("t3d.api"), name)
