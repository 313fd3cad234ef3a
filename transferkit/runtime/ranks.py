"""The processes of a training, which check and embed images together before it begins."""

import atexit
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from transferkit.errors import ToldByFirst, UserError

Value = TypeVar("Value")

# One process may have hours of work left when another has finished. NCCL's timeout is ten minutes.
PATIENCE = timedelta(days=30)
HEARING = 5.0  # seconds in which an error that all processes raise reaches the last of them
# Messages of gloo when a process that others wait for has ended.
GONE = re.compile(r"connection (closed|reset)|broken pipe|socket closed|unexpected EOF", re.IGNORECASE)


@dataclass(frozen=True)
class Ranks:
    """This process among the others; by default there is only one.

    Attributes:
        rank: number of this process.
        world_size: number of processes.
        group: process group for communication on the CPU, with a long timeout.
    """

    rank: int = 0
    world_size: int = 1
    group: Any = None

    def all_true(self, value: bool) -> bool:
        """Wait for all processes, and return whether the value is true in every one."""
        if self.world_size == 1:
            return value
        count = torch.tensor(int(value))
        distributed.all_reduce(count, group=self.group)
        return int(count) == self.world_size

    def run_on_all(self, work: Callable[[], Value]) -> list[Value]:
        """Run a part of the work in every process, and wait for all; if one fails, all of them raise.

        Returns:
            The result of each process, in the order of ranks.

        Raises:
            Exception: of the lowest rank that failed; a UserError is raised as itself in the first process, which
                shows it to the user, and as ToldByFirst in the others.
        """
        if self.world_size == 1:
            return [work()]
        value, fault = attempt(work)
        parts: list[Any] = [None] * self.world_size
        distributed.all_gather_object(parts, (value, sendable(fault)), group=self.group)
        self.end_on(next((other for _, other in parts if other), None), fault)
        return [value for value, _ in parts]

    def from_first(self, make: Callable[[], Value]) -> Value:
        """Make a value in the first process and send it to all; if it fails, all of them raise.

        Raises:
            Exception: of the first process; a UserError is a ToldByFirst in the others.
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
        """Raise in all processes what one of them has raised, if any; only the first shows it to the user."""
        if isinstance(fault, UserError) and self.rank:
            raise ToldByFirst(str(fault)) from own
        if fault:
            raise own or fault

    def tensor_from_first(self, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Send the first process's float32 tensor of a shape to all."""
        if self.world_size == 1:
            return tensor
        received = tensor.contiguous() if self.rank == 0 else torch.empty(shape)
        distributed.broadcast(received, src=0, group=self.group)
        return received


def attempt(work: Callable[[], Value]) -> tuple[Value | None, Exception | None]:
    """Return the result or the exception of the work: of any type, since the other processes must know first."""
    try:
        return work(), None
    except Exception as error:
        return None, error


def sendable(error: Exception | None) -> Exception | None:
    """Return an exception with the same message, of a type that pickles in every process."""
    if error is None or isinstance(error, UserError):
        return error and UserError(str(error))
    return RuntimeError(f"{type(error).__name__}: {error}")


@contextmanager
def joined() -> Iterator[Ranks]:
    """Join the processes that the Trainer has started, through a group with a long timeout.

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
            "another process ended; if it gave no reason, it was killed, perhaps because memory ran out"
        ) from error
    finally:
        distributed.destroy_process_group(group)


def told_once(error: UserError) -> UserError:
    """The error to raise where every process may raise the same one, so that the user reads it once.

    No collective call: a process that goes on would never answer it. The first process leaves its message in the
    store through which they have met, and stays at its end until the others have looked, for a moment at most.

    Returns:
        The error itself; a ToldByFirst where the first process says the same.
    """
    alone = not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1)
    if alone or GONE.search(str(error.__cause__)):  # the store may have gone as well
        return error
    store: Any = distributed.distributed_c10d._get_default_store()
    if distributed.get_rank() == 0:
        store.set("told", str(error))
        others = distributed.get_world_size() - 1
        atexit.register(comes_true, lambda: store.add("heard", 0) >= others)
        return error
    same = comes_true(lambda: store.check(["told"]) and store.get("told").decode() == str(error))
    comes_true(lambda: store.add("heard", 1) > 0)
    return ToldByFirst(str(error)) if same or isinstance(error, ToldByFirst) else error


def comes_true(condition: Callable[[], bool]) -> bool:
    """Whether a condition comes true within ``HEARING`` seconds; not where the process with the store has gone."""
    end = time.monotonic() + HEARING
    try:
        while not condition():
            if time.monotonic() > end:
                return False
            time.sleep(0.05)
    except RuntimeError:
        return False
    return True
