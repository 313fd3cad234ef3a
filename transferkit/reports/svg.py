"""Charts as inline SVG: pure functions of numbers. Colors are classes of the page's style, light and dark."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from transferkit.reports.numbers import counted

WIDTH, HEIGHT = 440, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 14, 44
Point = tuple[float, float]


@dataclass(frozen=True)
class Axis:
    """One axis of a chart.

    Attributes:
        low: value at its start.
        high: value at its end.
        title: beside it.
        percent: whether its numbers are shares, shown in percent.
        whole: whether only whole numbers get a tick.
    """

    low: float
    high: float
    title: str
    percent: bool = False
    whole: bool = False

    def ticks(self) -> list[float]:
        """Return round values from low to high, about five of them."""
        span = (self.high - self.low) or 1.0
        raw = span / 4
        power = 10 ** math.floor(math.log10(raw))
        step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
        if self.whole:
            step = max(1.0, math.ceil(step))
        first = math.ceil(self.low / step - 1e-9)
        return [step * number for number in range(first, math.floor(self.high / step + 1e-9) + 1)]

    def text(self, value: float) -> str:
        """Return a tick's number."""
        return f"{100 * value:.4g}%" if self.percent else f"{value:.4g}"


@dataclass(frozen=True)
class Frame:
    """Where values lie in a chart."""

    x: Axis
    y: Axis

    def at(self, point: Point) -> Point:
        """Return the place of a value, in the units of the viewBox."""
        across = (point[0] - self.x.low) / ((self.x.high - self.x.low) or 1)
        up = (point[1] - self.y.low) / ((self.y.high - self.y.low) or 1)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)


def chart(title: str, inside: Sequence[str], width: float = WIDTH, height: float = HEIGHT) -> Markup:
    """Return an SVG image with its alternative text."""
    body = Markup("".join(inside))
    return Markup('<svg class="chart" role="img" viewBox="0 0 {} {}" aria-label="{}">{}</svg>').format(
        width, height, title, body
    )


def text_at(kind: str, x: float, y: float, text: str, anchor: str = "middle") -> str:
    """Return text at a place."""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def axes(frame: Frame) -> list[str]:
    """Return grid lines, numbers and titles of both axes."""
    parts = []
    for value in frame.y.ticks():
        x, y = frame.at((frame.x.low, value))
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(text_at("tick", LEFT - 8, y + 4, frame.y.text(value), "end"))
    for value in frame.x.ticks():
        x, _ = frame.at((value, frame.y.low))
        parts.append(text_at("tick", x, HEIGHT - BOTTOM + 18, frame.x.text(value)))
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<path class="base" d="M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>')
    parts.append(text_at("axis", middle, HEIGHT - 6, frame.x.title))
    side = (TOP + HEIGHT - BOTTOM) / 2
    turned = f'transform="rotate(-90 12 {side})" text-anchor="middle"'
    parts.append(f'<text class="axis" x="12" y="{side}" {turned}>{escape(frame.y.title)}</text>')
    return parts


def path_of(frame: Frame, points: Sequence[Point]) -> str:
    """Return the ``d`` of a line through values."""
    places = [frame.at(point) for point in points]
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)


