"""``fit --soup``: fits from one start, their average against plain PyTorch; what was killed continues."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.backbones.families import save
from tests.running import refused, transferkit, write_photos
from tests.tiny import VIT, options
from transferkit.extractor import Extractor
from transferkit.training.module import TransferModule

COLOURS = {"apples": (150, 90, 60), "limes": (120, 120, 60)}
SMALL = [*options("model", VIT), "--data.num_workers", "0", "--trainer.max_epochs", "2"]
FIT = ["fit", "photos", *SMALL, "--data.batch_size", "4", "--trainer.accelerator", "cpu", "--seed_everything", "7"]
FULL = [*FIT, "--model.regime", "full", "--model.lr_backbone", "1e-3", "--model.dropout", "0.1"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with eight images of each class to train on, and as many for val and test."""
    monkeypatch.setenv("TRANSFERKIT_CACHE", str(tmp_path / "cache"))
    write_photos(tmp_path / "photos", COLOURS, {"train": 8, "val": 8, "test": 8})
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with chdir(tmp_path):
        yield tmp_path
    for number, handler in handlers.items():
        signal.signal(number, handler)
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        os.environ.pop(name, None)


def content(run: Path, name: str = "best") -> dict[str, Any]:
    found: dict[str, Any] = torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)
    return found


def weights(run: Path, name: str = "best") -> Tensor:
    return torch.cat([value.flatten().double() for value in content(run, name)["state_dict"].values()])


