"""What to lower where a step does not fit into memory."""

from contextlib import AbstractContextManager

from t3d.config import TrainConfig
from t3d.devices import room
from t3d.errors import DeviceFullError


def room_to_train(config: TrainConfig) -> AbstractContextManager[None]:
    """A context in which a device that is full is one line, which names the settings that lower what is needed.

    Raises:
        DeviceFullError: in place of the allocator's error.
    """
    training = config.training
    levers = []
    if training.tokens_per_batch is not None:
        levers.append(f"training.tokens_per_batch (now {training.tokens_per_batch})")
    elif training.batch_size_lm > 1:
        levers.append(f"training.batch_size_lm (now {training.batch_size_lm})")
    if not training.gradient_checkpointing_enable:
        levers.append("training.gradient_checkpointing_enable (now false)")
    elif training.checkpoint_layers is not None:
        levers.append(f"training.checkpoint_layers (now {training.checkpoint_layers}; null recomputes all)")
    levers.append("the ZeRO stage (accelerate_configs/)")
    expected = "a step that fits into the device's memory (python -m t3d.training.memory tells what does)"
    return room(" or ".join(levers), expected, DeviceFullError)
