"""``transferkit probe`` from the command line: on images, on saved embeddings, compared, exported."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from scipy.stats import sem
from torchvision import models

from tests.running import Done, transferkit, write_photos
from transferkit.cli.open_extractor import read_extractor
from transferkit.data.embeddings import Embeddings
from transferkit.data.image_table import open_images
from transferkit.embed import embed
from transferkit.extractor import Extractor
from transferkit.probe import LinearClassifier, compare_predictions, load_predictions, probe_embeddings

COLOURS = {"apples": (190, 50, 40), "limes": (70, 180, 60)}
NAME = "shufflenet_v2_x0_5"
RANDOM = ("--extractor", NAME, "--weights", "none")
WEIGHTS = ("--extractor", NAME, "--weights", "weights.safetensors")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos and weights, and a cache that keeps the embeddings of one test for the next."""
    folder = tmp_path_factory.mktemp("shared")
    write_photos(folder / "photos", COLOURS, {"train": 6, "val": 6})
    torch.manual_seed(0)
    save_file(models.shufflenet_v2_x0_5(num_classes=2).state_dict(), folder / "weights.safetensors")
    return folder


@pytest.fixture(autouse=True)
def place(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRANSFERKIT_CACHE", str(shared / "cache"))
    for name in ("photos", "weights.safetensors"):
        Path(name).symlink_to(shared / name)


def probe(*arguments: str) -> Done:
    done = transferkit("probe", *arguments)
    assert done.status == 0, done.err
    return done


def test_images_are_embedded_once_and_probed(monkeypatch: pytest.MonkeyPatch) -> None:
    done = probe("photos", *WEIGHTS)
    for words in ("linear, top-1", "95 % interval", "kNN", "nearest class mean", "ECE calibrated", "16-shot", "± "):
        assert words in done.out
    files = ("probe.json", "classifier.safetensors", "start.safetensors", "predictions.parquet", "splits.parquet")
    files = (*files, "leaks.json", "report.html")
    assert f"written: {', '.join(f'probe/{name}' for name in files)}" in done.err
    assert "warning: 8-shot: fewer training rows, all of them used, for 'apples', 'limes'" in done.err
    assert "next: transferkit fit --data.root photos" in done.err
    assert "--data.splits probe/splits.parquet --model.head probe/start.safetensors" in done.err
    saved = json.loads(Path("probe/probe.json").read_text())
    table = embed("photos", Extractor.from_pretrained(NAME, "weights.safetensors"))
    assert saved["linear"]["top1"] == probe_embeddings(table).report["linear"]["top1"]
    for part in ("weights_sha256", "preprocessing", "pooling", "dtype", "data_fingerprint"):
        assert saved["embeddings"][part] == table.metadata[part]
    assert saved["splits"] == {
        "source": "val is held out for the test, another one drawn from train",
        "seed": 0,
        "val_fraction": 0.15,
        "train": 10,
        "val": 2,
        "test": 12,
    }
    monkeypatch.setattr("transferkit.extractor.forward.Forward.__call__", None)
    again = probe("photos", *WEIGHTS, "--json")
    assert json.loads(again.out) == saved


def test_the_splits_of_another_probe_or_run_are_used_exactly() -> None:
    table = embed("photos", Extractor.from_pretrained(NAME, "weights.safetensors"))
    table.save("photos.parquet")
    probe("photos", *WEIGHTS, "--fast", "--seed", "5", "--out", "first")
    for images in ("photos", "photos.parquet"):
        probe(images, *WEIGHTS, "--fast", "--splits", "first/splits.parquet", "--out", "second")
        first, second = (json.loads(Path(out, "probe.json").read_text()) for out in ("first", "second"))
        assert second["splits"]["source"] == "given" and second["linear"]["top1"] == first["linear"]["top1"]
        assert [second["splits"][part] for part in ("train", "val", "test")] == [10, 2, 12]
    done = transferkit("probe", "digits", *RANDOM, "--splits", "first/splits.parquet")
    assert done.status == 2 and "recorded in 'first/splits.parquet', is no longer in 'digits'" in done.err


def test_saved_embeddings_need_no_images_and_no_weights() -> None:
    embed("photos", Extractor.from_pretrained(NAME, "weights.safetensors")).save("photos.parquet")
    probe("photos.parquet", "--out", "saved", "--fast")
    page = Path("saved/report.html").read_text(encoding="utf-8")
    assert "transferkit probe photos.parquet --fast" in page and "IMAGES" not in page
    assert load_predictions("saved").paths == tuple(path for path in open_images("photos").paths if "val" in path)


def test_two_extractors_are_compared_on_the_same_images() -> None:
    probe("photos", *WEIGHTS, "--out", "a", "--fast")
    done = probe("photos", *RANDOM, "--out", "b", "--fast", "--compare", "a")
    assert "difference from a" in done.out and "McNemar p =" in done.out
    comparison = json.loads(Path("b/probe.json").read_text())["comparison"]
    expected = compare_predictions(load_predictions("a"), load_predictions("b"))
    assert comparison["difference"] == expected.difference and comparison["mcnemar_p"] == expected.mcnemar_p
    assert comparison["with"] == "a"
    done = transferkit("probe", "digits", *RANDOM, "--compare", "nowhere")
    assert done.status == 2 and "nowhere holds no predictions.parquet of a probe" in done.err


def test_random_weights_are_the_same_each_time() -> None:
    digests = []
    for out in ("a", "b"):
        torch.rand(3)
        probe("photos", *RANDOM, "--out", out, "--fast")
        digests.append(json.loads(Path(out, "probe.json").read_text())["embeddings"]["weights_sha256"])
    assert digests[0] == digests[1]


def test_export_and_fit_from_the_head() -> None:
    probe("photos", *WEIGHTS, "--fast", "--export", "exported")
    exported = Extractor.from_pretrained("exported")
    classifier = LinearClassifier.load("probe/classifier.safetensors")
    assert exported.class_names == list(classifier.class_names) == ["apples", "limes"]
    options = ["--model.backbone", NAME, "--model.weights", "weights.safetensors", "--trainer.accelerator", "cpu"]
    options += ["--data.root", "photos", "--data.num_workers", "0", "--trainer.max_epochs", "1"]
    head = ["--model.head", "probe/classifier.safetensors", "--model.lr_head", "0", "--model.weight_decay", "0"]
    done = transferkit("fit", *options, *head, "--name", "from-probe")
    assert done.status == 0, done.err
    tested = transferkit("validate", "--name", "from-probe", "--data.root", "photos", "--trainer.accelerator", "cpu")
    assert tested.status == 0, tested.err
    metrics = json.loads(Path("runs/from-probe/0/metrics.json").read_text())
    correct = load_predictions("probe").correct
    assert metrics["val/acc"] == pytest.approx(correct.double().mean().item())
    of_run, of_file = (
        read_extractor(name) for name in ("runs/from-probe/0", "runs/from-probe/0/checkpoints/best.ckpt")
    )
    assert of_run.head and of_file.head and torch.equal(of_run.head.weight, of_file.head.weight)


def test_unreadable_images() -> None:
    write_photos(Path("mine"), COLOURS, {"train": 3, "val": 1})
    Path("mine/train/apples/0.jpg").write_bytes(b"no image")
    done = transferkit("probe", "mine", *WEIGHTS)
    assert done.status == 2 and "'train/apples/0.jpg': not an image" in done.err and not Path("probe").exists()
    done = probe("mine", *WEIGHTS, "--on_error", "skip", "--fast")
    assert "left out: 1 unreadable images" in done.err
    assert "--data.on_error skip" in done.err.splitlines()[-1]  # the next command, which would refuse them
    assert json.loads(Path("probe/probe.json").read_text())["splits"]["train"] == 3


def test_bad_input_is_one_line() -> None:
    table = Embeddings(torch.ones(4, 3), ["a", "b", "c", "d"], ["x", "y", "x", "y"], [None] * 4, {})
    table.save("flat.parquet")
    table.embedding[1, 1] = torch.nan
    table.save("nan.parquet")
    Path("no.parquet").write_bytes(b"PAR1")
    for arguments, line in (
        (["nowhere"], "no such folder or file: 'nowhere'"),
        (["flat.parquet"], "no labeled rows for val"),
        (["nan.parquet"], "the embedding of b holds NaN or infinity"),
        (["no.parquet"], "no.parquet"),
        (["photos", "--extractor", "resnet81"], "nearest: resnet18"),
        (["photos", "--val_fraction", "2", *WEIGHTS], "split fractions 2"),
    ):
        done = transferkit("probe", *arguments)
        assert done.status == 2 and line in done.err, done.err
        assert done.err.splitlines()[-1].startswith("transferkit: error: ")
        assert not Path("probe").exists()


def test_the_number_of_few_shot_draws() -> None:
    done = probe("photos", *WEIGHTS, "--fast", "--few_shot_draws", "3")
    assert "over 3 draws, standard error" in done.out
    saved = json.loads(Path("probe/probe.json").read_text())
    assert saved["few_shot"]["seeds"] == [0, 1, 2] and saved["options"]["few_shot_draws"] == 3
    for point in saved["few_shot"]["curve"]:
        assert point["standard_error"] == pytest.approx(sem(point["accuracies"]))
    done = transferkit("probe", "photos", *WEIGHTS, "--few_shot_draws", "0")
    assert done.status == 2 and "--few_shot_draws is 0; give 1 or more" in done.err
