"""Bad input of the commands beside fit: one line, exit status 2, nobody's files touched."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.running import refused, transferkit

RESNET = ["--extractor", "resnet18", "--weights", "none"]


def picture(root: Path) -> None:
    """A picture of the user's where our output would go."""
    (root / "out").mkdir()
    (root / "out/mine.jpg").write_bytes(b"mine")


BAD: dict[str, tuple[Callable[[Path], Any], list[str], str]] = {
    "empty argument": (lambda root: 0, ["embed", "", *RESNET], "the argument after embed is empty"),
    "one too many": (
        lambda root: 0,
        ["embed", "photos", "more", *RESNET],
        "unexpected argument 'more'; transferkit embed --help",
    ),
    "no processes": (
        lambda root: 0,
        ["embed", "photos", *RESNET, "--trainer.devices", "0"],
        "--trainer.devices is 0; give 1 or more",
    ),
    "too many processes": (
        lambda root: 0,
        ["embed", "photos", *RESNET, "--trainer.devices", "100000"],
        "--trainer.devices is 100000, this machine has .* cores; give no more",
    ),
    "another accelerator": (
        lambda root: 0,
        ["embed", "photos", *RESNET, "--trainer.accelerator", "gpu"],
        "--trainer.accelerator gpu: torch finds none here; give auto or cpu",
    ),
    "an option of fit's in our words": (
        lambda root: 0,
        ["embed", "photos", "--extractor", "resnet18"],
        "TORCH_HOME.*give --weights FILE, or --weights none",
    ),
    "a page that is a picture": (
        lambda root: 0,
        ["search", "photos", "a.jpg", "--html", "photos/train/apples/0.jpg"],
        "--html photos/train/apples/0.jpg: give the page a name that ends in .html",
    ),
    "a report over a manifest": (
        lambda root: (root / "list.csv").write_text("path,label\n"),
        ["scan", "photos", "--out", "list.csv"],
        "list.csv holds something else than the report of a scan",
    ),
    "a quickstart over pictures": (picture, ["quickstart", "--out", "out"], "out holds 'mine.jpg'"),
    "a quickstart of nothing": (lambda root: 0, ["quickstart", "--seeds", "0"], "--seeds is 0; give 1 or more"),
    "a device for a file": (
        lambda root: 0,
        ["scan", "photos", "--out", "/dev/null"],
        "cannot write /dev/null: a device cannot be replaced",
    ),
    "a table that is a device": (lambda root: 0, ["evaluate", "/dev/null"], "/dev/null is neither a file nor a folder"),
    **{
        f"{verb} with seed {seed}": (
            lambda root: 0,
            [verb, *operands, "--seed", seed],
            f"--seed is {seed}; give a number from 0 to 4294967295",
        )
        for verb, *operands in (
            ("evaluate", "a"),
            ("compare", "a", "b"),
            ("probe", "photos"),
            ("benchmark",),
            ("quickstart",),
        )
        for seed in ("99999999999999999999", "-1")
    },
    **{
        f"{verb} into a file": (
            lambda root: (root / "mine").write_text("mine"),
            [verb, *arguments],
            "cannot write into .*mine.* is not a folder; choose another path",
        )
        for verb, *arguments in (
            ("evaluate", "photos", "--out", "mine"),  # said before what is no table of embeddings
            ("probe", "photos", *RESNET, "--out", "mine"),
            ("probe", "photos", *RESNET, "--export", "mine/within"),
            ("scan", "photos", "--out", "mine/within"),
            ("benchmark", "--extractors", "{a: resnet18}", "--datasets", "{b: photos}", "--out", "mine/within"),
        )
    },
    "a probe's export over something": (
        picture,
        ["probe", "photos", *RESNET, "--export", "out"],
        "out holds something else than an export",
    ),
    "a classifier that is not there": (
        lambda root: 0,
        ["fit", "--data.root", "photos", "--model.weights", "none", "--model.head", "no.safetensors"],
        "no such file: no.safetensors; probe an extractor to get one",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_line_and_touches_nothing(
    photo_folder: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    root = photo_folder.parent
    prepare, arguments, pattern = BAD[case]
    monkeypatch.chdir(root)
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    monkeypatch.setenv("TRANSFERKIT_CACHE", str(root / "cache"))
    prepare(root)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file() and "cache" not in path.parts}
    assert refused(transferkit(*arguments), pattern)
    assert before == {
        path: path.read_bytes() for path in root.rglob("*") if path.is_file() and "cache" not in path.parts
    }
