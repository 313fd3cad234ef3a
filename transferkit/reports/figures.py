"""Pictures from plain tensors: matrices, histograms, maps, sheets of thumbnails. No global figure, no display."""

from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import torch
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.lines import Line2D
from matplotlib.text import Text
from PIL import Image
from torch import Tensor

from transferkit.runtime.files import atomic_path
from transferkit.runtime.text import on_one_line

NAMED = 60
"""Classes with a name on an axis."""
WORST = 20
"""Classes that are drawn where there are more."""
NUMBERED = 21
"""Rows and columns of a matrix with a number in every cell."""
LONGEST = 40
"""Letters of a class name; the rest is cut off."""
# Okabe and Ito 2008, "Color universal design": told apart by everyone. Left out are yellow, too pale for white paper,
# and purple, which is close to blue for those who lack red. Classes beyond these have another shape.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#000000")
SHAPES = ("o", "^", "s", "D")
LEGEND = len(COLORS) * len(SHAPES)
"""Classes with a color and shape of their own, and a line in the legend."""
OTHERS, OTHER_SHAPE = "#A0A0A0", "p"
UNKNOWN = "#C8C8C8"
Color = tuple[float, float, float, float]
# Looked for in this order where DejaVu, which comes with matplotlib, lacks a letter.
FONTS = (
    "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans CJK KR", "Noto Sans JP", "Noto Sans SC", "Noto Sans KR",
    "Source Han Sans", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "Droid Sans Fallback", "IPAGothic", "NanumGothic",
    "Hiragino Sans", "PingFang SC", "Apple SD Gothic Neo", "Arial Unicode MS", "Microsoft YaHei", "SimHei", "Yu Gothic",
    "Malgun Gothic", "Noto Sans Devanagari", "Noto Sans Thai", "Noto Sans Bengali", "Noto Sans Tamil", "Noto Emoji",
)  # fmt: skip


@cache
def fonts() -> dict[str, frozenset[int]]:
    """Installed fonts that names are drawn in, best first, each with the characters that it has."""
    there = {font.name: font.fname for font in font_manager.fontManager.ttflist}
    names = ["DejaVu Sans", *(name for name in FONTS if name in there)]
    return {name: frozenset(FT2Font(there[name]).get_charmap()) for name in names}


def drawable(text: str) -> str:
    """A text whose every character some font has: others are written out, as in ``\\u6728``, not drawn as boxes."""
    known = fonts().values()
    return "".join(c if any(ord(c) in font for font in known) else c.encode("unicode_escape").decode() for c in text)


def tick(name: str) -> str:
    """A class name beside a picture, which it may not crowd out."""
    shown = drawable(on_one_line(name))
    return shown if len(shown) <= LONGEST else f"{shown[:LONGEST]}…"


def confusion(counts: Tensor, names: Sequence[str], title: str) -> Figure:
    """Confusion matrix, colored by the share of the true class; of many classes those with the lowest share of hits.

    Args:
        counts: `(C, C)`, true class by predicted class.
        names: C class names.
        title: above it.
    """
    totals = counts.sum(1)
    rows, columns = list(names), list(names)
    if len(names) > NAMED:
        hits = torch.where(totals > 0, counts.diagonal() / totals.clamp(min=1), torch.inf)
        worst = hits.argsort(stable=True)[:WORST].sort().values
        rows = [names[code] for code in worst.tolist()]
        columns, elsewhere = [*rows, "(others)"], totals[worst] - counts[worst][:, worst].sum(1)
        counts = torch.cat([counts[worst][:, worst], elsewhere[:, None]], 1)
        title = f"{title}, the {len(rows)} of {len(names):,} classes with the fewest hits"
    share = counts / counts.sum(1, keepdim=True).clamp(min=1)
    cells = [[f"{value:g}" for value in row] for row in counts.tolist()]
    figure, axes = _matrix(share, rows, columns, cells, lowest=0)
    axes.set(xlabel="predicted", ylabel="true", title=title)
    return figure


