"""Pictures: that they show what they are given; hostile names; whole files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from transferkit.errors import UserError
from transferkit.reports import figures

HOSTILE = ["$x^{$", "tab\there", "_hidden", "line\nend\x1b[31m", "日本", "a$b$", "%s", ""]


def texts(figure: Figure) -> list[str]:
    axes = figure.axes[0]
    labels = [*axes.get_xticklabels(), *axes.get_yticklabels(), *axes.texts]
    legend = axes.get_legend()
    return [text.get_text() for text in (*labels, *(legend.get_texts() if legend else []))]


def test_confusion_shows_counts_and_colours_shares(tmp_path: Path) -> None:
    counts = torch.tensor([[3, 1], [0, 0]])
    figure = figures.confusion(counts, ["ant", "bee"], "val: 4 images")
    shares = figure.axes[0].images[0].get_array()
    assert np.asarray(shares).tolist() == [[0.75, 0.25], [0, 0]]
    assert texts(figure) == ["ant", "bee", "ant", "bee", "3", "1", "0", "0"]
    assert figure.axes[0].get_title() == "val: 4 images"
    figures.save(figure, tmp_path / "c.png")
    assert [path.name for path in tmp_path.iterdir()] == ["c.png"]
    assert Image.open(tmp_path / "c.png").format == "PNG"


def test_hostile_names_are_drawn_as_they_are(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    size = len(HOSTILE)
    drawn = [
        figures.confusion(torch.eye(size), HOSTILE, "t"),
        figures.class_cosines(torch.eye(size), HOSTILE, HOSTILE, "t"),
        figures.scatter(torch.randn(9, 2), torch.arange(9) - 1, HOSTILE, "t", ("x", "y")),
    ]
    for number, figure in enumerate(drawn):
        figures.save(figure, tmp_path / f"{number}.png")
        assert {"$x^{$", "tab here", "a$b$"} <= {text.strip() for text in texts(figure)}
    assert len(texts(drawn[2])) >= size + 1  # all in the legend, and the rows without label
    assert [str(warning.message) for warning in recwarn] == []


def test_scatter_has_every_point_in_the_colour_of_its_class() -> None:
    points, classes = torch.randn(40, 2), torch.randint(-1, 3, (40,))
    axes = figures.scatter(points, classes, ["a", "b", "_c"], "t", ("x", "y")).axes[0]
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
    figure = figures.cosine_histogram({"same class": counts, "different classes": torch.zeros(100)}, "t")
    (patch,) = figure.axes[0].patches
    values, edges, _ = patch.get_data()
    assert (values * np.diff(edges)).sum() == pytest.approx(1)
    assert (edges[0], edges[-1]) == (-1, 1)
    figures.save(figures.cosine_histogram({"all": torch.zeros(4)}, "no pair"), tmp_path / "e.png")


def test_fifty_classes_have_their_names() -> None:
    names = [f"class {number}" for number in range(50)]
    for figure in (figures.confusion(torch.eye(50), names, "t"), figures.class_cosines(torch.eye(50), names, names, "t")):  # fmt: skip  # noqa: E501
        assert [text for text in texts(figure) if text] == names * 2


def test_of_many_classes_those_with_the_fewest_hits_are_drawn() -> None:
    names = [f"class {number}" for number in range(300)]
    counts = 10 * torch.eye(300)
    for code in range(5, 25):
        counts[code, code], counts[code, code + 1], counts[code, 200] = 4, 3, 3
    counts[0] = 0  # no image of it
    figure = figures.confusion(counts, names, "val")
    drawn = [f"class {code}" for code in range(5, 25)]
    assert texts(figure)[:41] == [*drawn, "(others)", *drawn]
    shares = np.asarray(figure.axes[0].images[0].get_array())
    assert shares.shape == (20, 21)
    np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-6)
    np.testing.assert_allclose(shares[0, [0, 1, 20]], [0.4, 0.3, 0.3], rtol=1e-6)
    assert figure.axes[0].get_title() == "val, the 20 of 300 classes with the lowest recall"


def test_of_many_classes_the_most_alike_are_drawn() -> None:
    names = [f"class {number}" for number in range(300)]
    cosine = torch.full((300, 300), 0.1).fill_diagonal_(1)
    for code in range(100, 120, 2):
        cosine[code, code + 1] = cosine[code + 1, code] = 0.9
    figure = figures.class_cosines(cosine, names, names, "t")
    assert texts(figure)[:40] == [f"class {code}" for code in range(100, 120)] * 2
    assert figure.axes[0].get_title() == "t, the 20 of 300 most similar classes"


def test_many_classes_have_a_legend_of_the_largest(tmp_path: Path) -> None:
    names = [f"class {number}" for number in range(300)]
    classes = torch.cat([torch.arange(300), torch.arange(50, 73)])
    figure = figures.scatter(torch.randn(323, 2), classes, names, "t", ("x", "y"))
    assert texts(figure)[-24:] == [*(f" class {code}" for code in range(50, 73)), "(277 other classes)"]
    assert sum(len(group.get_offsets()) for group in figure.axes[0].collections) == 323
    figures.save(figure, tmp_path / "p.png")


def test_marks_differ_for_everyone_and_can_be_seen() -> None:
    """Also under the common forms of color blindness (Viénot, Brettel and Mollon 1999), in linear RGB."""
    figure = figures.scatter(torch.randn(5000, 2), torch.arange(5000) % 24, [str(n) for n in range(24)], "t", ("", ""))
    legend = figure.axes[0].get_legend()
    assert legend is not None
    marks = {(handle.get_color(), handle.get_marker()) for handle in legend.legend_handles}
    assert len(marks) == 24
    assert all(group.get_sizes().min() >= 12 for group in figure.axes[0].collections)
    colors = np.array(sorted({color[:3] for color, _ in marks}))
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    protan = np.array([[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]])
    deutan = np.array([[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]])
    for sight in (np.eye(3), protan, deutan):
        seen = np.clip(linear @ sight.T, 0, 1) ** (1 / 2.2)
        apart = np.abs(seen[:, None] - seen[None]).max(-1) + np.eye(len(seen))
        assert apart.min() > 0.15, sight


def test_letters_that_no_font_has_are_written_out(recwarn: pytest.WarningsRecorder, tmp_path: Path) -> None:
    names = ["日本", "木", "café", "Ωмега"]
    known = set().union(*figures.fonts().values())
    wanted = ["".join(c if ord(c) in known else f"\\u{ord(c):04x}" for c in name) for name in names]
    for number, figure in enumerate(
        (
            figures.confusion(torch.eye(4), names, "t"),
            figures.scatter(torch.randn(9, 2), torch.arange(9) % 4, names, "t", ("x", "y")),
        )
    ):
        assert set(wanted) <= {text.strip() for text in texts(figure)}
        figures.save(figure, tmp_path / f"{number}.png")
    assert wanted[2:] == names[2:]
    assert [str(warning.message) for warning in recwarn] == []


def test_an_installed_font_is_used_for_the_letters_that_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "fonts", lambda: {"DejaVu Sans": frozenset(map(ord, "ab")), "Noto Sans CJK JP": {0x6728}})  # fmt: skip  # noqa: E501
    figure = figures.confusion(torch.eye(2), ["a木", "b本"], "t")
    assert texts(figure)[:2] == ["a木", "b\\u672c"]
    assert figure.axes[0].get_xticklabels()[0].get_fontfamily() == ["DejaVu Sans", "Noto Sans CJK JP"]


@pytest.mark.parametrize(("count", "across"), [(1, 1), (2, 2), (4, 2), (5, 3), (9, 3), (10, 4)])
def test_sheet_is_square_and_filled_row_by_row(count: int, across: int) -> None:
    squares = [torch.full((3, 4, 4), number + 1, dtype=torch.uint8) for number in range(count)]
    sheet = figures.sheet(squares)
    assert sheet.shape == (3, across * 4, across * 4)
    cells = sheet[0, ::4, ::4].flatten().tolist()
    assert cells == [*range(1, count + 1), *[0] * (across**2 - count)]


def test_pixels_are_saved_to_the_bit(tmp_path: Path) -> None:
    pixels = torch.randint(0, 256, (3, 5, 7), dtype=torch.uint8)
    figures.save(pixels, tmp_path / "p.png")
    assert np.array_equal(np.array(Image.open(tmp_path / "p.png")), pixels.movedim(0, -1).numpy())
    with pytest.raises(UserError, match="cannot write"):
        figures.save(pixels, tmp_path / "p.png" / "q.png")
