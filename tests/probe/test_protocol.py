"""The protocol: who is fitted, who selects, who is reported; and what it says of data it cannot use."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import transferkit.probe.fewshot as fewshot
from transferkit.data.embeddings import Embeddings
from transferkit.errors import UserError
from transferkit.probe import LinearClassifier, ProbeResult, compare_predictions, probe_embeddings
from transferkit.probe.linear import fit_linear
from transferkit.probe.row_splits import split_rows

SPLITS = ("train", "train", "val", "test")
CLASSES = ("ants", "bees", "crabs")


def table(per_class: int = 24, splits: tuple[str | None, ...] = SPLITS, width: int = 6, seed: int = 0) -> Embeddings:
    """Three overlapping classes; the splits by turns."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.arange(len(CLASSES)).repeat_interleave(per_class)
    means = 2 * torch.eye(len(CLASSES), width)
    embedding = means[target] + torch.randn(len(target), width, generator=generator)
    return Embeddings(
        embedding=embedding,
        paths=[f"{CLASSES[number]}/{row:04d}.jpg" for row, number in enumerate(target.tolist())],
        labels=[CLASSES[number] for number in target.tolist()],
        splits=[splits[row % len(splits)] for row in range(len(target))],
        metadata={"extractor": "drawn"},
    )


def probe(embeddings: Embeddings, shots: tuple[int, ...] = (1, 2)) -> ProbeResult:
    return probe_embeddings(embeddings, shots=shots, few_shot_seeds=(0, 1), coarse_to_fine=True)


def rows_of(embeddings: Embeddings, split: str) -> list[int]:
    return [row for row, name in enumerate(embeddings.splits) if name == split]


def relabel(embeddings: Embeddings, rows: list[int], label: str | None) -> Embeddings:
    labels = list(embeddings.labels)
    for row in rows:
        labels[row] = label
    return replace(embeddings, labels=labels)


def test_report_holds_the_choices_and_is_json() -> None:
    result = probe(table())
    report = json.loads(json.dumps(result.report, allow_nan=False))
    linear = report["linear"]
    assert report["splits"] == {"source": "given", "seed": None, "train": 36, "val": 18, "test": 18}
    assert linear["fitted_rows"] == 54
    assert linear["sweep"]["C"][0] == pytest.approx(1e-6)
    assert linear["sweep"]["C"][-1] == pytest.approx(1e5)
    assert linear["C"] in linear["sweep"]["C"]
    assert linear["top1_interval"][0] < linear["top1"] <= linear["top1_interval"][1]
    assert linear["top1"] == result.predictions.correct.double().mean()
    assert linear["mean_per_class"] == pytest.approx(sum(linear["per_class"].values()) / 3)
    assert report["few_shot"]["curve"][0]["n_per_class"] == 1
    assert report["embeddings"] == {"extractor": "drawn"}


def test_nothing_depends_on_row_order() -> None:
    embeddings = table()
    order = torch.randperm(len(embeddings), generator=torch.Generator().manual_seed(5)).tolist()
    for one in (embeddings, replace(embeddings, splits=[None] * len(embeddings))):
        first, second = probe(one), probe(one.select(order))
        assert first.report == second.report
        assert torch.equal(first.classifier.weight, second.classifier.weight)
        assert first.predictions.preds == second.predictions.preds


def test_only_few_shot_curves_ignore_val() -> None:
    embeddings = table()
    other = embeddings.embedding.clone()
    other[rows_of(embeddings, "val")] += 50 * torch.randn(18, 6, generator=torch.Generator().manual_seed(1))
    first, second = probe(embeddings).report, probe(replace(embeddings, embedding=other)).report
    assert first["few_shot"] == second["few_shot"]
    assert first["linear"]["sweep"] != second["linear"]["sweep"], "val is not read at all"


