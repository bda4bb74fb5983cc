"""Rotary frequencies in single precision, whatever the network around them is cast to."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding


class ExactRotaryEmbedding(Qwen3RotaryEmbedding):
    """Qwen3's rotation, whose frequencies follow the network to its device but never into its precision.

    `Module.to(dtype)`, `bfloat16()` and `half()` cast buffers too.  A rounded frequency turns by another angle, the
    more the farther a token stands: two copies of the same weights, one cast and one loaded in bf16, would be
    different networks.  (transformers initialises what is called a RotaryEmbedding.)
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], *arguments: Any, **options: Any) -> "ExactRotaryEmbedding":
        """What every cast and every move of a module goes through."""
        exact = dict(self._buffers)
        super()._apply(fn, *arguments, **options)
        for name, before in exact.items():
            after = self._buffers[name]
            if before is not None and after is not None and after.dtype != before.dtype:
                self._buffers[name] = before.to(after.device)
        return self
