"""The processes of a training that check and embed images together before it begins."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from transferkit.errors import ToldByFirst, UserError

Value = TypeVar("Value")

# One process may have hours of work left where another has none. NCCL's timeout is ten minutes.
PATIENCE = timedelta(days=30)
# What gloo says where a process that others wait for is no longer there.
GONE = re.compile(r"connection (closed|reset)|broken pipe|socket closed|unexpected EOF", re.IGNORECASE)


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

    def run_on_all(self, work: Callable[[], Value]) -> list[Value]:
        """Let every process do its part, and wait for all; where one fails all of them end, none is left waiting.

        Returns:
            What each of them made, in the order of their ranks.

        Raises:
            Exception: what the lowest rank that failed has raised; a UserError in the first process, which tells the
                user, and a ToldByFirst in the others.
        """
        if self.world_size == 1:
            return [work()]
        value, fault = attempt(work)
        parts: list[Any] = [None] * self.world_size
        distributed.all_gather_object(parts, (value, sendable(fault)), group=self.group)
        self.end_on(next((other for _, other in parts if other), None), fault)
        return [value for value, _ in parts]

    def from_first(self, make: Callable[[], Value]) -> Value:
        """Let the first process make a value and give it to all; where it fails, none is left waiting.

        Raises:
            Exception: as of :meth:`run_on_all`.
        """
        if self.world_size == 1:
            return make()
        value, fault = attempt(make) if self.rank == 0 else (None, None)
        box: list[Any] = [value, sendable(fault)]
        distributed.broadcast_object_list(box, src=0, group=self.group)
        self.end_on(box[1], fault)
        received: Value = box[0]
        return received

    def end_on(self, fault: Exception | None, own: Exception | None) -> None:
        """Raise what one process has raised, if any has, in all of them; one tells the user."""
        if isinstance(fault, UserError) and self.rank:
            raise ToldByFirst(str(fault)) from own
        if fault:
            raise own or fault

    def tensor_from_first(self, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Give the first process's float32 tensor of a shape to all."""
        if self.world_size == 1:
            return tensor
        received = tensor.contiguous() if self.rank == 0 else torch.empty(shape)
        distributed.broadcast(received, src=0, group=self.group)
        return received


def attempt(work: Callable[[], Value]) -> tuple[Value | None, Exception | None]:
    """What the work makes, or what it raises: whatever it is, other processes have to hear of it first."""
    try:
        return work(), None
    except Exception as error:
        return None, error


def sendable(error: Exception | None) -> Exception | None:
    """An exception with the same message, of a type that every process knows and can make of the message alone."""
    if error is None or isinstance(error, UserError):
        return error and UserError(str(error))
    return RuntimeError(f"{type(error).__name__}: {error}")


@contextmanager
def joined() -> Iterator[Ranks]:
    """Join the processes that the Trainer has started, through a group that waits as long as it takes.

    Raises:
        UserError: one of them died.
    """
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        yield Ranks()
        return
    group = distributed.new_group(backend="gloo", timeout=PATIENCE)
    try:
        yield Ranks(distributed.get_rank(), distributed.get_world_size(), group)
    except RuntimeError as error:
        if not GONE.search(str(error)):
            raise
        raise UserError(
            "another process ended; if it has not said why, it was killed, perhaps for want of memory"
        ) from error
    finally:
        distributed.destroy_process_group(group)
