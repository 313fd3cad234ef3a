"""The tests of a GPU: `make test-gpu`, or `python3 -m pytest -m gpu tests/gpu`; skipped without a CUDA device.

They need no network, no weights and no installation of this package. ``TRANSFERKIT_TEST_DEVICE=cpu`` runs them on the
CPU, where mistakes of the tests themselves show; what is about CUDA alone is skipped then.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

CHOSEN = os.environ.get("TRANSFERKIT_TEST_DEVICE", "cuda")


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the tests run."""
    if CHOSEN == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device; TRANSFERKIT_TEST_DEVICE=cpu runs it on the CPU")
    return torch.device(CHOSEN)


@pytest.fixture(scope="session")
def accelerator(device: torch.device) -> str:
    """The device as the commands name it."""
    return "gpu" if device.type == "cuda" else "cpu"


@pytest.fixture
def cuda(device: torch.device) -> torch.device:
    """A CUDA device, for what there is nowhere else."""
    if device.type != "cuda":
        pytest.skip("about CUDA alone")
    return device


@pytest.fixture(autouse=True)
def own_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cache of each test's own: numbers of another device must not be taken from it."""
    monkeypatch.setenv("TRANSFERKIT_CACHE", str(tmp_path / "cache"))
    yield
    for name in ("TRANSFERKIT_RUN", "PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        os.environ.pop(name, None)
