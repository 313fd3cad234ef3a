"""The processes of a training that embed images together before it begins."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from transferkit.errors import UserError

Value = TypeVar("Value")

# One process may have hours of work left where another has none. NCCL's timeout is ten minutes.
PATIENCE = timedelta(days=30)


@dataclass(frozen=True)
class Ranks:
    """This process among the others; by itself, there are none.

    Attributes:
        rank: number of this process.
        world_size: how many there are.
        group: what they talk through: on the CPU, and patient.
    """

    rank: int = 0
    world_size: int = 1
    group: Any = None

    def all_true(self, value: bool) -> bool:
        """Wait for all processes; whether the value is true in every one."""
        if self.world_size == 1:
            return value
        count = torch.tensor(int(value))
        distributed.all_reduce(count, group=self.group)
        return int(count) == self.world_size

    def from_first(self, make: Callable[[], Value]) -> Value:
        """Let the first process make a value and give it to all; where it fails, none is left waiting.

        Raises:
            UserError: the first process failed; there, its own exception.
        """
        if self.world_size == 1:
            return make()
        box: list[Any] = [False, None]
        fault: Exception | None = None
        if self.rank == 0:
            try:
                box = [True, make()]
            except Exception as error:  # whatever it is, the others have to hear of it first
                fault = error
        distributed.broadcast_object_list(box, src=0, group=self.group)
        if fault:
            raise fault
        if not box[0]:
            raise UserError("the first process could not go on; its own message says why")
        value: Value = box[1]
        return value

    def tensor_from_first(self, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Give the first process's float32 tensor of a shape to all."""
        if self.world_size == 1:
            return tensor
        received = tensor.contiguous() if self.rank == 0 else torch.empty(shape)
        distributed.broadcast(received, src=0, group=self.group)
        return received


@contextmanager
def joined() -> Iterator[Ranks]:
    """Join the processes that the Trainer has started, through a group that waits as long as it takes."""
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        yield Ranks()
        return
    group = distributed.new_group(backend="gloo", timeout=PATIENCE)
    try:
        yield Ranks(distributed.get_rank(), distributed.get_world_size(), group)
    finally:
        distributed.destroy_process_group(group)
