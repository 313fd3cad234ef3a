"""How a GPU is timed: in turns A B A B, with the device finished before and after each; the median of the ratios."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Setting:
    """What every row is measured with.

    Attributes:
        device: where.
        small: tiny sizes, to try the code.
        rows: of the probe.
    """

    device: torch.device
    small: bool
    rows: int


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        what: what was measured.
        against: what it is compared with; empty for plain figures.
        values: ratios, or seconds, of which the median counts.
        target: of the median; None if there is none.
        unit: of the values; empty for ratios, which are to be at least the target, seconds at most.
        note: absolute figures.
    """

    what: str
    against: str
    values: list[float]
    target: float | None = None
    unit: str = ""
    note: str = ""

    @property
    def value(self) -> float:
        return statistics.median(self.values)

    @property
    def reached(self) -> bool | None:
        if self.target is None:
            return None
        return self.value <= self.target if self.unit else self.value >= self.target

    def line(self) -> str:
        spread = f" ({min(self.values):.3g}–{max(self.values):.3g})" if len(self.values) > 1 else ""
        target = "" if self.target is None else f"{'≤' if self.unit else '≥'} {self.target:g}{self.unit}"
        reached = {None: "", True: "yes", False: "**no**"}[self.reached]
        value = f"{self.value:.3g}{self.unit}{spread}"
        return "| " + " | ".join([self.what, self.against, value, target, reached, self.note]) + " |"


def say(text: str) -> None:
    """Print at once: the end of the run may be cut off."""
    print(text, flush=True)


def finish(device: torch.device) -> None:
    """Wait until the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(device: torch.device, function: Callable[[], Any]) -> float:
    """Return the time of one call, until the device has finished."""
    finish(device)
    start = time.perf_counter()
    function()
    finish(device)
    return time.perf_counter() - start


def in_turns(device: torch.device, *functions: Callable[[], Any], pairs: int = 5) -> list[list[float]]:
    """Return the times of each function, measured in turns; all have been called before."""
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(pairs):
        for kept, function in zip(times, functions, strict=True):
            kept.append(seconds(device, function))
    return times


def ratios(theirs: list[float], ours: list[float]) -> list[float]:
    """Return how many times as fast ours is, turn by turn."""
    return [a / b for a, b in zip(theirs, ours, strict=True)]
