"""``transferkit models``: a table of names, offline and without the heavy libraries."""

import json
import subprocess
import sys
from importlib import metadata

import pytest

from tests.running import refused, transferkit
from transferkit.backbones.known_models import release_of_timm


def test_names_by_a_pattern() -> None:
    done = transferkit("models", "google/siglip2*", "--json")
    assert done.status == 0, done.err
    names = [model["name"] for model in json.loads(done.out)["models"]]
    assert names == [
        f"google/siglip2-{size}" for size in ("base-patch16-224", "large-patch16-256", "so400m-patch14-384")
    ]
    done = transferkit("models", "--pattern", "google/siglip2-b*")
    assert "pooler, projection, mean" in done.out and "92,884,224" in done.out and "yes" in done.out
    assert "zeroshot and search --text" in done.err


def test_nothing_matches() -> None:
    assert refused(transferkit("models", "siglop"), "no known model matches 'siglop'; (nearest: |leave it out)")


@pytest.mark.parametrize("pattern", [[], ["resnet"]])
def test_it_imports_nothing_heavy(pattern: list[str]) -> None:
    """With a pattern neither, where timm is of the release that is known."""
    if pattern and metadata.version("timm") != release_of_timm():
        pytest.skip("another release of timm is asked for its names")
    code = (
        f"import sys; from transferkit.cli import run; status = run(['models', *{pattern}, '--json']); "
        "sys.exit(status or len({'torch', 'torchvision', 'transformers', 'timm'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["models"]) > 100
