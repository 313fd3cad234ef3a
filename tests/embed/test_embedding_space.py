"""Whatever the values of an embedding depend on is changed in turn, and every consumer notices."""

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from tests.tiny import VIT
from transferkit.data.embeddings import KEY, Embeddings
from transferkit.data.image_table import ImageTable, open_images
from transferkit.embed import cached_features, describe, feature_key, space_of, write_embeddings
from transferkit.embed.embedding_space import FORMAT, EmbeddingSpace, architecture_of
from transferkit.embed.feature_cache import entries_folder
from transferkit.errors import UserError
from transferkit.evaluation import check_same_space, comparison_caveats
from transferkit.extractor import Extractor
from transferkit.probe import LinearClassifier, probe_embeddings
from transferkit.probe.benchmark.grid import cell_key
from transferkit.search.build import build_index
from transferkit.search.index import RECORD, TABLE, open_index

OTHERS: dict[str, Any] = {
    "weights_sha256": "0" * 64,
    "architecture": {"source": "transformers", "hidden_act": "relu"},
    "preprocessing": {"resize": [32, 32], "mean": [0.5, 0.5, 0.4]},
    "pooling": "mean",
    "layer": "block 0",
    "features": "tokens",
    "normalize": True,
    "precision": "bf16-mixed",
    "dtype": "bfloat16",
    "engine": "onnx",
    "space_format": FORMAT + 1,
    "quantization": "0" * 64,
}
NEW = ("architecture", "precision", "engine", "device", "space_format", "space")  # since earlier versions


def vit(**architecture: Any) -> Extractor:
    torch.manual_seed(0)
    changed = {**VIT["architecture"], **architecture}
    return Extractor.from_pretrained(VIT["backbone"], "none", architecture=changed)


@dataclass
class Consumers:
    """A table, an index and a classifier of one extractor's embeddings."""

    extractor: Extractor
    images: ImageTable
    embeddings: Embeddings
    classifier: LinearClassifier
    index: Path
    out: Path


