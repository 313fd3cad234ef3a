"""The one way in which everything here is timed: A B A B, ratios pair by pair, the median counts."""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

pairs = 5  # of A B; the median of fewer says little


class Seconds(NamedTuple):
    """Wall time, and processor time of this process and its children, which other load changes less."""

    wall: float
    cpu: float


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        what: what of ours was timed.
        against: the other side.
        kind: ``faster`` (their time / ours, at least the target) or ``cheaper`` (ours / theirs, at most).
        target: of the median ratio.
        ours: seconds of each A.
        theirs: seconds of each B.
        conditions: what else the target asks -> whether it holds.
        note: what was checked to be the same, and whatever else a reader must know.
    """

    what: str
    against: str
    kind: Literal["faster", "cheaper"]
    target: float
    ours: list[Seconds]
    theirs: list[Seconds]
    conditions: dict[str, bool] = field(default_factory=dict)
    note: str = ""

    def ratios(self, clock: Literal["wall", "cpu"] = "wall") -> list[float]:
        """One ratio a pair."""
        pairs = [(getattr(a, clock), getattr(b, clock)) for a, b in zip(self.ours, self.theirs, strict=True)]
        return [b / a if self.kind == "faster" else a / b for a, b in pairs]

    @property
    def reached(self) -> bool:
        """Whether the median ratio and all conditions hold; false where nothing could be measured."""
        ratios = self.ratios()
        if not ratios or not all(self.conditions.values()):
            return False
        median = statistics.median(ratios)
        return median >= self.target if self.kind == "faster" else median <= self.target


def seconds(function: Callable[[], Any]) -> Seconds:
    """How long one call takes."""
    wall, cpu = time.perf_counter(), sum(os.times()[:4])
    function()
    return Seconds(time.perf_counter() - wall, sum(os.times()[:4]) - cpu)


def in_turns(ours: Callable[[], Any], theirs: Callable[[], Any]) -> tuple[list[Seconds], list[Seconds]]:
    """Time both in turns. Neither is warmed up here: checking that both give the same has done that."""
    both = [(seconds(ours), seconds(theirs)) for _ in range(pairs)]
    return [a for a, _ in both], [b for _, b in both]
