"""Pictures from plain tensors: matrices, histograms, maps, sheets of thumbnails. No global figure, no display."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image
from torch import Tensor

from transferkit.files import atomic_path

NAMED = 40
"""Classes with a name on an axis."""
COLOURS = 20
"""Classes with a colour of their own and a line in the legend."""
LONGEST = 40
"""Letters of a class name; the rest is cut off."""


def printable(text: str) -> str:
    """A name from data on one line: control characters, tabs and line ends become spaces."""
    return "".join(c if c.isprintable() else " " for c in text)


def tick(name: str) -> str:
    """A class name beside a picture, which it may not crowd out."""
    return printable(name if len(name) <= LONGEST else f"{name[:LONGEST]}…")


def confusion(counts: Tensor, names: Sequence[str], title: str) -> Figure:
    """Confusion matrix, coloured by the share of the true class.

    Args:
        counts: `(C, C)`, true class by predicted class.
        names: C class names.
        title: above it.
    """
    share = counts / counts.sum(1, keepdim=True).clamp(min=1)
    cells = [[f"{value:g}" for value in row] for row in counts.tolist()]
    figure, axes = _matrix(share, names, names, cells, lowest=0)
    axes.set(xlabel="predicted", ylabel="true", title=title)
    return figure


def class_cosines(cosine: Tensor, rows: Sequence[str], columns: Sequence[str], title: str) -> Figure:
    """Matrix of cosines between class means.

    Args:
        cosine: `(R, C)` in [-1, 1].
        rows: R class names.
        columns: C class names.
        title: above it.
    """
    cells = [[f"{value:.2f}" for value in row] for row in cosine.tolist()]
    figure, axes = _matrix(cosine, rows, columns, cells, lowest=min(0.0, float(cosine.min())))
    figure.colorbar(axes.images[0], ax=axes, shrink=0.8)
    axes.set(title=title)
    return figure


def cosine_histogram(series: dict[str, Tensor], title: str) -> Figure:
    """Spread of cosines, each series scaled to an area of 1.

    Args:
        series: name to `(bins,)` counts over [-1, 1]; those without any are left out.
        title: above it.
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, counts in series.items():
        if counts.sum() > 0:
            edges = torch.linspace(-1, 1, len(counts) + 1).numpy()
            density = counts.double() / counts.sum() * (len(counts) / 2)
            axes.stairs(density.numpy(), edges, fill=True, alpha=0.5, label=f"{name}: {int(counts.sum()):,} pairs")
    if axes.patches:
        axes.legend(loc="upper left")
    axes.set(xlabel="cosine", ylabel="density", title=title)
    return figure


def scatter(points: Tensor, classes: Tensor, names: Sequence[str], title: str, labels: tuple[str, str]) -> Figure:
    """Rows as points on a plane, coloured by class.

    Args:
        points: `(N, 2)`.
        classes: `(N,)` int64, -1 for a row without class.
        names: C class names; beyond 20 classes colours repeat and the legend is left out.
        title: above it.
        labels: of the two axes.
    """
    figure = Figure(figsize=(8, 6), layout="constrained")
    axes = figure.subplots()
    size = max(2.0, min(30.0, 6000 / len(points)))
    codes = sorted(set(classes.tolist()))
    colours = {code: colormaps["tab20"](code % COLOURS) if code >= 0 else (0.8, 0.8, 0.8, 1.0) for code in codes}
    x, y = points.T.numpy()
    axes.scatter(x, y, s=size, c=[colours[code] for code in classes.tolist()], linewidths=0)
    if 0 < len(names) <= COLOURS:
        handles = [Line2D([], [], marker="o", linestyle="", color=colours[code]) for code in codes]
        # A space first: matplotlib leaves "_name" out of a legend.
        entries = [f" {tick(names[code])}" if code >= 0 else "no label" for code in codes]
        legend = axes.legend(handles, entries, loc="center left", bbox_to_anchor=(1, 0.5))
        for text in legend.get_texts():
            text.set_parse_math(False)
    axes.set(title=title, xlabel=labels[0], ylabel=labels[1])
    return figure


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
        with warnings.catch_warnings():  # a letter that the font lacks is drawn as a box, which is seen
            warnings.filterwarnings("ignore", r"Glyph .* missing from", UserWarning)
            picture.savefig(temporary, format="png", dpi=120)


def _matrix(
    values: Tensor, rows: Sequence[str], columns: Sequence[str], cells: list[list[str]], lowest: float
) -> tuple[Figure, Axes]:
    """A matrix in colours from the lowest value to 1, with names and numbers where there is room for them."""
    size = min(12.0, 3 + 0.3 * len(values))
    figure = Figure(figsize=(size, size), layout="constrained")
    axes: Axes = figure.subplots()
    axes.imshow(values.numpy(), vmin=lowest, vmax=1, cmap="Blues")
    if max(values.shape) <= NAMED:
        axes.set_xticks(range(len(columns)), [tick(name) for name in columns], rotation=90)
        axes.set_yticks(range(len(rows)), [tick(name) for name in rows])
        for text in (*axes.get_xticklabels(), *axes.get_yticklabels()):
            text.set_parse_math(False)  # a dollar sign in a name does not start a formula
    if max(values.shape) <= 15:
        for row, texts in enumerate(cells):
            for column, cell in enumerate(texts):
                dark = float(values[row, column]) > 0.4 * lowest + 0.6
                axes.text(column, row, cell, ha="center", va="center", fontsize=8, color="white" if dark else "black")
    return figure, axes
