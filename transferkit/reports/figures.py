"""Figures from plain tensors: matrices, histograms, maps, sheets of thumbnails. No global figure, no display."""

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
"""Most classes named on an axis."""
WORST = 20
"""Classes drawn if there are more than that."""
NUMBERED = 21
"""Most rows and columns of a matrix that shows a number in every cell."""
LONGEST = 40
"""Most letters shown of a class name."""
# Okabe and Ito 2008, "Color universal design": distinguishable with any color vision. Without yellow, too pale on
# white, and purple, close to blue without red receptors. Further classes use other shapes.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#000000")
SHAPES = ("o", "^", "s", "D")
LEGEND = len(COLORS) * len(SHAPES)
"""Most classes with their own color and shape, and an entry in the legend."""
OTHERS, OTHER_SHAPE = "#A0A0A0", "p"
UNKNOWN = "#C8C8C8"
Color = tuple[float, float, float, float]
# Tried in this order if DejaVu, matplotlib's own font, lacks a character.
FONTS = (
    "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans CJK KR", "Noto Sans JP", "Noto Sans SC", "Noto Sans KR",
    "Source Han Sans", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "Droid Sans Fallback", "IPAGothic", "NanumGothic",
    "Hiragino Sans", "PingFang SC", "Apple SD Gothic Neo", "Arial Unicode MS", "Microsoft YaHei", "SimHei", "Yu Gothic",
    "Malgun Gothic", "Noto Sans Devanagari", "Noto Sans Thai", "Noto Sans Bengali", "Noto Sans Tamil", "Noto Emoji",
)  # fmt: skip


@cache
def fonts() -> dict[str, frozenset[int]]:
    """Return the installed fonts to draw names in, in order of preference, each with its characters."""
    installed = {font.name: font.fname for font in font_manager.fontManager.ttflist}
    names = ["DejaVu Sans", *(name for name in FONTS if name in installed)]
    return {name: frozenset(FT2Font(installed[name]).get_charmap()) for name in names}


def drawable(text: str) -> str:
    """Escape the characters that no font has, as in ``\\u6728``: they would be drawn as boxes."""
    known = fonts().values()
    return "".join(c if any(ord(c) in font for font in known) else c.encode("unicode_escape").decode() for c in text)


def tick(name: str) -> str:
    """Return a class name for an axis or a legend, shortened to leave room for the figure."""
    shown = drawable(on_one_line(name))
    return shown if len(shown) <= LONGEST else f"{shown[:LONGEST]}…"


def confusion(counts: Tensor, names: Sequence[str], title: str) -> Figure:
    """Draw a confusion matrix, colored by the share of the true class; of many classes those with the lowest recall.

    Args:
        counts: `(C, C)`, true class by predicted class.
        names: C class names.
        title: title of the figure.
    """
    totals = counts.sum(1)
    rows, columns = list(names), list(names)
    if len(names) > NAMED:
        recall = torch.where(totals > 0, counts.diagonal() / totals.clamp(min=1), torch.inf)
        worst = recall.argsort(stable=True)[:WORST].sort().values
        rows = [names[code] for code in worst.tolist()]
        columns, elsewhere = [*rows, "(others)"], totals[worst] - counts[worst][:, worst].sum(1)
        counts = torch.cat([counts[worst][:, worst], elsewhere[:, None]], 1)
        title = f"{title}, the {len(rows)} of {len(names):,} classes with the lowest recall"
    share = counts / counts.sum(1, keepdim=True).clamp(min=1)
    cells = [[f"{value:g}" for value in row] for row in counts.tolist()]
    figure, axes = draw_matrix(share, rows, columns, cells, lowest=0)
    axes.set(xlabel="predicted", ylabel="true", title=title)
    return figure


def class_cosines(cosine: Tensor, rows: Sequence[str], columns: Sequence[str], title: str) -> Figure:
    """Draw a matrix of cosines between class means; of many classes the most similar ones.

    Args:
        cosine: `(R, C)` in [-1, 1].
        rows: R class names.
        columns: C class names.
        title: title of the figure.
    """
    if max(len(rows), len(columns)) > NAMED:
        chosen = most_similar(cosine, rows, columns)
        picked = [[code for code, name in enumerate(side) if name in chosen] for side in (rows, columns)]
        title = f"{title}, the {len(chosen)} of {len({*rows, *columns}):,} most similar classes"
        cosine = cosine[picked[0]][:, picked[1]]
        rows, columns = [rows[code] for code in picked[0]], [columns[code] for code in picked[1]]
    cells = [[f"{value:.2f}" for value in row] for row in cosine.tolist()]
    figure, axes = draw_matrix(cosine, rows, columns, cells, lowest=min(0.0, float(cosine.min())))
    figure.colorbar(axes.images[0], ax=axes, shrink=0.8)
    axes.set(title=title)
    return figure


