"""Updates that loss scaling leaves out: in fp16 a gradient may overflow, and the next one is scaled less."""

from collections.abc import Callable, Mapping
from typing import Any

from accelerate import Accelerator


class SkippedSteps:
    """Counts the updates of a run that were left out; part of its state."""

    def __init__(self, scale: Callable[[], float]) -> None:
        """Begins at none.

        Args:
            scale: what the loss is multiplied with at the moment.
        """
        self.count, self._scale = 0, scale

    @classmethod
    def counted_by(cls, accelerator: Accelerator, optimizer: Any) -> "SkippedSteps | None":
        """A counter that is saved with `accelerator`'s state; None where the loss is not scaled."""
        plugin = accelerator.state.deepspeed_plugin
        if plugin is not None and plugin.get_value("fp16.enabled"):
            made = cls(lambda: optimizer.optimizer.loss_scale)
        elif accelerator.scaler is not None:
            made = cls(accelerator.scaler.get_scale)
        else:
            return None
        accelerator.register_for_checkpointing(made)
        return made

    def add(self) -> bool:
        """Counts one more; False if the loss is no longer scaled up, so that the gradient itself is no number."""
        self.count += 1
        return self._scale() > 1

    def state_dict(self) -> dict[str, int]:
        """For accelerate."""
        return {"count": self.count}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """For accelerate."""
        self.count = state["count"]