def test_few_shot_fits_training_rows_only(monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings = table()
    train = embeddings.embedding[rows_of(embeddings, "train")]
    sizes: list[int] = []

    def watched(features: torch.Tensor, *args: object, **options: object) -> object:
        same = (features[:, None] == train).all(2).any(1)
        assert same.all(), "a row that is not a training row was fitted"
        sizes.append(len(features))
        return fit_linear(features, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(fewshot, "fit_linear", watched)
    probe(embeddings, shots=(1, 4))
    assert sizes == [3, 3, 12, 12]


def test_nothing_is_chosen_or_fitted_on_test() -> None:
    embeddings = table()
    other = embeddings.embedding.clone()
    other[rows_of(embeddings, "test")] = torch.randn(18, 6, generator=torch.Generator().manual_seed(1))
    first, second = probe(embeddings), probe(replace(embeddings, embedding=other))
    assert torch.equal(first.classifier.weight, second.classifier.weight)
    assert first.classifier.temperature == second.classifier.temperature
    assert first.report["linear"]["sweep"] == second.report["linear"]["sweep"]
    assert first.report["knn"]["k"] == second.report["knn"]["k"]
    assert first.report["linear"]["top1"] != second.report["linear"]["top1"]


@pytest.mark.parametrize(
    ("splits", "source", "sizes"),
    [
        (("train", "train", "val"), "val is held out for the test, another one drawn from train", (42, 6, 24)),
        (("train", "train", "test"), "val drawn from train", (42, 6, 24)),
        ((None,), "drawn", (48, 9, 15)),
    ],
)
def test_missing_splits_are_drawn_and_recorded(
    splits: tuple[str | None, ...], source: str, sizes: tuple[int, int, int]
) -> None:
    embeddings = table(splits=splits)
    parts = split_rows(embeddings, val_fraction=0.15, test_fraction=0.2, seed=3)
    assert parts.origin["source"] == source
    assert parts.origin["seed"] == 3
    assert (len(parts.train), len(parts.val), len(parts.test)) == sizes
    assert len({*parts.train.tolist(), *parts.val.tolist(), *parts.test.tolist()}) == len(embeddings)
    for rows in (parts.val, parts.test):
        assert len(set(parts.target[rows].bincount(minlength=3).tolist())) == 1, "not stratified"
    if "val" in splits:
        assert sorted(parts.test.tolist()) == rows_of(embeddings, "val")
    again = split_rows(embeddings, val_fraction=0.15, test_fraction=0.2, seed=4)
    assert parts.val.tolist() != again.val.tolist()


def test_classifier_survives_a_file_and_reads_raw_embeddings(tmp_path: Path) -> None:
    embeddings = table()
    result = probe(embeddings)
    result.classifier.save(tmp_path / "classifier.safetensors")
    loaded = LinearClassifier.load(tmp_path / "classifier.safetensors")
    probabilities = loaded.probabilities(embeddings.embedding[rows_of(embeddings, "test")])
    names = tuple(loaded.class_names[number] for number in probabilities.argmax(1).tolist())
    assert names == result.predictions.preds
    torch.testing.assert_close(probabilities.amax(1), result.predictions.confidence)
    assert replace(loaded, weight=loaded.bias) == replace(result.classifier, weight=loaded.bias, bias=loaded.bias)
    (tmp_path / "other.safetensors").write_bytes(b"no tensors")
    says = {"other.safetensors": "is not a probe's classifier", "missing.safetensors": "no such file"}
    for name, message in says.items():
        with pytest.raises(UserError, match=message):
            LinearClassifier.load(tmp_path / name)


def test_embeddings_just_short_enough_are_fitted() -> None:
    good = table()
    largest = replace(good, embedding=good.embedding * (0.99e15 / good.embedding.norm(dim=1).max()))
    assert probe(largest).report["linear"]["top1"] > 0.6


def test_two_extractors_are_compared_on_the_same_images() -> None:
    first, second = probe(table()).predictions, probe(table(splits=SPLITS, seed=1)).predictions
    result = compare_predictions(first, second)
    assert result.difference == pytest.approx((second.correct.double() - first.correct.double()).mean().item())
    with pytest.raises(UserError, match="different images"):
        compare_predictions(first, probe(table(splits=(*SPLITS, "test"))).predictions)


def test_a_best_c_at_the_edge_is_reported() -> None:
    embeddings = table()
    easy = torch.eye(3, 6).repeat_interleave(24, 0) * 100 + embeddings.embedding
    report = probe(replace(embeddings, embedding=easy)).report
    assert report["linear"]["C"] == pytest.approx(1e-6)
    assert any("is the smallest of the grid" in line for line in report["warnings"])


def test_a_fit_without_convergence_is_reported() -> None:
    report = probe_embeddings(table(), max_iterations=0, shots=(1,), few_shot_seeds=(0,)).report
    assert any("of the sweep's 135 fits did not converge" in line for line in report["warnings"])
    assert any("the reported fit did not converge" in line for line in report["warnings"])
    assert not report["linear"]["converged"]
    assert not any("converge" in line for line in probe(table()).report["warnings"])


def test_clamps_are_reported() -> None:
    embeddings = table()
    embeddings = relabel(embeddings, [0], None)
    embeddings = relabel(embeddings, rows_of(embeddings, "test")[:1], "wasps")
    flat = embeddings.embedding.clone()
    flat[:, 4] = 1.0
    report = probe(replace(embeddings, embedding=flat), shots=(1, 16)).report
    for line in (
        "1 rows have no label and were left out",
        "classes with one row, which can only be in one split: 'wasps'",
        "1 test rows are of classes that train lacks and count as wrong: 'wasps'",
        "1 of 6 features are constant over train",
        "16-shot: fewer training rows, all of them used, for 'ants', 'bees', 'crabs'",
        "kNN: k is clamped to 35, the rows of train",
    ):
        assert line in report["warnings"]
    assert report["linear"]["per_class"]["wasps"] == 0
    assert report["class_names"] == list(CLASSES)


def broken(kind: str) -> Embeddings:
    good = table()
    if kind == "nan":
        values = good.embedding.clone()
        values[5, 2] = torch.nan
        return replace(good, embedding=values)
    if kind == "huge":
        return replace(good, embedding=good.embedding * 1e30)
    if kind == "constant":
        return replace(good, embedding=torch.ones_like(good.embedding))
    if kind == "one class":
        return relabel(good, list(range(len(good))), "ants")
    if kind == "no labels":
        return relabel(good, list(range(len(good))), None)
    if kind == "mixed":
        return replace(good, splits=[None, *good.splits[1:]])
    if kind == "empty":
        return good.select([])
    if kind == "no train":
        return replace(good, splits=["test"] * len(good))
    single = [f"class {row}" for row in range(len(good))]
    return replace(good, labels=single, splits=[None] * len(good) if kind == "all single" else good.splits)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("nan", "ants/0005.jpg holds NaN or infinity"),
        ("huge", "the embedding of ants/0000.jpg is longer than 1e\\+15, too long to fit on; scale"),
        ("constant", "all 36 training embeddings are equal"),
        ("one class", "train has one class, 'ants'"),
        ("no labels", "none of the 72 rows has a label; embed class folders, or a manifest with a column 'label'"),
        ("mixed", "ants/0000.jpg has no split but others do"),
        ("empty", "no rows"),
        ("no train", "no labeled rows for train"),
        ("all single", "no labeled rows for val"),
        ("more classes than rows", "72 classes but 36 rows to train on"),
    ],
)
def test_data_that_cannot_be_used_gets_one_line(kind: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        probe(broken(kind))
    assert "\n" not in str(error.value)
