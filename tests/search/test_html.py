"""The page of results: what is in it, and what a real browser makes of it."""

import base64
import re
import shutil
import subprocess
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from transferkit.images.decoding import ImageError
from transferkit.search.html import write_page
from transferkit.search.query import Hit

NASTY = "a/<script>document.title='owned'</script>\" onerror=\"x\u202egnp.jpg"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

TAGS = {
    "html",
    "head",
    "meta",
    "title",
    "style",
    "body",
    "main",
    "h1",
    "h2",
    "p",
    "ol",
    "li",
    "div",
    "img",
    "b",
    "span",
}
TAGS |= {"wbr"}


def picture(height: int, width: int, grey: int = 128) -> Tensor:
    return torch.full((3, height, width), grey, dtype=torch.uint8)


def broken() -> Tensor:
    raise ImageError("truncated", "truncated <JPEG>")


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "page.html"
    hits = [
        (Hit(1, 4, 0.98765, NASTY, "<b>ants & bees</b>"), lambda: picture(600, 900)),
        (Hit(2, 5, 0.5, "gone.jpg", None), broken),
        (Hit(3, 6, -0.25, "tiny.png", "x"), lambda: picture(1, 1)),
    ]
    write_page(path, "Image search", "3 of 9", [("query.jpg", lambda: picture(10, 20))], hits)
    return path


class Tags(HTMLParser):
    """Every tag and attribute, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.words += data


def test_self_contained_and_escaped(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    seen = Tags(text)
    assert {tag for tag, _ in seen.tags} <= TAGS
    addresses = [value for _, fields in seen.tags for name, value in fields.items() if name in ("src", "href")]
    assert len(addresses) == 3 and all((value or "").startswith("data:image/jpeg;base64,") for value in addresses)
    assert "http" not in re.sub(r'http-equiv|src="[^"]*"', "", text)
    images = [fields for tag, fields in seen.tags if tag == "img"]
    assert all(fields["alt"] and set(fields) == {"alt", "src"} for fields in images)
    assert "<script>document.title='owned'</script>" in seen.words and "\u202e" not in text
    assert "<b>ants & bees</b>" in seen.words and "no picture: truncated <JPEG>" in seen.words
    assert "cosine 0.9877" in seen.words and "cosine -0.2500" in seen.words
    sizes = [Image.open(BytesIO(base64.b64decode((a or "").split(",")[1]))).size for a in addresses]
    assert sizes == [(20, 10), (320, 213), (1, 1)]


@pytest.mark.skipif(BROWSER is None, reason="no chromium here to open the page in")
def test_in_a_browser(page: Path, tmp_path: Path) -> None:
    """Opened from disk at two widths: nothing overflows, every thumbnail is decoded, nothing runs."""
    probe = (
        "<script>addEventListener('load', () => { document.title = JSON.stringify({"
        "overflow: document.documentElement.scrollWidth > innerWidth, width: innerWidth,"
        "pictures: [...document.images].map(i => [i.complete, i.naturalWidth]),"
        "columns: getComputedStyle(document.querySelectorAll('ol')[1]).gridTemplateColumns.split(' ').length,"
        "words: document.querySelectorAll('li').length}) })</script></body>"
    )
    text = page.read_text(encoding="utf-8")
    open_policy = re.sub(r"<meta http-equiv[^>]*>", "", text)  # for the probe alone
    probed = tmp_path / "probed.html"
    probed.write_text(open_policy.replace("</body>", probe), encoding="utf-8")
    for width, columns in ((600, 3), (1200, 6)):
        title = re.search("<title>(.*?)</title>", dump(probed, tmp_path, width))
        assert title and '"overflow":false' in title[1]
        assert '"pictures":[[true,20],[true,320],[true,1]]' in title[1] and '"words":4' in title[1]
        assert f'"columns":{columns}' in title[1]
    with_policy = page.with_name("policy.html")
    with_policy.write_text(text.replace("</body>", probe), encoding="utf-8")
    assert "<title>Image search</title>" in dump(with_policy, tmp_path, 600)  # the policy lets no script run


def dump(page: Path, folder: Path, width: int) -> str:
    """The document after a browser has laid it out."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    size = f"--window-size={width},900"
    command = [str(BROWSER), *flags, size, "--virtual-time-budget=2000", "--dump-dom", page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
