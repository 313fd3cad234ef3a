"""Reports in a real browser: from disk, without a request, by mouse and keyboard, readable by everyone."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.reports.browser import CHROMIUM, Page, browser
from tests.reports.example_results import NASTY, write_run
from tests.reports.test_comparison import labels, write_results
from transferkit.data.embeddings import Embeddings
from transferkit.data.scan import scan
from transferkit.probe.audit import audit_embeddings
from transferkit.probe.audit_files import save_audit
from transferkit.reports.report import report_of, report_of_scan, report_of_two

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium; install Debian's package of that name")


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report_of(write_run(tmp_path_factory.mktemp("browser")).run)


@pytest.fixture(scope="module")
def files(file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report of each kind that has a layout of its own."""
    other = write_run(tmp_path_factory.mktemp("other"), wrong=0.1).run
    bare = write_run(tmp_path_factory.mktemp("bare")).run
    for name in ("predictions.parquet", "embeddings.parquet", "metrics.csv"):
        (bare / name).unlink()
    photos = file.parents[3] / "images"
    (photos / "test" / "broken.jpg").write_bytes(b"not an image")
    audited = audit_embeddings(Embeddings.load(file.parent / "embeddings.parquet"))
    save_audit(audited, photos / "audit", {"source": str(photos / "labels.csv")})
    pair = [write_results(bare.parent / name / "0", labels(noise)[0]) for name, noise in (("a", 0.6), ("b", 0.2))]
    return {
        "run": file,
        "labels": report_of_two(*pair, pair[1] / "comparison.html"),
        "comparison": report_of_two(file.parent, other, other / "comparison.html"),
        "bare": report_of(bare),
        "scan": report_of_scan(scan(photos), photos / "scan.html", ["transferkit", "scan"]),
        "audit": report_of(photos / "audit"),
    }


def test_nothing_is_requested_and_nothing_fails(page: Page, files: dict[str, Path]) -> None:
    for file in files.values():
        page.open(file)
        assert {url.partition(":")[0] for url in page.requests} <= {"file", "data"}
        assert [url for url in page.requests if url.startswith("file:")] == [file.as_uri()]
        assert page.errors == []


@pytest.mark.parametrize("dark", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_nothing(page: Page, files: dict[str, Path], width: int, dark: bool) -> None:
    for name, file in files.items():
        page.open(file, width=width, dark=dark)
        assert page.axe() == [], name


@pytest.mark.parametrize("width", [1280, 800, 390])
def test_the_page_is_no_wider_than_the_window(page: Page, files: dict[str, Path], width: int) -> None:
    for file in files.values():
        page.open(file, width=width)
        assert page.js("document.documentElement.scrollWidth") <= width


def test_a_matrix_of_twenty_classes_and_the_names_of_a_plot_fit(
    page: Page, files: dict[str, Path], tmp_path: Path
) -> None:
    page.open(report_of(write_run(tmp_path, [f"class {n:02d}" for n in range(22)], per_class=2, images=False).run))
    assert page.js("document.querySelectorAll('table.confusion thead th').length") > 20
    assert page.js("(t => t.scrollWidth <= t.parentElement.clientWidth)(document.querySelector('table.confusion'))")
    page.open(files["labels"])
    inside = "[...document.querySelectorAll('svg text.axis')].every(t => t.getBBox().x >= 0)"
    assert page.js(f"document.querySelectorAll('svg text.axis').length > 2 && {inside}")


def test_a_click_on_a_cell_shows_its_images(page: Page, file: Path) -> None:
    page.open(file)
    assert page.js("getComputedStyle(document.querySelector('#cell-0-0')).display") == "none"
    count = page.js("document.querySelector('a[href=\"#cell-0-0\"] data').value")
    page.click("a[href='#cell-0-0']")
    page.wait("getComputedStyle(document.querySelector('#cell-0-0')).display === 'block'")
    assert page.js("document.querySelectorAll('#cell-0-0 .card').length") == int(count)
    assert page.js(
        "[...document.querySelectorAll('#cell-0-0 .thumb use')].every(u => u.getBoundingClientRect().width > 20)"
    )
    page.click("#cell-0-0 .close")
    page.wait("getComputedStyle(document.querySelector('#cell-0-0')).display === 'none'")


def test_a_cell_opens_by_keyboard(page: Page, file: Path) -> None:
    page.open(file)
    page.js("document.querySelector('a[href=\"#cell-0-0\"]').focus()")
    page.key("Enter")
    page.wait("getComputedStyle(document.querySelector('#cell-0-0')).display === 'block'")
    page.wait("document.activeElement.id === 'cell-0-0'")


def test_a_point_of_the_map_shows_its_image(page: Page, file: Path) -> None:
    page.open(file)
    page.js("document.querySelector('.map').scrollIntoView({block: 'center', behavior: 'instant'})")
    x, y = page.middle(".map > svg > use")
    page.mouse("mouseMoved", x, y)
    page.wait("!document.querySelector('.tip').hidden")
    assert page.js("document.querySelector('.tip-label').textContent") in NASTY
    assert page.js("document.querySelector('.tip use').getBoundingClientRect().width") > 20
    page.js("document.querySelector('.map > svg').focus()")
    page.key("ArrowRight")
    page.wait("document.querySelector('.live').textContent !== ''")
    page.key("Escape")
    page.wait("document.querySelector('.tip').hidden")


def test_names_are_text(page: Page, file: Path) -> None:
    page.open(file)
    shown = page.js("[...document.querySelectorAll('.confusion tbody th')].map(e => e.textContent.trim())")
    assert shown == sorted(NASTY)
    assert page.js("document.scripts.length") == 1
    assert page.js("document.querySelectorAll('main b').length") == 0