@pytest.mark.slow
def test_a_soup_is_the_average_of_what_helps_on_val(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = transferkit(*FULL)
    assert plain.status == 0, plain.err
    command = [*FULL, "--soup", "3"]
    whole = transferkit(*command, "--json")
    assert whole.status == 0, whole.err
    found, parent = json.loads(whole.out), Path("runs/fit-soup-0")
    runs, soup = [parent / str(number) for number in range(3)], Path(found["run"])
    assert soup == parent / "3" and json.loads((parent / "soup.json").read_text())["soup"] == 3
    assert torch.equal(weights(runs[0], "last"), weights(Path("runs/fit/0"), "last"))  # the first is the plain fit
    assert not torch.equal(weights(runs[1], "last"), weights(runs[2], "last"))  # of another order
    assert len({(run / "splits.parquet").read_bytes() for run in (*runs, soup)}) == 1

    kept = [row["run"] for row in found["ingredients"] if row["kept"]]
    by_hand = torch.stack([weights(Path(run)) for run in kept]).mean(0)
    assert float((weights(soup) - by_hand).abs().max()) <= 1e-6
    scores = {row["run"]: row["val/acc"] for row in found["ingredients"]}
    assert list(scores.values()) == sorted(scores.values(), reverse=True)
    assert scores == {str(run): content(run)["transferkit"]["metrics"]["val/acc"] for run in runs}
    assert found["metrics"]["val/acc"] >= max(scores.values())

    best = str(soup / "checkpoints/best.ckpt")
    again = transferkit("validate", "--ckpt_path", best, "--data.num_workers", "0", "--json")
    assert json.loads(again.out)["metrics"]["val/acc"] == pytest.approx(found["metrics"]["val/acc"])
    assert transferkit("test", "--ckpt_path", best, "--data.num_workers", "0").status == 0
    predict = ["predict", "photos/test", "--ckpt_path", best, "--data.num_workers", "0"]
    assert transferkit(*predict).status == 0
    assert transferkit("export", best, "--out", "exported").status == 0
    logits = [
        extractor.classify(extractor.embed(["photos/test/apples/0.jpg"]))[0]
        for extractor in (Extractor.from_pretrained(best), Extractor.from_pretrained("exported"))
    ]
    torch.testing.assert_close(*logits, rtol=1e-5, atol=1e-5)
    assert refused(transferkit("fit", "--ckpt_path", best), "holds weights only, not the state of a fit")

    steps = iter(range(1000))
    step = TransferModule.training_step

    def stopping(self: TransferModule, *args: int) -> object:
        if next(steps) == 14:  # 4 + 4 steps of the first fit, 4 of the second's first epoch
            raise KeyboardInterrupt
        return step(self, *args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(TransferModule, "training_step", stopping)
        killed = transferkit(*command)
    assert killed.status == 130 and "1 of 3 ingredients are done" in killed.err
    other = Path("runs/fit-soup-1")
    assert (other / "0/metrics.json").is_file() and not (other / "1/metrics.json").exists()
    before = (other / "0/checkpoints/last.ckpt").stat().st_mtime_ns
    continued = transferkit(*command)
    assert continued.status == 0 and "ingredient 0 of 3: done before" in continued.err, continued.err
    assert (other / "0/checkpoints/last.ckpt").stat().st_mtime_ns == before
    assert sorted(path.name for path in other.iterdir()) == ["0", "1", "2", "3", "soup.json"]
    for number in range(4):
        assert torch.equal(weights(other / str(number)), weights(parent / str(number)))
    assert "kept" in continued.out and "runs/fit-soup-1/3: " in continued.out


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        ["--model.regime", "partial"],
        ["--model.regime", "lp-ft", "--model.ema", "0.9"],
        ["--model.regime", "lora", "--model.backbone", "vit"],
        ["--model.regime", "frozen", "--model.optimizer", "adamw"],
    ],
    ids=lambda more: more[1],
)
def test_regimes(more: list[str]) -> None:
    save("vit", Path("vit"))
    fit = ["fit", "photos", *FIT[len(options("model", VIT)) + 2 :]] if "vit" in more else FIT
    done = transferkit(*fit, *more, "--soup", "2", "--json")
    assert done.status == 0, done.err
    found = json.loads(done.out)
    assert found["metrics"]["val/acc"] >= max(row["val/acc"] for row in found["ingredients"])
    best = str(Path(found["run"]) / "checkpoints/best.ckpt")
    again = transferkit("validate", "--ckpt_path", best, "--data.num_workers", "0", "--json")
    assert json.loads(again.out)["metrics"]["val/loss"] == pytest.approx(found["metrics"]["val/loss"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["labels", "number"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_several_labels_or_a_number(kind: str, precision: str) -> None:
    column, name = {"labels": ("label", "val/map"), "number": ("target", "val/r2")}[kind]
    lines = [f"path,{column},split"]
    for row, file in enumerate(sorted(Path("photos").rglob("*.*"))):
        labels = f"{file.parent.name}|odd" if row % 2 else file.parent.name
        lines.append(f"{file},{labels if kind == 'labels' else row % 7},{file.parts[1]}")
    Path("m.csv").write_text("\n".join(lines))
    several = ["--data.multilabel", "true"] if kind == "labels" else []
    fit = ["fit", "m.csv", *FULL[2:], *several, "--trainer.precision", precision]
    done = transferkit(*fit, "--soup", "3", "--json")
    assert done.status == 0, done.err
    found = json.loads(done.out)
    kept = [row["run"] for row in found["ingredients"] if row["kept"]]
    by_hand = torch.stack([weights(Path(run)) for run in kept]).mean(0)
    assert float((weights(Path(found["run"])) - by_hand).abs().max()) <= 1e-6
    assert found["metrics"][name] >= max(row[name] for row in found["ingredients"])
    best = str(Path(found["run"]) / "checkpoints/best.ckpt")
    again = transferkit("validate", "--ckpt_path", best, "--trainer.precision", precision, "--json")
    assert json.loads(again.out)["metrics"][name] == pytest.approx(found["metrics"][name], abs=1e-5)
    assert transferkit("export", best, "--out", "exported").status == 0
    opened = [Extractor.from_pretrained(place) for place in (best, "exported")]
    outputs = [each.classify(each.embed(["photos/test/apples/0.jpg"]))[0] for each in opened]
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-5)
    assert opened[0].record.get("thresholds") == opened[1].record.get("thresholds")


BAD = {
    "--soup 1": "--soup is 1; give 2 or more",
    "--soup few": "--soup is few; give 2 or more",
    "--soup 3/3": "--soup is 3/3; give a number of fits, 2 or more, or one of them, from 0, such as 0/3",
    "--soup 2 --data.folds 3": "--data.folds and --soup each run several fits",
    "--soup 2 --trainer.devices 2": "fits in one process; fit each ingredient by itself, with --soup 0/3, 1/3",
    "--soup 2 --ckpt_path last": "start its command again without it",
    "--soup 2 --name a/b": "cannot name a folder",
    "--soup 2 --trainer.fast_dev_run true": "keeps nothing to compare",
    "--soup 2 --model.regime frozen": "the optimal head of a frozen backbone is always the same one; leave out --soup",
}


@pytest.mark.parametrize("given", BAD)
def test_bad_soups_get_one_line_and_leave_nothing(given: str) -> None:
    done = transferkit(*FIT, *given.split())
    assert done.status == 2 and BAD[given] in done.err.splitlines()[-1], done
    assert "Traceback" not in done.err and done.out == ""
    assert not Path("runs").exists() or not any(Path("runs").iterdir())
