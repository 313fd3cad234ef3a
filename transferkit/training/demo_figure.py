"""The quickstart's figure: accuracies as bars, some of the drawn symbols, and digits with their predicted classes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from transferkit.data.image_table import open_images
from transferkit.reports.figures import COLORS, save
from transferkit.training.demo_backbone import PRETRAINING, Row, Study
from transferkit.training.symbols import SYMBOLS, folder_name

SHOWN = 24  # symbols, and digits
GRAY = "#A0A0A0"
TRANSFERRED, WRONG = COLORS[0], COLORS[3]


def draw(study: Study, rows: Sequence[Row], chosen: Row, path: Path) -> None:
    """Draw the figure of a quickstart.

    Args:
        study: the quickstart.
        rows: its table.
        chosen: the row whose predictions are shown.
        path: the PNG file to write.

    Raises:
        UserError: the file cannot be written.
    """
    names = list(dict.fromkeys(row.backbone for row in rows))
    figure = Figure(figsize=(5 * len(names), 5.5), layout="constrained")
    grid = figure.add_gridspec(3, len(names), height_ratios=(4, 1, 1))
    for column, name in enumerate(names):
        draw_bars(figure.add_subplot(grid[0, column]), [row for row in rows if row.backbone == name])
    draw_strip(figure.add_subplot(grid[1, :]), some_symbols(study), "Pretraining: symbols drawn from fonts, no digits")
    digits, labels, predictions = some_digits(study, chosen)
    title = f"Then {study.n_per_class} examples per digit; held-out digits and predictions of {chosen.backbone}"
    axes = figure.add_subplot(grid[2, :])
    draw_strip(axes, digits, title)
    side = digits[0].shape[0] + 1
    for position, (label, prediction) in enumerate(zip(labels, predictions, strict=True)):
        color = TRANSFERRED if prediction == label else WRONG
        axes.text(position * side + side / 2 - 1, side + 3, prediction, ha="center", va="center", color=color)
    save(figure, path)


def draw_bars(axes: Axes, rows: Sequence[Row]) -> None:
    """Draw the accuracy of each approach to the digits, with its standard deviation."""
    rows = [row for row in rows if row.approach != PRETRAINING]
    colors = [TRANSFERRED if row.approach.startswith("transferred") else GRAY for row in rows]
    places = range(len(rows))
    axes.bar(places, [row.accuracy for row in rows], yerr=[row.std or 0 for row in rows], color=colors, capsize=4)
    for place, row in zip(places, rows, strict=True):
        axes.text(place, 0.02, f"{row.accuracy:.2f}", ha="center", color="white", fontweight="bold")
    axes.set_xticks(places, [row.approach.replace(", ", ",\n") for row in rows])
    axes.set(ylim=(0, 1), ylabel="accuracy on held-out digits", title=rows[0].backbone)
    axes.spines[["top", "right"]].set_visible(False)


def draw_strip(axes: Axes, images: Sequence[NDArray[np.uint8]], title: str) -> None:
    """Draw images (S, S) side by side, in black on white."""
    strip = np.concatenate([np.pad(image, ((0, 0), (0, 1))) for image in images], axis=1)
    axes.imshow(strip, cmap="gray_r", vmin=0, vmax=255)
    axes.set_title(title, loc="left", fontsize="medium")
    axes.set_axis_off()


def some_symbols(study: Study) -> list[NDArray[np.uint8]]:
    """Return a drawing (8, 8) of some symbols, evenly chosen."""
    chosen = [SYMBOLS[number * len(SYMBOLS) // SHOWN] for number in range(SHOWN)]
    files = [
        study.symbols / folder_name(symbol) / f"{position % study.drawings:03d}.png"
        for position, symbol in enumerate(chosen)
    ]
    return [np.asarray(Image.open(file)) for file in files]


def some_digits(study: Study, chosen: Row) -> tuple[list[NDArray[np.uint8]], list[str], list[str]]:
    """Return the first held-out digits (8, 8) of the first draw, their labels and the predicted ones."""
    predictions = pq.read_table(study.folder(chosen.backbone, chosen.approach) / "0" / "predictions.parquet")
    first = predictions.slice(0, SHOWN).to_pydict()
    table = open_images("digits")
    images = [table.decode(table.row_of[path])[0].numpy() for path in first["path"]]
    return images, first["label"], first["prediction"]
