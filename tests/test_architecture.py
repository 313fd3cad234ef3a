"""docs/architecture.md is true: its folders and floors are those there are, and its examples work as they stand."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_layers import FLOORS, PACKAGE, violations

PAGE = (PACKAGE.parent / "docs/architecture.md").read_text(encoding="utf-8")
USE = """
import sys, numpy, torch
from transferkit import Extractor, similarity
from transferkit.backbones import build, rebuild
from transferkit.cli import run

backbone = build("patch-means")
other = rebuild(backbone.spec())
other.load_state_dict(backbone.state_dict())
image = torch.randint(256, (3, 300, 400), dtype=torch.uint8)
one, two = Extractor(backbone).embed([image]), Extractor(other).embed([image])
assert one.shape == (1, 64) and torch.equal(one, two) and backbone.stage_of("0.weight") == 0
rows = torch.nn.functional.normalize(torch.randn(20, 5), dim=1)
values = numpy.linalg.svd(rows.double().numpy(), compute_uv=False)
share = values / values.sum()
found = similarity.evaluate(rows).overall["effective_rank"]
assert abs(found - numpy.exp(-(share * numpy.log(share)).sum())) < 1e-6
sys.exit(run(["count", sys.argv[1], "--json"]))
"""


def files() -> dict[str, str]:
    """The new files of the examples: path -> content."""
    blocks = re.findall(r"```python\n# (transferkit/\S+)\n(.*?)```", PAGE, flags=re.DOTALL)
    return dict(blocks)


def changes() -> list[tuple[str, str, str]]:
    """The changes of the examples: path, the text before, the text after."""
    found = []
    for path, body in re.findall(r"```diff\n--- (\S+)\n(.*?)```", PAGE, flags=re.DOTALL):
        for before, after in re.findall(r"((?:^-.*\n)+)((?:^\+.*\n)+)", body, flags=re.MULTILINE):
            found.append((path, *("\n".join(line[1:] for line in part.splitlines()) for part in (before, after))))
    return found


def test_the_folders_are_those_of_the_package() -> None:
    tree = re.search(r"```\ntransferkit/\n(.*?)```", PAGE, flags=re.DOTALL)
    assert tree
    named = re.findall(r"^  (\w+)(?:/|\.py) +\S", tree[1], flags=re.MULTILINE)
    there = [path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()]
    assert sorted(named) == sorted(there)


def test_the_floors_are_those_that_are_kept() -> None:
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", PAGE, flags=re.MULTILINE)
    floors = {int(number): set(re.findall(r"`(\w+)`", rooms)) for number, rooms in rows}
    assert floors == dict(enumerate(FLOORS, start=1))


@pytest.mark.parametrize("path", files())
def test_an_example_is_short_and_in_its_place(path: str) -> None:
    source = files()[path]
    assert 10 <= len([line for line in source.splitlines() if line]) <= 30
    assert violations(path.removeprefix("transferkit/"), source) == []


def test_the_examples_work(photo_folder: Path, tmp_path: Path) -> None:
    """In a copy of the package, changed as the page says."""
    shutil.copytree(PACKAGE, tmp_path / "transferkit", ignore=shutil.ignore_patterns("__pycache__"))
    assert len(files()) == 3 and len(changes()) == 6
    for path, source in files().items():
        assert not (tmp_path / path).exists()
        (tmp_path / path).write_text(source, encoding="utf-8")
    for path, before, after in changes():
        text = (tmp_path / path).read_text(encoding="utf-8")
        assert text.count(before) == 1, f"{path}: {before}"
        (tmp_path / path).write_text(text.replace(before, after), encoding="utf-8")
    command = [sys.executable, "-c", USE, str(photo_folder)]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.split()) == (0, ["{", '"apples":', "12,", '"limes":', "12", "}"]), done.stderr
