"""Pictures: that they show what they are given; hostile names; whole files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from transferkit import pictures
from transferkit.errors import UserError

HOSTILE = ["$x^{$", "tab\there", "_hidden", "line\nend\x1b[31m", "日本", "a$b$", "%s", ""]


def texts(figure: Figure) -> list[str]:
    axes = figure.axes[0]
    labels = [*axes.get_xticklabels(), *axes.get_yticklabels(), *axes.texts]
    legend = axes.get_legend()
    return [text.get_text() for text in (*labels, *(legend.get_texts() if legend else []))]


def test_confusion_shows_counts_and_colours_shares(tmp_path: Path) -> None:
    counts = torch.tensor([[3, 1], [0, 0]])
    figure = pictures.confusion(counts, ["ant", "bee"], "val: 4 images")
    shares = figure.axes[0].images[0].get_array()
    assert np.asarray(shares).tolist() == [[0.75, 0.25], [0, 0]]
    assert texts(figure) == ["ant", "bee", "ant", "bee", "3", "1", "0", "0"]
    assert figure.axes[0].get_title() == "val: 4 images"
    pictures.save(figure, tmp_path / "c.png")
    assert [path.name for path in tmp_path.iterdir()] == ["c.png"]
    assert Image.open(tmp_path / "c.png").format == "PNG"


def test_hostile_names_are_drawn_as_they_are(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    size = len(HOSTILE)
    drawn = [
        pictures.confusion(torch.eye(size), HOSTILE, "t"),
        pictures.class_cosines(torch.eye(size), HOSTILE, HOSTILE, "t"),
        pictures.scatter(torch.randn(9, 2), torch.arange(9) - 1, HOSTILE, "t", ("x", "y")),
    ]
    for number, figure in enumerate(drawn):
        pictures.save(figure, tmp_path / f"{number}.png")
        assert {"$x^{$", "tab here", "a$b$"} <= {text.strip() for text in texts(figure)}
    assert len(texts(drawn[2])) >= size + 1  # all in the legend, and the rows without label
    assert [str(warning.message) for warning in recwarn] == []


def test_scatter_has_every_point_in_the_colour_of_its_class() -> None:
    points, classes = torch.randn(40, 2), torch.randint(-1, 3, (40,))
    axes = pictures.scatter(points, classes, ["a", "b", "_c"], "t", ("x", "y")).axes[0]
    (group,) = axes.collections
    np.testing.assert_array_equal(np.asarray(group.get_offsets()), points.numpy())
    legend = axes.get_legend()
    assert legend is not None
    named = [tuple(handle.get_color()) for handle in legend.legend_handles]
    assert [text.get_text() for text in legend.get_texts()] == ["no label", " a", " b", " _c"]
    assert len(set(named)) == 4
    assert [tuple(colour) for colour in group.get_facecolors()] == [named[code + 1] for code in classes.tolist()]


def test_histogram_has_an_area_of_one(tmp_path: Path) -> None:
    counts = torch.randint(0, 50, (100,))
    figure = pictures.cosine_histogram({"same class": counts, "different classes": torch.zeros(100)}, "t")
    (patch,) = figure.axes[0].patches
    values, edges, _ = patch.get_data()
    assert (values * np.diff(edges)).sum() == pytest.approx(1)
    assert (edges[0], edges[-1]) == (-1, 1)
    pictures.save(pictures.cosine_histogram({"all": torch.zeros(4)}, "no pair"), tmp_path / "e.png")


def test_many_classes_have_no_names(tmp_path: Path) -> None:
    names = [f"class {number}" for number in range(300)]
    figure = pictures.class_cosines(torch.eye(300), names, names, "t")
    assert "class 1" not in texts(figure)
    points = pictures.scatter(torch.randn(300, 2), torch.arange(300), names, "t", ("x", "y"))
    assert points.axes[0].get_legend() is None
    pictures.save(points, tmp_path / "p.png")


@pytest.mark.parametrize(("count", "across"), [(1, 1), (2, 2), (4, 2), (5, 3), (9, 3), (10, 4)])
def test_sheet_is_square_and_filled_row_by_row(count: int, across: int) -> None:
    squares = [torch.full((3, 4, 4), number + 1, dtype=torch.uint8) for number in range(count)]
    sheet = pictures.sheet(squares)
    assert sheet.shape == (3, across * 4, across * 4)
    cells = sheet[0, ::4, ::4].flatten().tolist()
    assert cells == [*range(1, count + 1), *[0] * (across**2 - count)]


def test_pixels_are_saved_to_the_bit(tmp_path: Path) -> None:
    pixels = torch.randint(0, 256, (3, 5, 7), dtype=torch.uint8)
    pictures.save(pixels, tmp_path / "p.png")
    assert np.array_equal(np.array(Image.open(tmp_path / "p.png")), pixels.movedim(0, -1).numpy())
    with pytest.raises(UserError, match="cannot write"):
        pictures.save(pixels, tmp_path / "p.png" / "q.png")