def reliability_diagram(bins: Sequence[tuple[float, float, int, float, float]]) -> Markup:
    """Return accuracy by confidence, with the diagonal of perfect calibration.

    Args:
        bins: (low, high, rows, mean confidence, accuracy) of the bins with rows.
    """
    frame = Frame(Axis(0, 1, "confidence", percent=True), Axis(0, 1, "accuracy", percent=True))
    most = max((each[2] for each in bins), default=1)
    parts = axes(frame)
    for low, high, rows, confidence, accuracy in bins:
        left, top = frame.at((low, accuracy))
        right, base = frame.at((high, 0))
        weight = 0.25 + 0.75 * rows / most
        told = f"confidence {100 * low:.0f} to {100 * high:.0f}%: {counted(rows, 'image')}, {100 * accuracy:.1f}% right"
        parts.append(
            f'<rect class="bar" x="{left + 1:.1f}" y="{top:.1f}" width="{right - left - 2:.1f}" '
            f'height="{max(base - top, 1):.1f}" fill-opacity="{weight:.2f}"><title>{told}</title></rect>'
        )
        x, y = frame.at((confidence, accuracy))
        parts.append(f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="3"/>')
    parts.append(f'<path class="ideal" d="{path_of(frame, [(0, 0), (1, 1)])}"/>')
    told = "; ".join(f"{100 * c:.0f}% confident, {100 * a:.0f}% right" for _, _, _, c, a in bins)
    return chart(f"Reliability diagram: {told}", parts)


def risk_coverage_curve(coverage: Sequence[float], risk: Sequence[float]) -> Markup:
    """Return the share of errors among the most confident answers.

    Args:
        coverage: share of images that are answered, ascending to 1.
        risk: share of errors among them.
    """
    points = thinned([(0.0, risk[0]), *zip(coverage, risk, strict=True)], 300)
    top = max(0.02, 1.15 * max(risk))
    frame = Frame(Axis(0, 1, "images answered", percent=True), Axis(0, top, "errors among them", percent=True))
    line = path_of(frame, points)
    parts = axes(frame)
    parts.append(f'<path class="area" d="{line}L{WIDTH - RIGHT} {HEIGHT - BOTTOM}H{LEFT}Z"/>')
    parts.append(f'<path class="line c0" d="{line}"/>')
    half = next(place for place, share in enumerate(coverage) if share >= 0.5)
    told = f"{100 * risk[-1]:.1f}% errors when all images are answered, {100 * risk[half]:.1f}% on the surest half"
    return chart(f"Risk by coverage: {told}", parts)


def thinned(points: Sequence[Point], most: int) -> list[Point]:
    """Return at most so many of some points, evenly, the first and the last among them."""
    if len(points) <= most:
        return list(points)
    step = (len(points) - 1) / (most - 1)
    return [points[round(number * step)] for number in range(most)]


def line_chart(
    series: Mapping[str, Sequence[Point]], x: str, y: str, *, percent: bool = False, mark: float | None = None
) -> Markup:
    """Return lines with their names at their ends.

    Args:
        series: name -> points by x.
        x: title of the x axis, whose values are whole numbers.
        y: title of the y axis.
        percent: whether y is a share.
        mark: an x at which a vertical line stands.
    """
    every = [point for points in series.values() for point in points]
    lows, highs = ([choose(axis) for axis in zip(*every, strict=True)] for choose in (min, max))
    pad = 0.06 * ((highs[1] - lows[1]) or abs(highs[1]) or 1)
    bottom = max(0.0, lows[1] - pad) if lows[1] >= 0 else lows[1] - pad
    top = min(1.0, highs[1] + pad) if percent else highs[1] + pad
    frame = Frame(Axis(lows[0], max(highs[0], lows[0] + 1), x, whole=True), Axis(bottom, top, y, percent=percent))
    parts = axes(frame)
    if mark is not None:
        place, _ = frame.at((mark, bottom))
        parts.append(f'<path class="ideal" d="M{place:.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
    for number, points in enumerate(series.values()):
        if len(points) == 1:
            at = frame.at(points[0])
            parts.append(f'<circle class="dot c{number}" cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="4"/>')
        parts.append(f'<path class="line c{number}" d="{path_of(frame, thinned(points, 400))}"/>')
    told = "; ".join(f"{name} from {points[0][1]:.4g} to {points[-1][1]:.4g}" for name, points in series.items())
    return chart(f"{y} by {x}: {told}", parts)


def interval_bar(share: float, low: float, high: float) -> Markup:
    """Return a small scale from 0 to 1 with a share and its interval, for a cell of a table."""
    width, height = 120, 14
    span = max(2.0, width * (high - low))
    parts = [
        f'<rect class="track" width="{width}" height="{height}" rx="3"/>',
        f'<rect class="span" x="{width * low:.1f}" width="{span:.1f}" height="{height}" rx="3"/>',
        f'<path class="whisker" d="M{width * share:.1f} -1v16"/>',
    ]
    label = f"{100 * share:.1f}%, 95% interval {100 * low:.1f} to {100 * high:.1f}%"
    body = Markup("".join(parts))
    return Markup('<svg class="spark" role="img" viewBox="-2 -1 124 16" aria-label="{}">{}</svg>').format(label, body)


def interval_plot(rows: Sequence[tuple[str, float, float, float]], zero: bool = False) -> Markup:
    """Return values with their intervals, a row each.

    Args:
        rows: name, value, low and high, as shares.
        zero: whether 0 gets a line: for differences.
    """
    gap, top = 30, 10
    name = max(150, 12 + 7 * min(22, max(len(row[0]) for row in rows)))  # at most 7 units per letter
    height = top + gap * len(rows) + 34
    low, high = min(row[2] for row in rows), max(row[3] for row in rows)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    pad = 0.05 * ((high - low) or 1)
    axis = Axis(low - pad, high + pad, "", percent=True)
    span = (axis.high - axis.low) or 1

    def at(value: float) -> float:
        return name + (value - axis.low) / span * (WIDTH - name - 16)

    parts = []
    for tick in axis.ticks():
        parts.append(f'<path class="grid" d="M{at(tick):.1f} {top}V{height - 30}"/>')
        parts.append(text_at("tick", at(tick), height - 12, axis.text(tick)))
    if zero:
        parts.append(f'<path class="ideal" d="M{at(0):.1f} {top}V{height - 30}"/>')
    for number, (label, value, start, end) in enumerate(rows):
        y = top + gap * (number + 0.5)
        short = label if len(label) <= 22 else f"{label[:21]}…"
        parts.append(text_at("axis", name - 12, y + 4, short, "end"))
        parts.append(f'<path class="line c0" d="M{at(start):.1f} {y:.1f}H{at(end):.1f}"/>')
        parts.append(f'<circle class="dot" cx="{at(value):.1f}" cy="{y:.1f}" r="5"/>')
    told = "; ".join(f"{row[0]} {100 * row[1]:.1f}% ({100 * row[2]:.1f} to {100 * row[3]:.1f})" for row in rows)
    return chart(told, parts, height=height)


SHAPES = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0Z",  # disc
    "M0 -5L4.8 3.6H-4.8Z",  # triangle
    "M-3.7 -3.7h7.4v7.4h-7.4Z",  # square
    "M0 -5.2L4.6 0L0 5.2L-4.6 0Z",  # diamond
)
COLORS = 5
MARKS = COLORS * len(SHAPES)
"""Classes that get a color and shape of their own; the others share a small gray disc."""


def mark_of(place: int) -> tuple[int, int]:
    """Return color and shape of the class at a place: neighbors differ in both, and 5 x 4 of them are all different."""
    return (place % COLORS, place % len(SHAPES)) if place < MARKS else (COLORS, 0)


def legend_mark(place: int) -> Markup:
    """Return the mark of a class for a legend."""
    color, shape = mark_of(place)
    return Markup(
        f'<svg class="key" viewBox="-7 -7 14 14" aria-hidden="true"><path class="k{color}" d="{SHAPES[shape]}"/></svg>'
    )
