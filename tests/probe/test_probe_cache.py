"""Stale embeddings cannot be probed: whatever they depend on is changed in turn and they are computed anew."""

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from transferkit.data.image_table import open_images
from transferkit.embed import cached_features, describe, feature_key
from transferkit.embed import stream as streaming
from transferkit.extractor import Extractor
from transferkit.probe import probe_embeddings

pytestmark = pytest.mark.usefixtures("own_cache")


def tiny(seed: int = 0, pooling: str | None = None, size: int = 32) -> Extractor:
    torch.manual_seed(seed)
    return Extractor.from_pretrained(
        "shufflenet_v2_x0_5", "none", pooling, {"resize": [size, size], "crop": [size, size]}
    )


@pytest.mark.parametrize(
    "part",
    [
        "weights",
        "preprocessing",
        *(pytest.param(part, marks=pytest.mark.slow) for part in ("pooling", "image", "one weight")),
    ],
)
def test_what_embeddings_depend_on_is_changed_and_they_are_computed_anew(
    part: str, photo_folder: Path, reads: Counter[str]
) -> None:
    extractor, table = tiny(), open_images(photo_folder)
    first = cached_features(extractor, table)
    assert set(reads.values()) == {1} and len(reads) == len(table)
    assert torch.equal(cached_features(tiny(), table).embedding, first.embedding)
    assert set(reads.values()) == {1}, "nothing was changed, and yet it was computed anew"
    if part == "weights":
        extractor = tiny(seed=1)
    elif part == "preprocessing":
        extractor = tiny(size=40)
    elif part == "pooling":
        extractor = tiny(pooling="logits")
    elif part == "one weight":
        with torch.no_grad():
            next(iter(extractor.backbone.parameters())).view(-1)[7] += 1e-3
    else:
        path = photo_folder / table.paths[3]
        path.write_bytes((photo_folder / table.paths[-1]).read_bytes())
        os.utime(path, ns=(0, 0))
    second = cached_features(extractor, table)
    again = {table.paths[3]} if part == "image" else set(table.paths)
    assert {path for path, count in reads.items() if count == 2} == again, "of something else, from the cache"
    assert set(reads.values()) <= {1, 2}
    assert second.embedding.shape != first.embedding.shape or not torch.equal(second.embedding, first.embedding)


def test_the_dtype_is_part_of_the_key(photo_folder: Path) -> None:
    metadata = describe(tiny(), open_images(photo_folder))
    assert metadata["dtype"] == "float32"
    assert feature_key(metadata) != feature_key(metadata | {"dtype": "bfloat16"})


def test_labels_and_splits_are_those_of_today(photo_folder: Path, reads: Counter[str]) -> None:
    table = open_images(photo_folder)
    cached_features(tiny(), table)
    renamed = replace(table, labels=tuple(f"{label}!" for label in table.labels), splits=(None,) * len(table))
    again = cached_features(tiny(), renamed)
    assert set(reads.values()) == {1}
    assert list(again.labels) == list(renamed.labels) and list(again.splits) == list(renamed.splits)


def test_the_number_of_workers_changes_nothing(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports = []
    for workers in (1, 3):
        monkeypatch.setenv("TRANSFERKIT_CACHE", str(tmp_path / f"cache-{workers}"))
        monkeypatch.setattr(streaming, "cores", lambda workers=workers: workers)
        features = cached_features(tiny(), open_images(photo_folder))
        reports.append(probe_embeddings(features, shots=(1, 2), few_shot_seeds=(0,)).report)
    assert reports[0] == reports[1]