@pytest.fixture
def consumers(photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Consumers:
    monkeypatch.setenv("TRANSFERKIT_CACHE", str(tmp_path / "cache"))
    extractor, images = vit(), open_images(photo_folder)
    embeddings = cached_features(extractor, images)
    classifier = probe_embeddings(embeddings, coarse_to_fine=True, shots=(1,), few_shot_seeds=(0,)).classifier
    index, out = tmp_path / "index", tmp_path / "e.parquet"
    build_index(images, index, extractor, {"source": "x", "weights": "DEFAULT"})
    write_embeddings(extractor, images, out, describe(extractor, images))
    return Consumers(extractor, images, embeddings, classifier, index, out)


def notice(it: Consumers, **changed: Any) -> dict[str, bool]:
    """Which consumers notice that embeddings were made with other fields."""
    mine = dict(it.embeddings.metadata)
    others = {**mine, **changed}
    now, before = EmbeddingSpace.from_metadata(mine), EmbeddingSpace.from_metadata(others)
    record = json.loads((it.index / RECORD).read_text())
    other_index = {**record, "extractor": {**record["extractor"], **changed}}
    (it.index / RECORD).write_text(json.dumps(other_index))
    opened = open_index(it.index)
    (it.index / RECORD).write_text(json.dumps(record))
    foreign = replace(it.embeddings, metadata=others)
    described = {**describe(it.extractor, it.images), **changed}
    figures = {"rows": 24.0, "rsa_rows": 24.0, "cka": 1.0}
    return {
        "hash": now.sha256 != before.sha256,
        "cache": entries_folder(now) != entries_folder(before),
        "cache key": feature_key(mine) != feature_key(others),
        "embed": write_embeddings(it.extractor, it.images, it.out, described).embedded == len(it.images),
        "index": raises(opened.check_extractor, it.extractor),
        "evaluate": raises(check_same_space, it.embeddings, foreign, ("one", "other")),
        "compare": any("differ in" in line for line in comparison_caveats((it.embeddings, foreign), figures, 3)),
        "benchmark": cell_key(mine, it.images, {}) != cell_key(others, it.images, {}),
        "probe": raises(replace(it.classifier, metadata=others).as_head_of, it.extractor),
    }


def raises(function: Any, *arguments: Any) -> bool:
    try:
        function(*arguments)
    except UserError as error:
        return "\n" not in str(error)
    return False


def test_every_consumer_notices_every_field(consumers: Consumers) -> None:
    assert OTHERS.keys() | {"device"} == {field.name for field in fields(EmbeddingSpace)}, "a field is not tried"
    assert not any(notice(consumers).values())
    for name, value in OTHERS.items():
        seen = notice(consumers, **{name: value})
        unit = {"probe"} if name == "normalize" else set()  # its head then reads unit rows
        unit |= {"index", "evaluate", "compare", "probe"} if name == "engine" else set()  # float32: rounding only
        assert {consumer for consumer, noticed in seen.items() if not noticed} == unit, name
    seen = notice(consumers, precision="bf16", dtype="bfloat16", device="cuda")
    assert all(seen.values())


def test_the_device_counts_where_numbers_differ_by_it(consumers: Consumers) -> None:
    seen = notice(consumers, device="cuda")
    assert not any(noticed for consumer, noticed in seen.items() if consumer != "embed")
    assert seen["embed"], "half a file from another device is not gone on with"
    low = replace(space_of(vit()), precision="bf16", dtype="bfloat16")
    assert list(low.differences(replace(low, device="cuda"))) == ["device"]
    assert low.sha256 != replace(low, device="cuda").sha256
    assert list(low.differences(replace(low, engine="openvino"))) == ["engine"]


@pytest.mark.parametrize(
    "changed", [{"hidden_act": "relu"}, {"num_attention_heads": 4}, {"layer_norm_eps": 1e-2}, {"qkv_bias": True}]
)
def test_networks_with_equal_tensors_do_not_share(
    changed: dict[str, Any], consumers: Consumers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tensors do not tell an activation, a number of heads or an epsilon; plain transformers is the oracle."""
    other = vit(**changed)
    same = changed == {"qkv_bias": True}  # the default, said once more
    assert other.weights_sha256() == consumers.extractor.weights_sha256()
    assert (space_of(other).sha256 == space_of(consumers.extractor).sha256) is same
    found = cached_features(other, consumers.images)
    pixels = torch.stack([other.preprocessing(consumers.images.read(row)) for row in range(len(consumers.images))])
    with torch.inference_mode():
        theirs = other.backbone.model(pixel_values=pixels).last_hidden_state[:, 0]
    torch.testing.assert_close(found.embedding, theirs, atol=1e-5, rtol=1e-5)
    assert raises(check_same_space, consumers.embeddings, found, ("one", "other")) is not same
    assert raises(consumers.classifier.as_head_of, other) is not same
    assert raises(open_index(consumers.index).check_extractor, other) is not same


def test_transform_input_is_part_of_the_architecture() -> None:
    small, pixels = {"resize": [32, 32], "crop": [32, 32]}, torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    pair = []
    for changed in ({}, {"transform_input": True}):
        torch.manual_seed(0)
        pair.append(Extractor.from_pretrained("googlenet", "none", None, small, changed))
    one, other = pair
    assert one.weights_sha256() == other.weights_sha256() and not torch.equal(one(pixels), other(pixels))
    assert list(space_of(one).differences(space_of(other))) == ["architecture transform_input"]
    spec = one.spec()
    assert architecture_of(spec) != architecture_of({**spec, "name": "inception_v3"})
    assert architecture_of(spec) == architecture_of({**spec, "architecture": {"num_classes": 3}}), "tensors tell"


def test_where_a_model_was_found_makes_no_difference(tmp_path: Path) -> None:
    extractor = vit()
    extractor.head, extractor.class_names = torch.nn.Linear(32, 2), ["a", "b"]
    extractor.save_pretrained(tmp_path / "export")
    (tmp_path / "export").rename(tmp_path / "moved")
    assert space_of(Extractor.from_pretrained(tmp_path / "moved")) == space_of(extractor)


def test_the_hash_survives_a_file(consumers: Consumers) -> None:
    read = EmbeddingSpace.from_metadata(Embeddings.load(consumers.out).metadata)
    assert read.sha256 == space_of(consumers.extractor).sha256 == Embeddings.load(consumers.out).metadata["space"]
    assert not read.differences(space_of(consumers.extractor))


def test_what_earlier_versions_wrote_is_still_opened(consumers: Consumers, tmp_path: Path) -> None:
    """They lack fields, which are unknown: what both know is compared."""
    old = replace(consumers.embeddings, metadata=without(dict(consumers.embeddings.metadata)))
    check_same_space(old, consumers.embeddings, ("old", "new"))
    old_classifier = replace(consumers.classifier, metadata=without(dict(consumers.classifier.metadata)))
    assert old_classifier.as_head_of(consumers.extractor).head
    assert raises(old_classifier.as_head_of, vit(hidden_size=64))
    record = json.loads((consumers.index / RECORD).read_text())
    kept = ("weights_sha256", "pooling", "preprocessing", "embed_dim", "source", "weights")
    record["extractor"] = {name: record["extractor"][name] for name in kept}
    (consumers.index / RECORD).write_text(json.dumps(record))
    file = consumers.index / TABLE
    table = pq.read_table(file)
    metadata = without(json.loads(table.schema.metadata[KEY]))
    bare = table.drop_columns(["stamp"]).replace_schema_metadata({KEY: json.dumps(metadata).encode()})
    pq.write_table(bare, file, row_group_size=256, compression="none")
    index, change = build_index(
        consumers.images, consumers.index, consumers.extractor, {"source": "x", "weights": "DEFAULT"}
    )
    assert (change.kept, change.added, change.refreshed) == (24, 0, 0)
    assert index.stamps == consumers.images.stamps(), "and it is brought up to date"
    torch.manual_seed(1)
    other = Extractor.from_pretrained(VIT["backbone"], "none", architecture=VIT["architecture"])
    assert raises(index.check_extractor, other)


def without(metadata: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in metadata.items() if key not in NEW}
