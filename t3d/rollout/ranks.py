"""The processes of a launch (torchrun, accelerate launch): who does what, and agreement between them."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from t3d.devices import leave_group_at_exit
from t3d.errors import UserError

PATIENCE = timedelta(days=30)
"""How long a process waits for one that still decodes; one that died is noticed at once."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Ranks:
    """This process among those of its launch; alone, it agrees with itself.

    Attributes:
        rank: number of this process, from 0.
        size: processes of the launch.
        local_rank: number of this process on its machine.
        local_size: processes of the launch on this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    def on_first(self, action: Callable[[], Result]) -> Result:
        """Runs `action` on the first process only; every process gets its result.

        Raises:
            UserError: the one that `action` raised, on every process.
        """
        if self.size == 1:
            return action()
        outcome: list[Result | UserError | None] = [None]
        if self.rank == 0:
            try:
                outcome = [action()]
            except UserError as error:
                outcome = [error]
        dist.broadcast_object_list(outcome, src=0)
        if isinstance(outcome[0], UserError):
            raise outcome[0]
        return outcome[0]  # type: ignore[return-value]

    def least(self, number: int) -> int:
        """The smallest `number` of any process."""
        if self.size == 1:
            return number
        return min(self._gather(number))

    def on_each(self, action: Callable[[], None]) -> None:
        """Runs `action` on every process, each with its own work, and waits for all of them.

        Raises:
            UserError: the first that any of them raised, on every process, after the others have finished.
        """
        if self.size == 1:
            action()
            return
        mistake: UserError | None = None
        try:
            action()
        except UserError as error:
            mistake = error
        for found in self._gather(mistake):
            if found is not None:
                raise found

    def _gather(self, value: Result) -> list[Result]:
        """Every process's value, in the order of ranks."""
        values = [value] * self.size
        dist.all_gather_object(values, value)
        return values


def join_ranks() -> Ranks:
    """Meets the other processes of the launch, as the environment's WORLD_SIZE tells; stays for the whole process."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Ranks()
    if not dist.is_initialized():
        # Objects travel over gloo; NCCL is there for the parts of a model on several GPUs.
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
        leave_group_at_exit()
    size = dist.get_world_size()
    here = int(os.environ.get("LOCAL_WORLD_SIZE", size))  # not every launcher says it
    return Ranks(dist.get_rank(), size, int(os.environ["LOCAL_RANK"]), here)
