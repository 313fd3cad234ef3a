"""The classifier that a probe found, put on its extractor: exported, and fine-tuned from."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torchvision import models

from tests.tiny import RESNET, fit
from transferkit.data.embeddings import Embeddings
from transferkit.data.image_table import open_images
from transferkit.embed import cached_features
from transferkit.errors import UserError
from transferkit.extractor import Extractor
from transferkit.probe import LinearClassifier, ProbeResult, probe_embeddings


@pytest.fixture
def extractor() -> Extractor:
    torch.manual_seed(0)
    return Extractor.from_pretrained("shufflenet_v2_x0_5", "none", preprocessing=RESNET["preprocessing"])


@pytest.fixture
def probed(
    extractor: Extractor, photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Embeddings, ProbeResult]:
    monkeypatch.setenv("TRANSFERKIT_CACHE", str(tmp_path / "cache"))
    features = cached_features(extractor, open_images(photo_folder))
    return features, probe_embeddings(features, coarse_to_fine=True, shots=(1,), few_shot_seeds=(0,))


def test_a_file_of_the_first_version_still_opens(tmp_path: Path) -> None:
    """Its keys are spelled as they were, and it does not say which images it was fitted on."""
    record = {"class_names": ["a", "b"], "standardisation": "l2", "c": 2.0, "temperature": 1.5, "metadata": {}}
    tensors = {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}
    save_file(tensors, tmp_path / "old.safetensors", metadata={"transferkit": json.dumps(record)})
    classifier = LinearClassifier.load(tmp_path / "old.safetensors")
    assert (classifier.standardization, classifier.c, classifier.fitted_on) == ("l2", 2.0, "")
    classifier.save(tmp_path / "new.safetensors")
    with safe_open(tmp_path / "new.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["transferkit"]) == {**record, "fitted_on": ""}


@pytest.mark.parametrize("standardization", ["none", "l2"])
def test_exported_head_gives_the_probes_calibrated_probabilities(
    standardization: str, extractor: Extractor, probed: tuple[Embeddings, ProbeResult], tmp_path: Path
) -> None:
    features, result = probed
    classifier = replace(result.classifier, standardization=standardization, temperature=1.7)
    classifier.as_head_of(extractor).save_pretrained(tmp_path / "export")
    loaded = Extractor.from_pretrained(tmp_path / "export")
    assert loaded.head and loaded.class_names == list(classifier.class_names)
    assert loaded.l2_normalize == (standardization == "l2")
    probability = classifier.probabilities(features.embedding)
    torch.testing.assert_close(loaded.classify(features.embedding).softmax(1), probability)


def test_torchvision_alone_reads_the_exported_head(
    extractor: Extractor, probed: tuple[Embeddings, ProbeResult], photo_folder: Path, tmp_path: Path
) -> None:
    features, result = probed
    classifier = replace(result.classifier, standardization="none")
    classifier.as_head_of(extractor).save_pretrained(tmp_path / "export")
    model = models.shufflenet_v2_x0_5(num_classes=2).eval()
    model.load_state_dict(load_file(tmp_path / "export" / "model.safetensors"))
    image = open_images(photo_folder).read(0)
    with torch.inference_mode():
        pixels = extractor.preprocessing.normalize(extractor.preprocessing.resize_crop(image)[None])
        theirs = model(pixels).softmax(1)
    torch.testing.assert_close(theirs, classifier.probabilities(features.embedding[:1]), atol=1e-4, rtol=1e-3)


def test_another_extractor_is_refused(extractor: Extractor, probed: tuple[Embeddings, ProbeResult]) -> None:
    classifier = probed[1].classifier
    torch.manual_seed(1)
    for other, what in (
        (Extractor.from_pretrained("shufflenet_v2_x0_5", "none"), "weights_sha256"),
        (Extractor.from_pretrained("shufflenet_v2_x0_5", "none", "logits"), "embed_dim 1024"),
    ):
        with pytest.raises(UserError, match=rf"fitted on embeddings with {what}"):
            classifier.as_head_of(other)
    inner = replace(classifier, metadata={**classifier.metadata, "layer": "stage2"})
    with pytest.raises(UserError, match="fitted on embeddings with layer stage2"):
        inner.as_head_of(extractor)


def test_a_classifier_of_unit_embeddings_reads_unit_embeddings(
    extractor: Extractor, probed: tuple[Embeddings, ProbeResult]
) -> None:
    features, _ = probed
    unit = replace(
        features,
        embedding=torch.nn.functional.normalize(features.embedding),
        metadata={**features.metadata, "normalize": True},
    )
    classifier = probe_embeddings(unit, coarse_to_fine=True, shots=(1,), few_shot_seeds=(0,)).classifier
    placed = classifier.as_head_of(extractor)
    assert placed.l2_normalize and placed.head
    torch.testing.assert_close(placed.head(unit.embedding).softmax(1), classifier.probabilities(unit.embedding))


def test_a_fit_starts_from_the_head(
    extractor: Extractor, probed: tuple[Embeddings, ProbeResult], photo_folder: Path, tmp_path: Path
) -> None:
    features, result = probed
    extractor.save_pretrained(tmp_path / "extractor")
    for standardization in ("none", "l2"):
        classifier = replace(result.classifier, standardization=standardization, temperature=1.7)
        classifier.save(tmp_path / "classifier.safetensors")
        options = {"backbone": str(tmp_path / "extractor"), "head": str(tmp_path / "classifier.safetensors")}
        still = {"lr_head": 0.0, "lr_backbone": 0.0, "weight_decay": 0.0}
        module, _, trainer = fit(tmp_path / standardization, photo_folder, {**options, **still}, epochs=1)
        val = [row for row, split in enumerate(features.splits) if split == "val"]
        target = torch.tensor([classifier.class_names.index(str(features.labels[row])) for row in val])
        chances = classifier.probabilities(features.embedding[val])
        expected = torch.nn.functional.nll_loss(chances.log(), target).item()
        assert trainer.callback_metrics["val/loss"].item() == pytest.approx(expected, rel=1e-4)
        assert module.l2_normalize == (standardization == "l2")
    module, _, _ = fit(tmp_path / "moving", photo_folder, {**options, "regime": "full"}, epochs=1)
    head = classifier.as_head_of(extractor).head
    assert module.head and head and not torch.equal(module.head.weight, head.weight)


def test_a_head_of_other_classes_is_refused(
    extractor: Extractor, probed: tuple[Embeddings, ProbeResult], photo_folder: Path, tmp_path: Path
) -> None:
    extractor.save_pretrained(tmp_path / "extractor")
    other = replace(probed[1].classifier, class_names=("apples", "pears"))
    other.save(tmp_path / "classifier.safetensors")
    options = {"backbone": str(tmp_path / "extractor"), "head": str(tmp_path / "classifier.safetensors")}
    with pytest.raises(UserError, match=r"are apples, pears, the data has apples, limes; probe this data"):
        fit(tmp_path / "run", photo_folder, options, epochs=1)
    with pytest.raises(UserError, match="no such file"):
        fit(tmp_path / "run", photo_folder, {**options, "head": str(tmp_path / "nothing")}, epochs=1)
    assert LinearClassifier.load(tmp_path / "classifier.safetensors").class_names == ("apples", "pears")
