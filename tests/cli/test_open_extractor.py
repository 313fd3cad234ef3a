"""The device that a network runs on: one option of every verb that runs one."""

import ast
import inspect
import re
from importlib import import_module
from typing import Any

import pytest
import torch

from tests.running import refused, transferkit
from transferkit.cli import dispatch
from transferkit.cli.open_extractor import open_extractor
from transferkit.errors import UserError
from transferkit.runtime.processes import find_device

VERBS = {
    "probe": ["digits"],
    "index": ["digits"],
    "similarity": ["a.jpg", "b.jpg"],
    "duplicates": ["digits"],
    "benchmark": ["--extractors", "{a: resnet18}", "--datasets", "{d: digits}"],
    "regions": ["digits", "--boxes", "boxes.csv"],
}


def present(monkeypatch: pytest.MonkeyPatch, kind: str | None) -> None:
    """Let torch find one kind of accelerator, or none."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: kind is not None)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(kind) if kind else None)


@pytest.mark.parametrize(
    ("kind", "asked", "device"),
    [
        (None, "auto", "cpu"),
        (None, "cpu", "cpu"),
        ("cuda", "auto", "cuda"),
        ("cuda", "gpu", "cuda"),
        ("cuda", "cuda", "cuda"),
        ("cuda", "cpu", "cpu"),
        ("mps", "auto", "mps"),
        ("mps", "gpu", "mps"),
        ("mps", "mps", "mps"),
        (None, "gpu", None),
        (None, "mps", None),
        ("cuda", "mps", None),
        ("mps", "cuda", None),
    ],
)
def test_the_device_is_the_one_asked_for(
    monkeypatch: pytest.MonkeyPatch, kind: str | None, asked: str, device: str | None
) -> None:
    present(monkeypatch, kind)
    if device:
        assert find_device(asked).type == device
    else:
        with pytest.raises(UserError, match=f"^`accelerator={asked}`: torch finds .* here; give auto or cpu$"):
            find_device(asked)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_that_runs_a_network_has_it(verb: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """And hands it to where the extractor is opened."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "boxes.csv").write_text("path,x1,y1,x2,y2\n0000.png,0,0,4,4\n")
    present(monkeypatch, None)
    done = transferkit(verb, *VERBS[verb], "--accelerator", "mps", *(["--out", "out"] if verb == "probe" else []))
    assert "--accelerator mps: torch finds none here; give auto or cpu" in done.err
    assert done.status == 2 and "Traceback" not in done.err
    assert refused(transferkit(verb, *VERBS[verb], "--accelerator", "tpu"), "--accelerator is 'tpu'; give .*cpu")


def test_whatever_opens_an_extractor_asks_where() -> None:
    """A verb of tomorrow too."""
    for command in {command for command, _ in dispatch.VERBS.values()}:
        tree = ast.parse(inspect.getsource(import_module(f"transferkit.cli.commands.{command}")))
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            if re.fullmatch(r"open_extractor|[nN]etwork\b.*\.open", ast.unparse(call.func)):
                assert "accelerator" in map(ast.unparse, call.args), f"{command}: {ast.unparse(call)}"
    assert inspect.signature(open_extractor).parameters["accelerator"].default == "auto"
