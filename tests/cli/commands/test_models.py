"""``transferkit models``: a table of names, offline and without the heavy libraries."""

import json
import subprocess
import sys

from tests.running import refused, transferkit


def test_names_by_a_pattern() -> None:
    done = transferkit("models", "google/siglip2*", "--json")
    assert done.status == 0, done.err
    names = [model["name"] for model in json.loads(done.out)["models"]]
    assert names == ["google/siglip2-base-patch16-224", "google/siglip2-so400m-patch14-384"]
    done = transferkit("models", "--pattern", "google/siglip2-b*")
    assert "pooler, projection, mean" in done.out and "92,884,224" in done.out and "yes" in done.out
    assert "zeroshot and search --text" in done.err


def test_nothing_matches() -> None:
    assert refused(transferkit("models", "siglop"), "no known model matches 'siglop'; (nearest: |leave it out)")


def test_it_imports_nothing_heavy() -> None:
    code = (
        "import sys; from transferkit.cli import run; status = run(['models', '--json']); "
        "sys.exit(status or len({'torch', 'torchvision', 'transformers', 'timm'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["models"]) > 100
