"""The corpus of odd and broken images given to every verb: equal to their pixels, or refused by name in one line."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests import image_corpus
from tests.hostile.entrances import ENTRANCES, Entrance
from tests.image_corpus import Case, encode, photo
from tests.running import Done, transferkit


def lay_out(root: Path, cases: Sequence[Case], as_pixels: bool) -> Path:
    """Write cases into two class folders in their own format or as a lossless PNG of their pixels."""
    for number, case in enumerate(cases):
        folder = root / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        data = encode(case.pixels, "PNG") if as_pixels and case.pixels is not None else case.data
        (folder / case.name).write_bytes(data)
    return root


def enter(entrance: Entrance, root: Path, checkpoint: Path) -> Done:
    return transferkit(entrance.verb, *entrance.arguments(root, checkpoint))


@pytest.fixture
def own_run(run: Path, here: Path) -> Path:
    """A checkpoint in a copy of its run, because predict writes there."""
    shutil.copytree(run, here / "runs/tiny/0")
    return Path("runs/tiny/0/checkpoints/best.ckpt")


@pytest.mark.slow
@pytest.mark.parametrize("entrance", ENTRANCES, ids=lambda entrance: entrance.verb)
def test_good_images_count_as_their_pixels(
    entrance: Entrance, own_run: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for as_pixels in (False, True):
        place = here / ("pixels" if as_pixels else "files")
        shutil.copytree(here / "runs", place / "runs")
        monkeypatch.chdir(place)
        lay_out(Path("photos"), image_corpus.good(), as_pixels)
        done = enter(entrance, Path("photos"), own_run)
        assert done.status == 0 or entrance.verb == "scan", done.err
        results.append(entrance.values(done))
    assert results[0] == results[1]


@pytest.mark.parametrize("entrance", [e for e in ENTRANCES if e.names_all], ids=lambda entrance: entrance.verb)
def test_broken_images_are_all_named_with_their_reason(entrance: Entrance, own_run: Path, here: Path) -> None:
    whole = [Case(f"whole{number}.png", encode(photo(40, 40, number), "PNG")) for number in range(6)]
    root = lay_out(here / "photos", [*whole, *image_corpus.broken()], as_pixels=False)
    before = sorted(here.glob("runs/**/*"))
    done = enter(entrance, root, own_run)
    assert done.status == 2
    if entrance.verb == "scan":
        said = Path("report.csv").read_text()
    else:
        assert done.out == ""
        (said,) = [line for line in done.err.splitlines() if line.startswith("transferkit: error: ")]
        assert done.err.splitlines()[-1] == said
        assert f"{len(image_corpus.broken())} broken images" in said
        assert sorted(here.glob("runs/**/*")) == before, "nothing half-done is left"
    lines = said.replace("; ", "\n").splitlines()
    for case in image_corpus.broken():
        assert any(case.reason in line for line in lines), case.name
        alike = any(line.startswith("and ") and case.reason in line for line in lines)  # more of them with this reason
        assert alike or any(case.name in line and case.reason in line for line in lines), case.name
    assert not any("whole" in line for line in lines)


FEW = [case.name for case in image_corpus.broken()][::8]
CASES = [pytest.param(case, marks=[] if case.name in FEW else pytest.mark.slow) for case in image_corpus.broken()]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("entrance", [e for e in ENTRANCES if not e.names_all], ids=lambda entrance: entrance.verb)
def test_a_broken_image_is_named_with_its_reason(entrance: Entrance, case: Case, own_run: Path, here: Path) -> None:
    whole = Case("whole.png", encode(photo(40, 40), "PNG"))
    done = enter(entrance, lay_out(here / "photos", [whole, case], as_pixels=False), own_run)
    assert (done.status, done.out) == (2, "")
    (line,) = done.err.splitlines()
    assert line.startswith("transferkit: error: ") and case.name in line and case.reason in line
