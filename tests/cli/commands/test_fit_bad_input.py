"""fit refuses bad input before any training starts: one line, exit status 2, nothing left behind."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.running import refused, transferkit, write_photos
from tests.tiny import RESNET, options

COLOURS = {"apples": (190, 50, 40), "limes": (70, 180, 60)}
SMALL = [*options("model", RESNET), "--data.num_workers", "0", "--trainer.accelerator", "cpu"]


def break_all(root: Path) -> None:
    for path in (root / "photos/train/limes").iterdir():
        path.write_bytes(path.read_bytes()[:40])


def no_labels(root: Path) -> None:
    (root / "list.csv").write_text("path,label\nphotos/train/limes/0.jpg,\nphotos/train/limes/1.png,lime\n")


def manifest_of(column: str, cells: list[str], splits: str = "") -> Callable[[Path], Any]:
    """A manifest of the training images of one class, with these cells in order, and splits by their first letters."""
    words = {"t": "train", "v": "val"}

    def write(root: Path) -> None:
        files = sorted((root / "photos/train").rglob("*.*"))[: len(cells)]
        rows = zip(files, cells, splits or "t" * len(cells), strict=True)
        head = f"path,{column},split" if splits else f"path,{column}"
        lines = [f"{file.relative_to(root)},{cell}" + (f",{words[s]}" if splits else "") for file, cell, s in rows]
        (root / "m.csv").write_text("\n".join([head, *lines]))

    return write


DIGITS = ["--data.root", "digits"]
LISTED = ["--data.root", "m.csv", *SMALL]
SEVERAL = [*LISTED, "--data.multilabel", "true"]
PHOTOS = ["--data.root", "photos"]
BAD: dict[str, tuple[Callable[[Path], Any], list[str], str]] = {
    "no folder": (lambda root: 0, ["--data.root", "nope", *SMALL], "no such folder or file: 'nope'"),
    "no data": (lambda root: 0, SMALL, "no data given; add --data.root DIR"),
    "no images": (lambda root: (root / "none").mkdir(), ["--data.root", "none", *SMALL], "no images in 'none'"),
    "one class": (
        lambda root: shutil.rmtree(root / "photos/train/limes") or shutil.rmtree(root / "photos/val/limes"),
        [*PHOTOS, *SMALL],
        "a single class, 'apples'",
    ),
    "empty class": (
        lambda root: (root / "photos/train/none").mkdir(),
        [*PHOTOS, *SMALL],
        "no images in the folder .*none",
    ),
    "class only in val": (
        lambda root: (root / "photos/train/limes").rename(root / "photos/train/plums"),
        [*PHOTOS, *SMALL],
        "class 'limes' is in val but not in train",
    ),
    "no labels": (no_labels, ["--data.root", "list.csv", *SMALL], "labels are missing for 1 of 2 images"),
    "a label of every image": (
        manifest_of("label", ["a|b", "a", "a|c", "a"]),
        SEVERAL,
        "every training image of 'm.csv' has the label 'a'; add images without it, or remove it",
    ),
    "a label that no training image has": (
        manifest_of("label", ["a|b", "a", "b", "|", "c"], "ttttv"),
        SEVERAL,
        "class 'c' is in val but not in train of 'm.csv'; add training images or remove it from val",
    ),
    "no label at all": (manifest_of("label", ["|", "|", "|"]), SEVERAL, "no training image of 'm.csv' has any label"),
    "a target that is text": (
        manifest_of("target", ["1", "2.5", "ant", "4"]),
        LISTED,
        "manifest 'm.csv', row 3: target 'ant' is not a number; name the column label",
    ),
    "a target that is NaN": (
        manifest_of("target", ["1", "2.5", "nan", "4"]),
        LISTED,
        "labels are missing for 1 of 4 images in 'm.csv': .*column 'target'",
    ),
    "equal targets": (manifest_of("target", ["2"] * 4), LISTED, "all training images of 'm.csv' have the target 2"),
    "no validation": (lambda root: 0, [*DIGITS, *SMALL, "--data.val_fraction", "0"], "no images for the split 'val'"),
    "not weights": (
        lambda root: (root / "w.pt").write_text("hello"),
        [*DIGITS, "--model.weights", "w.pt"],
        "w.pt is not a weights file",
    ),
    "other weights": (
        lambda root: save_file({"x": torch.zeros(1)}, root / "w.safetensors"),
        [*DIGITS, "--model.weights", "w.safetensors"],
        "w.safetensors (lacks|has unexpected) tensors",
    ),
    "unsafe weights": (
        lambda root: torch.save({"x": partial(print)}, root / "w.pt"),
        [*DIGITS, "--model.weights", "w.pt"],
        "w.pt is not a weights file",
    ),
    "scratch with weights": (
        lambda root: 0,
        [*DIGITS, "--model.regime", "scratch", "--model.weights", "w.pt"],
        "regime scratch takes no --model.weights w.pt",
    ),
    "misspelt key": (
        lambda root: (root / "c.yaml").write_text("model: {backbon: resnet18}"),
        ["--config", "c.yaml", *DIGITS],
        "unknown option model.backbon; did you mean --model.backbone\\?",
    ),
    "misspelt option": (
        lambda root: 0,
        ["--data.rot", "digits"],
        "unknown option --data.rot; did you mean --data.root\\?",
    ),
    "abbreviation": (
        lambda root: 0,
        [*DIGITS, "--trainer.max_epoch", "3"],
        "unknown option --trainer.max_epoch; did you mean --trainer.max_epochs\\?",
    ),
    "wrong type": (
        lambda root: 0,
        [*DIGITS, "--trainer.max_epochs", "many"],
        "--trainer.max_epochs is 'many'; give int or null",
    ),
    "wrong choice": (
        lambda root: 0,
        [*DIGITS, "--model.regime", "froze"],
        "--model.regime is 'froze'; give 'frozen', 'partial', 'full', 'scratch'",
    ),
    "no value": (lambda root: 0, ["--data.root"], "--data.root.*expected one argument"),
    "unknown config": (lambda root: 0, ["--config", "vti", *DIGITS], "no config 'vti' .*vit.yaml"),
    "broken config": (
        lambda root: (root / "c.yaml").write_text("a: [1\nb"),
        ["--config", "c.yaml"],
        "config c.yaml cannot be read",
    ),
    "no network": (
        lambda root: 0,
        [*DIGITS, "--model.backbone", "google/vit-base-patch16-224-in21k"],
        "cannot be reached; give a local directory .*HF_HOME.*--model.weights none",
    ),
    "no network for torchvision": (lambda root: 0, DIGITS, "cannot be reached; .*TORCH_HOME.*--model.weights none"),
    "unknown backbone": (
        lambda root: 0,
        [*DIGITS, "--model.backbone", "resnet81"],
        "unknown backbone 'resnet81'.*resnet18",
    ),
    "no place": (
        lambda root: (root / "file").touch(),
        [*DIGITS, *SMALL, "--trainer.default_root_dir", "file"],
        "cannot write the run directory file/runs/fit: .*--trainer.default_root_dir DIR",
    ),
    "no checkpoint": (lambda root: 0, ["--ckpt_path", "gone.ckpt"], "checkpoint gone.ckpt does not exist"),
    "no run": (lambda root: 0, ["--ckpt_path", "last"], "no run with a checkpoint"),
    "not a checkpoint": (
        lambda root: (root / "x.ckpt").write_text("hello"),
        ["--ckpt_path", "x.ckpt"],
        "x.ckpt is not a",
    ),
    "another's checkpoint": (
        lambda root: torch.save({"state_dict": {}}, root / "x.ckpt"),
        ["--ckpt_path", "x.ckpt"],
        "x.ckpt is not a transferkit checkpoint",
    ),
    "broken images": (
        break_all,
        [*PHOTOS, *SMALL],
        r"3 broken images: 'train/limes/0.jpg': .*'train/limes/1.png': .*'train/limes/2.jpg': .*on_error skip",
    ),
    "broken images, not cached": (
        break_all,
        [*PHOTOS, *SMALL, "--model.regime", "full"],
        r"3 broken images: 'train/limes/0.jpg': .*; 'train/limes/1.png': .*; 'train/limes/2.jpg': ",
    ),
    "weights of other classes": (
        lambda root: 0,
        [*PHOTOS, *SMALL, "--data.class_weights", "[1, 2, 3]"],
        r"--data.class_weights has 3 numbers for 2 classes",
    ),
    "negative weights of classes": (
        lambda root: 0,
        [*PHOTOS, *SMALL, "--data.class_weights", "[1, -1]"],
        r"--data.class_weights is \[1.*, -1.*\]; give numbers from 0 up",
    ),
    "a seed that NumPy refuses": (
        lambda root: 0,
        [*PHOTOS, *SMALL, "--seed_everything", "-1"],
        "--seed_everything is -1; give a number from 0 to",
    ),
    "a seed that is no number": (
        lambda root: 0,
        [*PHOTOS, *SMALL, "--seed_everything", "true"],
        "--seed_everything is True; give a number from 0 to",
    ),
    "a cache that cannot be written": (
        lambda root: (root / "cache").touch(),
        [*PHOTOS, *SMALL],
        "cannot write the cache folder .*/cache: Not a directory; set TRANSFERKIT_CACHE to another one",
    ),
    "never validated": (
        lambda root: 0,
        [*PHOTOS, *SMALL, "--trainer.val_check_interval", "9"],
        "--trainer.val_check_interval is 9, an epoch has 1 batches",
    ),
    "no epoch validated": (
        lambda root: 0,
        [*PHOTOS, *SMALL, "--trainer.check_val_every_n_epoch", "0"],
        "--trainer.check_val_every_n_epoch is 0; give 1 or more",
    ),
    "a few batches over and over": (
        lambda root: 0,
        [*PHOTOS, *SMALL, "--trainer.overfit_batches", "1"],
        "--trainer.overfit_batches .*give --data.n_per_class instead",
    ),
    "an unset variable": (lambda root: 0, ["--data.root", ""], "the argument after --data.root is empty"),
    "an unset variable after =": (lambda root: 0, ["--data.root="], "--data.root= is empty"),
    "a file for a backbone": (
        lambda root: (root / "notes.txt").write_text("hello"),
        [*PHOTOS, "--model.backbone", "notes.txt"],
        "notes.txt is a file, but not a checkpoint",
    ),
    "a file of weights for a backbone": (
        lambda root: (root / "net.safetensors").write_bytes(b""),
        [*PHOTOS, "--model.backbone", "net.safetensors"],
        "net.safetensors is a file of weights alone; .*--model.backbone resnet18 --model.weights net.safetensors",
    ),
    "files of a manifest elsewhere": (
        lambda root: (root / "m.csv").write_text("path,label\n" + "".join(f"{n}.png,{n % 2}\n" for n in range(9))),
        ["--data.root", "m.csv", *SMALL],
        "none of the 9 files that 'm.csv' lists is there, such as '0.png'; give the folder .* as --data.image_root DIR",
    ),
    "no such device": (lambda root: 0, [*DIGITS, *SMALL, "--trainer.accelerator", "tpu"], "--trainer: "),
    "too many processes": (
        lambda root: 0,
        [*PHOTOS, *SMALL, "--trainer.devices", "100000"],
        "--trainer.devices is 100000, this machine has .* cores; give no more",
    ),
    "no end": (
        lambda root: 0,
        [*PHOTOS, *SMALL, "--trainer.max_epochs", "-1"],
        "give --trainer.max_epochs or --trainer.max_steps",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    prepare, arguments, pattern = BAD[case]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRANSFERKIT_CACHE", str(tmp_path / "cache"))
    write_photos(tmp_path / "photos", COLOURS, {"train": 3, "val": 2})
    prepare(tmp_path)
    assert refused(transferkit("fit", *arguments), pattern)
    assert not (tmp_path / "runs").exists()
