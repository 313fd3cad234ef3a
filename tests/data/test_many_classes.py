"""A thousand classes, and the 21,841 of ImageNet-21k: time and memory grow with the rows and not with their product."""

import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

from transferkit.cli.commands.scan import as_dict
from transferkit.data.datamodule import ImageDataModule
from transferkit.data.image_table import ImageTable, check_trainable, open_images
from transferkit.data.scan import rules
from transferkit.data.scan.findings import report
from transferkit.data.splits import assign_splits, few_shot, select_classes
from transferkit.evaluation import plots
from transferkit.probe.fewshot import draw_order
from transferkit.reports.figures import WORST

MANY = [1_000, pytest.param(21_841, marks=pytest.mark.slow)]
EACH = 4  # images of a class


@pytest.fixture(params=MANY)
def table(request: pytest.FixtureRequest, tmp_path: Path) -> ImageTable:
    rows = [f"{row:06d}.jpg,class {row % request.param:05d}" for row in range(EACH * request.param)]
    (tmp_path / "m.csv").write_text("\n".join(["path,label", *rows]))
    return open_images(tmp_path / "m.csv")


def test_tables_splits_and_counts(table: ImageTable) -> None:
    start, classes = time.process_time(), len(table) // EACH
    check_trainable(table)
    split = assign_splits(table, 0.25, 0.25, seed=0)
    assert Counter(zip(split.labels, split.splits, strict=True)) == {
        (name, part): count for name in table.class_names for part, count in (("train", 2), ("val", 1), ("test", 1))
    }
    few, note = few_shot(split, 1, seed=0)
    assert note is None and few.splits.count("train") == classes
    assert len(select_classes(split, table.class_names[: classes // 2])) == EACH * (classes // 2)
    assert not list(rules.classes(table))
    counted = as_dict(report(table, [], {}), "m.csv")["classes"]
    assert counted == dict.fromkeys(table.class_names, EACH)
    seconds = time.process_time() - start
    assert seconds < 3e-4 * len(table), "a pass over all rows for each class would take an hour"


def test_targets(table: ImageTable) -> None:
    data = ImageDataModule("m.csv", class_weights="balanced")
    data.tables, data.class_names = {"train": table}, table.class_names
    start = time.process_time()
    assert data.targets("train").bincount().tolist() == [EACH] * (len(table) // EACH)
    weights = data.loss_weights()
    assert weights is not None and weights.tolist() == [1.0] * (len(table) // EACH)
    assert time.process_time() - start < 1e-4 * len(table)


@pytest.mark.parametrize("classes", MANY)
def test_rows_are_drawn_class_by_class(classes: int) -> None:
    """Those of each, in an order that its own rows and the classes before it decide."""
    target = torch.arange(EACH * classes) % classes
    start = time.process_time()
    drawn = draw_order(target, classes, seed=0)
    assert time.process_time() - start < 2
    assert [rows.sort().values.tolist() for rows in drawn[:3]] == [
        (target == number).nonzero().flatten().tolist() for number in range(3)
    ]
    generator = torch.Generator().manual_seed(0)
    for number in range(3):
        members = (target == number).nonzero().flatten()
        assert torch.equal(drawn[number], members[torch.randperm(EACH, generator=generator)])


def test_a_picture_of_all_pairs_of_classes_is_of_a_few() -> None:
    """The same of both sides; a title that says so."""
    sides = [plots.Side(torch.eye(700), torch.arange(700))] * 2
    (figure,) = [plots.class_matrix(*sides, [str(number) for number in range(700)])]
    assert figure.axes[0].images[0].get_array().shape == (WORST, WORST)  # those that are most alike of those drawn
    assert figure.axes[0].images[0].get_array().diagonal().min() == 1
    assert "500 of 700 classes" in figure.axes[0].get_title()
    few = plots.class_matrix(*[plots.Side(torch.eye(9), torch.arange(9))] * 2, list("abcdefghi"))
    assert few.axes[0].get_title() == "cosine of class means"


EVALUATE = """
import resource, sys, torch
from pathlib import Path
from transferkit import evaluation
from transferkit.data.embeddings import Embeddings
classes, out = int(sys.argv[1]), Path(sys.argv[2])
names = [f"class {row // 2:05d}" for row in range(2 * classes)]
rows = torch.randn(2 * classes, 8, generator=torch.Generator().manual_seed(0))
table = Embeddings(rows, [f"{row:06d}" for row in range(2 * classes)], names, [None] * 2 * classes, {})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = evaluation.measure(table)
assert len(found.per_class) == classes
evaluation.draw(table, None, out)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("classes", [1_000, 21_841])
def test_embeddings_are_evaluated(classes: int, tmp_path: Path) -> None:
    """In less than the gigabytes of a number for every pair of classes."""
    command = [sys.executable, "-c", EVALUATE, str(classes), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1024