def class_cosines(cosine: Tensor, rows: Sequence[str], columns: Sequence[str], title: str) -> Figure:
    """Matrix of cosines between class means; of many classes those that are most alike.

    Args:
        cosine: `(R, C)` in [-1, 1].
        rows: R class names.
        columns: C class names.
        title: above it.
    """
    if max(len(rows), len(columns)) > NAMED:
        chosen = most_alike(cosine, rows, columns)
        picked = [[code for code, name in enumerate(side) if name in chosen] for side in (rows, columns)]
        title = f"{title}, the {len(chosen)} of {len({*rows, *columns}):,} classes that are most alike"
        cosine = cosine[picked[0]][:, picked[1]]
        rows, columns = [rows[code] for code in picked[0]], [columns[code] for code in picked[1]]
    cells = [[f"{value:.2f}" for value in row] for row in cosine.tolist()]
    figure, axes = _matrix(cosine, rows, columns, cells, lowest=min(0.0, float(cosine.min())))
    figure.colorbar(axes.images[0], ax=axes, shrink=0.8)
    axes.set(title=title)
    return figure


def most_alike(cosine: Tensor, rows: Sequence[str], columns: Sequence[str]) -> set[str]:
    """At most 20 classes: those of the pairs of different classes with the highest cosine."""
    column_of = {name: code for code, name in enumerate(columns)}
    apart = cosine.clone()
    for code, name in enumerate(rows):
        if name in column_of:
            apart[code, column_of[name]] = -torch.inf
    chosen: set[str] = set()
    for pair in apart.flatten().argsort(descending=True, stable=True)[: WORST**2].tolist():
        both = {rows[pair // len(columns)], columns[pair % len(columns)]}
        if len(chosen | both) <= WORST:
            chosen |= both
    return chosen


def cosine_histogram(series: dict[str, Tensor], title: str) -> Figure:
    """Spread of cosines, each series scaled to an area of 1.

    Args:
        series: name to `(bins,)` counts over [-1, 1]; those without any are left out.
        title: above it.
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for (name, counts), color in zip(series.items(), COLORS, strict=False):
        if counts.sum() > 0:
            edges = torch.linspace(-1, 1, len(counts) + 1).numpy()
            density = counts.double() / counts.sum() * (len(counts) / 2)
            label = f"{name}: {int(counts.sum()):,} pairs"
            axes.stairs(density.numpy(), edges, fill=True, alpha=0.5, color=color, label=label)
    if axes.patches:
        axes.legend(loc="upper left")
    axes.set(xlabel="cosine", ylabel="density", title=title)
    return figure


def scatter(points: Tensor, classes: Tensor, names: Sequence[str], title: str, labels: tuple[str, str]) -> Figure:
    """Rows as points on a plane, each class in a color and shape of its own.

    Args:
        points: `(N, 2)`.
        classes: `(N,)` int64, -1 for a row without class.
        names: C class names; of more than 24 the 23 largest have their own, and the others are gray.
        title: above it.
        labels: of the two axes.
    """
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    size = max(12.0, min(40.0, 8000 / len(points)))
    marks, handles, entries = class_marks(classes, names)
    rows_of: dict[str, list[int]] = {}
    for row, code in enumerate(classes.tolist()):
        rows_of.setdefault(marks[code][1], []).append(row)
    for shape, rows in sorted(rows_of.items(), key=lambda item: item[0] != OTHER_SHAPE):  # those below the rest
        x, y = points[rows].T.numpy()
        colors = [marks[code][0] for code in classes[rows].tolist()]
        axes.scatter(x, y, s=size, c=colors, marker=shape, linewidths=0.3, edgecolors="white")
    if names:
        _plain(axes.legend(handles, entries, loc="center left", bbox_to_anchor=(1, 0.5)).get_texts())
    axes.set(title=title, xlabel=labels[0], ylabel=labels[1])
    return figure


def class_marks(classes: Tensor, names: Sequence[str]) -> tuple[dict[int, tuple[Color, str]], list[Line2D], list[str]]:
    """Color and shape of each class, and the lines of a legend: handles and texts."""
    counts = dict(zip(*(part.tolist() for part in torch.unique(classes, return_counts=True)), strict=True))
    known = [code for code in counts if code >= 0]
    few = len(known) <= LEGEND
    shown = known if few else sorted(sorted(known, key=lambda code: -counts[code])[: LEGEND - 1])
    # A space first: matplotlib leaves "_name" out of a legend.
    lines = {code: f" {tick(names[code])}" for code in shown}
    marks = {code: (to_rgba(COLORS[at % len(COLORS)]), SHAPES[at // len(COLORS)]) for at, code in enumerate(shown)}
    if -1 in counts:
        marks[-1] = (to_rgba(UNKNOWN), SHAPES[0])
        lines = {-1: "no label", **lines}
    handles = [_handle(*marks[code]) for code in lines]
    entries = list(lines.values())
    if not few:
        marks |= dict.fromkeys(set(known) - set(shown), (to_rgba(OTHERS), OTHER_SHAPE))
        handles.append(_handle(to_rgba(OTHERS), OTHER_SHAPE))
        entries.append(f"({len(known) - len(shown):,} other classes)")
    return marks, handles, entries


def _handle(color: Color, shape: str) -> Line2D:
    return Line2D([], [], marker=shape, linestyle="", color=color)


def _plain(texts: Iterable[Text]) -> None:
    """Names as they are: a dollar sign starts no formula, and a letter is taken from the first font that has it."""
    for text in texts:
        text.set_parse_math(False)
        text.set_fontfamily(list(fonts()))


def sheet(thumbnails: Sequence[Tensor]) -> Tensor:
    """Thumbnails row by row on a square sheet, as many a row as there are rows; the rest is black.

    Args:
        thumbnails: uint8 `(3, S, S)` each, at least one.

    Returns:
        uint8 `(3, n * S, n * S)`, n the smallest number whose square holds them all.
    """
    side = thumbnails[0].shape[1]
    across = int((len(thumbnails) - 1) ** 0.5) + 1
    canvas = torch.zeros(3, across * side, across * side, dtype=torch.uint8)
    for number, thumbnail in enumerate(thumbnails):
        top, left = number // across * side, number % across * side
        canvas[:, top : top + side, left : left + side] = thumbnail
    return canvas


def save(picture: Figure | Tensor, path: Path) -> None:
    """Write a figure, or pixels uint8 `(3, H, W)`, as PNG, whole or not at all.

    Raises:
        UserError: the place cannot be written.
    """
    with atomic_path(path) as temporary:
        if isinstance(picture, Tensor):
            Image.fromarray(picture.movedim(0, -1).numpy()).save(temporary, format="png", compress_level=1)
            return
        picture.savefig(temporary, format="png", dpi=120)


def _matrix(
    values: Tensor, rows: Sequence[str], columns: Sequence[str], cells: list[list[str]], lowest: float
) -> tuple[Figure, Axes]:
    """A matrix in colors from the lowest value to 1, with names, and numbers where there is room for them."""
    size = min(16.0, 3 + 0.3 * len(values))
    figure = Figure(figsize=(size, size), layout="constrained")
    axes: Axes = figure.subplots()
    axes.imshow(values.numpy(), vmin=lowest, vmax=1, cmap="Blues")
    axes.set_xticks(range(len(columns)), [tick(name) for name in columns], rotation=90)
    axes.set_yticks(range(len(rows)), [tick(name) for name in rows])
    _plain([*axes.get_xticklabels(), *axes.get_yticklabels()])
    if max(values.shape) <= NUMBERED:
        for row, texts in enumerate(cells):
            for column, cell in enumerate(texts):
                dark = float(values[row, column]) > 0.4 * lowest + 0.6
                axes.text(column, row, cell, ha="center", va="center", fontsize=7, color="white" if dark else "black")
    return figure, axes
