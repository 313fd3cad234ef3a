"""The page of explained images, and the colors of a heat map: nothing that somebody typed is HTML."""

import re
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.reports.browser import CHROMIUM, browser
from transferkit.images.error import ImageError
from transferkit.reports.explanations import SHOWN, Explained, Neighbor, explanation_report, write_explanations
from transferkit.reports.heat_overlay import UNSEEN, overlay

NASTY = "<script>alert('1')</script>\"&\u202e🍎" + "x" * 100


class Tags(HTMLParser):
    """Counts tags, and collects text and attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.texts += [value or "" for _, value in attrs]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def pixels(value: int) -> Tensor:
    return torch.full((3, 20, 30), value, dtype=torch.uint8)


def broken() -> Tensor:
    raise ImageError("truncated", "it is cut")


def write(folder: Path, text: str, count: int = 1) -> str:
    found = [
        Explained(f"{i}{text}", f"label {text}", text, 0.25, text, f"{i}.png", [Neighbor(f"t{text}", text, 0.5)])
        for i in range(count)
    ]
    readers = {f"{i}.png": partial(pixels, i % 255) for i in range(count)} | {f"t{text}": broken}
    readers |= {f"{i}{text}": partial(pixels, 100) for i in range(count)}
    write_explanations(explanation_report(found, text, [f"gone: {text}"]), readers, folder / "report.html")
    return (folder / "report.html").read_text(encoding="utf-8")


def test_names_are_text(tmp_path: Path) -> None:
    plain, nasty = Tags(write(tmp_path, "plain")), Tags(write(tmp_path, NASTY))
    assert nasty.tags == plain.tags
    shown = NASTY.replace("\u202e", "\\u202e")
    assert sum(shown in text for text in nasty.texts) == sum("plain" in text for text in plain.texts) > 8


def test_every_picture_says_what_it_is(tmp_path: Path) -> None:
    page = write(tmp_path, "apple")
    labels = re.findall(r'role="img"[^>]*aria-label="([^"]*)"', page)
    assert labels == [
        "0apple, predicted apple",
        "0apple: what spoke for apple",
        "training image tapple of class apple",
    ]
    assert page.count("data:image/jpeg") == 2 and "it is cut" in page  # the third cannot be read
    assert "Predicted apple, the label is label apple." in page and "gone: apple" in page
    assert 'data-source="explanations.json images 0 nearest 0 cosine">0.5' in page
    assert "://" not in page


def test_many_images_are_cut_and_said(tmp_path: Path) -> None:
    page = write(tmp_path, "a", SHOWN + 1001)
    assert page.count("<section ") == SHOWN and "1,001 more images: explanations.json" in page
    assert len(page) < 8 * 2**20


def test_colors_of_a_heat_map() -> None:
    image = torch.randint(256, (3, 2, 4), dtype=torch.uint8)
    heat = torch.tensor([[0.0, 0.5, 1.0, 0.0]] * 2)
    seen = torch.tensor([[True, True, True, False]] * 2)
    drawn = overlay(image, heat, seen)
    assert drawn.dtype == torch.uint8 and torch.equal(drawn[:, :, 0], image[:, :, 0])  # no heat, no color
    yellow = torch.tensor([252, 255, 164])[:, None]  # the end of inferno
    assert ((drawn[:, :, 2] - (0.25 * image[:, :, 2] + 0.75 * yellow)).abs() <= 1).all()
    gray = image[:, :, 3].float().mean(0) * UNSEEN
    assert all((drawn[channel, :, 3] - gray).abs().max() <= 1 for channel in range(3))


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_a_page_in_the_browser(tmp_path: Path) -> None:
    write(tmp_path, NASTY, 3)
    with browser() as page:
        for width, dark in ((1280, False), (390, True)):
            page.open(tmp_path / "report.html", width=width, dark=dark)
            assert {url.partition(":")[0] for url in page.requests} <= {"file", "data"} and page.errors == []
            assert page.axe() == [] and page.js("document.documentElement.scrollWidth") <= width
