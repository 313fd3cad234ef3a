"""How everything here is timed: A B A B, one ratio per pair, and the median of the ratios."""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

pairs = 5  # of A B; the median of fewer is not reliable


class Seconds(NamedTuple):
    """Wall time, and processor time of this process and its children, which depends less on other load."""

    wall: float
    cpu: float


Turns = tuple[list[Seconds], list[Seconds]]  # of each A and of each B


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        what: what was timed in transferkit.
        against: what it is compared with.
        kind: ``faster`` (their time / ours, at least the target) or ``cheaper`` (ours / theirs, at most).
        target: of the median ratio.
        ours: seconds of each A.
        theirs: seconds of each B.
        conditions: further conditions of the target -> whether they hold.
        note: what was checked to be equal, and other facts for the reader.
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
        """Return one ratio per pair."""
        pairs = [(getattr(a, clock), getattr(b, clock)) for a, b in zip(self.ours, self.theirs, strict=True)]
        return [b / a if self.kind == "faster" else a / b for a, b in pairs]

    @property
    def reached(self) -> bool:
        """Whether the median ratio and all conditions hold; false if nothing could be measured."""
        ratios = self.ratios()
        if not ratios or not all(self.conditions.values()):
            return False
        median = statistics.median(ratios)
        return median >= self.target if self.kind == "faster" else median <= self.target

    @property
    def unclear(self) -> bool:
        """Whether the ratios differ among themselves by more than their median does from the target."""
        ratios = self.ratios()
        return max(ratios) - min(ratios) > abs(statistics.median(ratios) - self.target)


def seconds(function: Callable[[], Any]) -> Seconds:
    """Return the time of one call."""
    wall, cpu = time.perf_counter(), sum(os.times()[:4])
    function()
    return Seconds(time.perf_counter() - wall, sum(os.times()[:4]) - cpu)


def in_turns(ours: Callable[[], Any], theirs: Callable[[], Any]) -> Turns:
    """Time both in turns. Neither is warmed up here: the check that both give the same has done that."""
    both = [(seconds(ours), seconds(theirs)) for _ in range(pairs)]
    return [a for a, _ in both], [b for _, b in both]


def measured(
    what: str,
    against: str,
    kind: Literal["faster", "cheaper"],
    target: float,
    ours: Callable[[], Any],
    theirs: Callable[[], Any],
    conditions: dict[str, bool] | None = None,
    note: str = "",
) -> Row:
    """Time both sides of a row in turns, and again if it is unclear; the arguments are those of :class:`Row`."""

    def turns() -> Turns:
        return in_turns(ours, theirs)

    return settled(Row(what, against, kind, target, *turns(), conditions or {}, note), turns)


def settled(row: Row, turns: Callable[[], Turns]) -> Row:
    """Return the row with as many turns again if its ratios do not say on which side of the target it is."""
    if not row.unclear:
        return row
    ours, theirs = turns()
    note = "; ".join(filter(None, [row.note, f"measured again: {len(row.ours + ours)} pairs"]))
    return replace(row, ours=row.ours + ours, theirs=row.theirs + theirs, note=note)
