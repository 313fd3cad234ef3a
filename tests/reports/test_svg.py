"""Charts: well-formed, named, and where the numbers say."""

import itertools
import re
import xml.etree.ElementTree as ElementTree

import pytest
from markupsafe import Markup

from transferkit.reports import svg

NASTY = "<script>\"&'"
CHARTS = {
    "reliability": svg.reliability_diagram([(0.4, 0.6, 3, 0.5, 0.4), (0.9, 1.0, 10, 0.97, 1.0)]),
    "risk": svg.risk_coverage_curve([0.1, 0.5, 1.0], [0.0, 0.1, 0.2]),
    "no risk": svg.risk_coverage_curve([1.0], [0.0]),
    "lines": svg.line_chart({NASTY: [(1, 0.5), (2, 0.7)], "val": [(1, 0.4)]}, "epoch", "loss", mark=2),
    "flat": svg.line_chart({"val": [(1, 0.0), (2, 0.0)]}, "epoch", "accuracy", percent=True),
    "intervals": svg.interval_plot([(NASTY, 0.5, 0.4, 0.6), ("b", 0.7, 0.7, 0.7)], zero=True),
    "bar": svg.interval_bar(1.0, 0.7, 1.0),
    "mark": svg.legend_mark(3),
}


@pytest.mark.parametrize("name", CHARTS)
def test_a_chart_is_well_formed(name: str) -> None:
    chart = CHARTS[name]
    root = ElementTree.fromstring(str(chart))
    assert isinstance(chart, Markup) and "nan" not in chart and "inf" not in chart
    assert root.get("aria-label") or root.get("aria-hidden") == "true"
    texts = [element.text for element in root.iter() if element.tag == "text"]
    assert name not in ("intervals",) or NASTY in texts


def test_points_lie_where_the_axes_say() -> None:
    root = ElementTree.fromstring(str(svg.line_chart({"val": [(0, 0.0), (1, 0.5), (2, 1.0)]}, "x", "y", percent=True)))
    ticks = {e.text: float(str(e.get("y"))) - 4 for e in root.iter("text") if str(e.text).endswith("%")}
    line = next(e for e in root.iter("path") if e.get("class") == "line c0")
    places = [tuple(map(float, pair.split())) for pair in re.findall(r"[\d.]+ [\d.]+", str(line.get("d")))]
    assert places[1][1] == pytest.approx(ticks["50%"], abs=0.2)
    assert places[2][0] - places[1][0] == pytest.approx(places[1][0] - places[0][0], abs=0.2)


def test_every_marked_class_looks_different() -> None:
    marks = [svg.mark_of(place) for place in range(svg.MARKS)]
    assert len(set(marks)) == svg.MARKS
    assert all(one[0] != two[0] and one[1] != two[1] for one, two in itertools.pairwise(marks))
    assert svg.mark_of(svg.MARKS) not in marks


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.83, 0.97), (0, 8), (-0.04, 0.21), (3, 3)])
def test_ticks_are_few_round_and_inside(low: float, high: float) -> None:
    ticks = svg.Axis(low, high, "").ticks()
    assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in ticks)
    assert low == high or 2 <= len(ticks) <= 9
