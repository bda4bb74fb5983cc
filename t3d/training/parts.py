"""Weights that FSDP2 cuts into parts (`DTensor`): gathering them, and laying others out alike."""

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor


def forget_gathered(network: nn.Module) -> None:
    """Frees what the last forward pass gathered: until then `parameters()` are whole, and do not follow the parts."""
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole(value: Tensor) -> Tensor:
    """A tensor gathered from its parts; all processes must call this together."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def laid_out_as(value: Tensor, like: Tensor) -> Tensor:
    """`value` in parts or whole as `like` is; all processes must call this together."""
    if not isinstance(like, DTensor):
        return whole(value)
    if isinstance(value, DTensor):
        return value
    # Every process has all of it: none needs to be sent its part.
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
