"""What judges an export in int8: the head where there is one, otherwise a probe, on val."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from tests.backbones.families import save
from transferkit.data.image_table import ImageTable, open_images
from transferkit.extractor import Extractor
from transferkit.probe.int8_judge import judge_of


@pytest.fixture
def extractor(tmp_path: Path) -> Extractor:
    save("vit", tmp_path / "tiny")
    return Extractor.from_pretrained(tmp_path / "tiny")


def with_splits(table: ImageTable) -> ImageTable:
    return replace(table, splits=tuple("val" if row % 3 == 0 else "train" for row in range(len(table))))


def test_the_head_classifies(extractor: Extractor, photo_folder: Path) -> None:
    table = with_splits(open_images(photo_folder))
    head = nn.Linear(extractor.embed_dim, 2)
    trained = Extractor(extractor.backbone, extractor.preprocessing, head, ["limes", "apples"])
    judge = judge_of(trained, table)
    rows = [row for row, split in enumerate(table.splits) if split == "val"]
    embedding = extractor.embed([table.file(row) for row in rows])
    outputs = {"embedding": embedding, "logits": head(embedding).detach()}
    answers = [trained.class_names[int(number)] for number in outputs["logits"].argmax(1)]
    right = sum(answer == table.labels[row] for answer, row in zip(answers, rows, strict=True)) / len(rows)
    assert judge.accuracy and judge.accuracy(outputs) == pytest.approx(right)
    assert (
        judge.classifier == "the head"
        and judge.what == f"{len(rows)} images of val" == f"{len(judge.pixels)} images of val"
    )


def test_without_a_head_a_probe_classifies(extractor: Extractor, photo_folder: Path) -> None:
    table = with_splits(open_images(photo_folder))
    judge = judge_of(extractor, table)
    split = {name: [row for row, own in enumerate(table.splits) if own == name] for name in ("train", "val")}
    embedding = {name: extractor.embed([table.file(row) for row in rows]) for name, rows in split.items()}
    labels = {name: [table.labels[row] for row in rows] for name, rows in split.items()}
    mean, std = embedding["train"].mean(0), embedding["train"].std(0, correction=0)
    scaled = {name: ((values - mean) / std).numpy() for name, values in embedding.items()}
    other = LogisticRegression(C=2.0, max_iter=1000).fit(scaled["train"], labels["train"])  # one row of weights for two
    assert judge.accuracy and judge.classifier == "a linear probe"
    assert judge.accuracy({"embedding": embedding["val"]}) == pytest.approx(other.score(scaled["val"], labels["val"]))


def test_without_splits_only_embeddings_are_compared(extractor: Extractor, photo_folder: Path) -> None:
    table = open_images(photo_folder)
    plain = judge_of(extractor, replace(table, splits=(None,) * len(table)))
    assert plain.accuracy is None and len(plain.pixels) == len(table) and torch.is_tensor(plain.pixels)
    one_class = replace(with_splits(table), labels=("limes",) * len(table))
    assert judge_of(extractor, one_class).accuracy is None