def most_similar(cosine: Tensor, rows: Sequence[str], columns: Sequence[str]) -> set[str]:
    """Return at most 20 classes, from the pairs of different classes with the highest cosine."""
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
    """Draw histograms of cosines, each with an area of 1.

    Args:
        series: name to `(bins,)` counts over [-1, 1]; empty series are not drawn.
        title: title of the figure.
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
    """Draw rows as points, with a color and shape per class.

    Args:
        points: `(N, 2)`.
        classes: `(N,)` int64, -1 for a row without class.
        names: C class names; of more than 24 the 23 largest have their own color and shape, the others are gray.
        title: title of the figure.
        labels: of the two axes.
    """
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    size = max(12.0, min(40.0, 8000 / len(points)))
    marks, handles, entries = class_marks(classes, names)
    rows_of: dict[str, list[int]] = {}
    for row, code in enumerate(classes.tolist()):
        rows_of.setdefault(marks[code][1], []).append(row)
    for shape, rows in sorted(rows_of.items(), key=lambda item: item[0] != OTHER_SHAPE):  # the gray ones below the rest
        x, y = points[rows].T.numpy()
        colors = [marks[code][0] for code in classes[rows].tolist()]
        axes.scatter(x, y, s=size, c=colors, marker=shape, linewidths=0.3, edgecolors="white")
    if names:
        plain_texts(axes.legend(handles, entries, loc="center left", bbox_to_anchor=(1, 0.5)).get_texts())
    axes.set(title=title, xlabel=labels[0], ylabel=labels[1])
    return figure


def class_marks(classes: Tensor, names: Sequence[str]) -> tuple[dict[int, tuple[Color, str]], list[Line2D], list[str]]:
    """Return the color and shape of each class, and the legend's handles and texts."""
    counts = dict(zip(*(part.tolist() for part in torch.unique(classes, return_counts=True)), strict=True))
    known = [code for code in counts if code >= 0]
    few = len(known) <= LEGEND
    shown = known if few else sorted(sorted(known, key=lambda code: -counts[code])[: LEGEND - 1])
    # The space is for names such as "_name", which matplotlib would leave out of a legend.
    lines = {code: f" {tick(names[code])}" for code in shown}
    marks = {code: (to_rgba(COLORS[at % len(COLORS)]), SHAPES[at // len(COLORS)]) for at, code in enumerate(shown)}
    if -1 in counts:
        marks[-1] = (to_rgba(UNKNOWN), SHAPES[0])
        lines = {-1: "no label", **lines}
    handles = [legend_handle(*marks[code]) for code in lines]
    entries = list(lines.values())
    if not few:
        marks |= dict.fromkeys(set(known) - set(shown), (to_rgba(OTHERS), OTHER_SHAPE))
        handles.append(legend_handle(to_rgba(OTHERS), OTHER_SHAPE))
        entries.append(f"({len(known) - len(shown):,} other classes)")
    return marks, handles, entries


def legend_handle(color: Color, shape: str) -> Line2D:
    """Return a legend handle with the marker of a class."""
    return Line2D([], [], marker=shape, linestyle="", color=color)


def plain_texts(texts: Iterable[Text]) -> None:
    """Draw texts literally: without formulas between dollar signs, each character in the first font that has it."""
    for text in texts:
        text.set_parse_math(False)
        text.set_fontfamily(list(fonts()))


def sheet(thumbnails: Sequence[Tensor]) -> Tensor:
    """Arrange thumbnails row by row on a sheet with as many columns as rows; the rest is black.

    Args:
        thumbnails: uint8 `(3, S, S)` each, at least one.

    Returns:
        uint8 `(3, n * S, n * S)` with the smallest n whose square is enough.
    """
    side = thumbnails[0].shape[1]
    across = int((len(thumbnails) - 1) ** 0.5) + 1
    canvas = torch.zeros(3, across * side, across * side, dtype=torch.uint8)
    for number, thumbnail in enumerate(thumbnails):
        top, left = number // across * side, number % across * side
        canvas[:, top : top + side, left : left + side] = thumbnail
    return canvas


def save(figure: Figure | Tensor, path: Path) -> None:
    """Write a figure, or pixels uint8 `(3, H, W)`, as a PNG file, atomically.

    Raises:
        UserError: the file cannot be written.
    """
    with atomic_path(path) as temporary:
        if isinstance(figure, Tensor):
            Image.fromarray(figure.movedim(0, -1).numpy()).save(temporary, format="png", compress_level=1)
            return
        figure.savefig(temporary, format="png", dpi=120)


def draw_matrix(
    values: Tensor, rows: Sequence[str], columns: Sequence[str], cells: list[list[str]], lowest: float
) -> tuple[Figure, Axes]:
    """Draw a matrix in colors from the lowest value to 1, with names, and with numbers if they fit."""
    size = min(16.0, 3 + 0.3 * len(values))
    figure = Figure(figsize=(size, size), layout="constrained")
    axes: Axes = figure.subplots()
    axes.imshow(values.numpy(), vmin=lowest, vmax=1, cmap="Blues")
    axes.set_xticks(range(len(columns)), [tick(name) for name in columns], rotation=90)
    axes.set_yticks(range(len(rows)), [tick(name) for name in rows])
    plain_texts([*axes.get_xticklabels(), *axes.get_yticklabels()])
    if max(values.shape) <= NUMBERED:
        for row, texts in enumerate(cells):
            for column, cell in enumerate(texts):
                dark = float(values[row, column]) > 0.4 * lowest + 0.6
                axes.text(column, row, cell, ha="center", va="center", fontsize=7, color="white" if dark else "black")
    return figure, axes
