"""Which rows of the benchmark are measured again."""

from dataclasses import replace

import pytest

from tests.bench.timing import Row, Seconds, settled


def row(*ratios: float, target: float = 2.0) -> Row:
    """A row whose sides took a second and the ratios."""
    return Row("ours", "theirs", "faster", target, [Seconds(1, 1)] * len(ratios), [Seconds(r, r) for r in ratios])


@pytest.mark.parametrize(("ratios", "again"), [((2.5, 2.6, 2.7), False), ((1.9, 2.1, 2.3), True), ((3, 4, 9), True)])
def test_a_row_wider_than_its_distance_to_the_target_is_measured_again(ratios: tuple[float, ...], again: bool) -> None:
    first, more = row(*ratios), row(2.1, 2.2, 2.3)
    found = settled(first, lambda: (more.ours, more.theirs))
    assert first.unclear == again
    if not again:
        assert found is first
        return
    assert found.ratios() == [*first.ratios(), *more.ratios()] and "6 pairs" in found.note
    assert replace(found, ours=[], theirs=[]).reached is False
