"""Arbitrary configs: a command ends with 0, or with 2 and one line, never with a traceback."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.running import transferkit

OPTIONS = [
    *("model", "data", "trainer", "name", "seed_everything", "ckpt_path", "images", "out", "json", "config"),
    *("backbone", "weights", "pooling", "regime", "unfreeze_last", "lr_head", "layer_decay", "preprocessing"),
    *("root", "val_fraction", "classes", "augmentation", "batch_size", "num_workers", "class_weights", "splits"),
    *("max_epochs", "accelerator", "devices", "callbacks", "logger", "class_path", "init_args", "precision"),
]
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 5),
    st.sampled_from(
        [10**400, -1, 1e308, float("nan"), float("inf"), ".", "", "\0", "\x1b[2J", "none", "../x", "a" * 3000]
    ),
    st.text(max_size=8),
)
keys = st.sampled_from(OPTIONS) | st.text(max_size=5)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=8,
)
configs = st.dictionaries(keys, values, max_size=5)
texts = [
    "a: &a [*a]",
    "&a {b: *a}",
    "a: !!python/object/apply:os.system ['touch it-ran']",
    "!!python/name:os.system",
    "%YAML 9.9\n---\na: 1",
    "a: 1\n---\nb: 2",
    "a: 1\na: 2",
    "{" * 3000,
    "model: {backbone: [}",
    "a: " + "[" * 2000,
    "1: 2",
    "? [a, b]\n: c",
    "trainer: {callbacks: {class_path: os.system, init_args: {command: touch it-ran}}}",
    "trainer: {logger: {class_path: subprocess.Popen, init_args: {args: [touch, it-ran]}}}",
    "data: {class_path: pathlib.Path}",
    "model: {backbone: {class_path: pathlib.Path}}",
    "model: !include /etc/passwd",
    "\ufeffname: x",
    "\x85",
]
laughs = "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" if n else "a0: &a0 [lol, lol]" for n in range(10))

slow = settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRANSFERKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path


def answered(verb: str, *arguments: str) -> None:
    """Assert status 0, or 2 with one line."""
    done = transferkit(verb, "--config", "c.yaml", *arguments)
    assert done.status in (0, 2)
    if done.status == 2:
        assert done.err.splitlines()[-1].startswith("transferkit: error: ")
        assert len(done.err.splitlines()[-1]) < 2000
    assert "Traceback" not in done.err and "\x1b" not in done.err
    assert not Path("it-ran").exists()


@pytest.mark.parametrize("text", [*texts, laughs], ids=lambda text: text[:20].encode("unicode_escape").decode())
@pytest.mark.parametrize("verb", ["scan", pytest.param("fit", marks=pytest.mark.slow)])
def test_yaml_that_is_not_what_it_seems(here: Path, verb: str, text: str) -> None:
    (here / "c.yaml").write_bytes(text.encode())
    answered(verb, *(["--data.root", "absent"] if verb == "fit" else ["absent"]))


HARM = {
    "a loop": "a: &a [*a]",
    "laughs": laughs,
    "a class": "trainer: {callbacks: {class_path: os.system}}",
    "a long checkpoint": f"ckpt_path: {'a' * 3000}",
    "a long backbone": f"model: {{backbone: {'a' * 3000}}}",
    "another config": "config: {}",
}


@pytest.mark.parametrize("text", HARM.values(), ids=HARM)
def test_yaml_that_would_do_harm_to_fit(here: Path, text: str) -> None:
    (here / "c.yaml").write_text(text)
    answered("fit", "--data.root", "absent")


@settings(slow, max_examples=40)
@given(content=configs)
def test_configs_of_scan(here: Path, content: dict[str, Any]) -> None:
    (here / "c.yaml").write_text(yaml.safe_dump(content))
    answered("scan", "absent")


@settings(slow, max_examples=3)
@given(content=configs)
def test_a_share_of_the_configs_of_fit(here: Path, content: dict[str, Any]) -> None:
    fit_with(here, content)


@pytest.mark.fuzz
@settings(slow, max_examples=300)
@given(content=configs)
def test_configs_of_fit(here: Path, content: dict[str, Any]) -> None:
    fit_with(here, content)


def fit_with(here: Path, content: dict[str, Any]) -> None:
    (here / "c.yaml").write_text(yaml.safe_dump(content))
    answered("fit", "--data.root", "absent")
