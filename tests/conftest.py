"""What every test has: an empty home for caches, no network, fixed seeds, and a small folder of images."""

import os
import random
import signal
import socket
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

COLOURS = {"apples": (190, 50, 40), "limes": (70, 180, 60)}
CACHES = tempfile.TemporaryDirectory(prefix="transferkit-tests-")
for cache in ("TRANSFERKIT_CACHE", "HF_HOME", "TORCH_HOME"):  # here, since the libraries read these when imported
    os.environ[cache] = str(Path(CACHES.name, cache.lower()))

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job; children inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_unconfigure() -> None:
    CACHES.cleanup()


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail look-ups of other machines at once: a test means the same with and without a network."""
    look_up = socket.getaddrinfo

    def local_only(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host in (None, "localhost", "127.0.0.1", "::1", "0.0.0.0", "", socket.gethostname()):
            return look_up(host, *args, **kwargs)
        raise socket.gaierror(socket.EAI_AGAIN, f"tests have no network: {host}")

    monkeypatch.setattr(socket, "getaddrinfo", local_only)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """On the tests' small tensors threads only wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def checkout_stays_as_it_is() -> Iterator[None]:
    """Nothing is left beside the sources: Lightning, and we, write where a program is run unless told otherwise."""
    folder = Path.cwd()
    before = {path.name for path in folder.iterdir()}
    yield
    left = {path.name for path in folder.iterdir()} - before - {"build", "dist"}
    assert not [name for name in left if not name.startswith(".")]


@pytest.fixture(autouse=True)
def seeds() -> None:
    random.seed(0)
    np.random.seed(0)  # the libraries under test draw from the global generator
    torch.manual_seed(0)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A feature cache that no other test has filled."""
    monkeypatch.setenv("TRANSFERKIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts how often each image is decoded."""
    from transferkit.data.image_table import ImageTable  # once the caches above are set

    counts: Counter[str] = Counter()
    read = ImageTable.read

    def counted(table: ImageTable, row: int) -> Tensor:
        counts[table.paths[row]] += 1
        return read(table, row)

    monkeypatch.setattr(ImageTable, "read", counted)
    return counts


@pytest.fixture
def photo_folder(tmp_path: Path) -> Path:
    """A folder train/val x apples/limes of 6 images each, 40 x 32 pixels, JPEG and PNG by turns.

    A class is a colour under noise, so that a linear head learns it and no two files are equal.
    """
    noise = np.random.default_rng(0)
    root = tmp_path / "photos"
    for split in ("train", "val"):
        for label, colour in COLOURS.items():
            folder = root / split / label
            folder.mkdir(parents=True)
            for number in range(6):
                pixels = np.clip(noise.normal(colour, 25, (32, 40, 3)), 0, 255).astype(np.uint8)  # (H, W, 3)
                Image.fromarray(pixels).save(folder / f"{number}.{'png' if number % 2 else 'jpg'}")
    return root


@pytest.fixture(scope="session")
def filled_caches() -> None:
    """torchvision's and the hub's caches as a first download leaves them, with random weights."""
    from torchvision import models
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    from tests.backbones.words import save_dual

    checkpoints = Path(torch.hub.get_dir()) / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    url = models.ResNet18_Weights.DEFAULT.url
    torch.manual_seed(0)
    torch.save(models.resnet18().state_dict(), checkpoints / Path(url).name)
    snapshot = hub_snapshot("google/vit-base-patch16-224-in21k")
    save_dual("siglip", hub_snapshot("google/siglip2-base-patch16-224"))
    ViTModel(ViTConfig()).half().save_pretrained(snapshot)
    ViTImageProcessor().save_pretrained(snapshot)


def hub_snapshot(name: str) -> Path:
    """The folder where the hub's cache keeps the newest files of a repository."""
    repository = Path(os.environ["HF_HOME"]) / "hub" / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    (repository / "refs" / "main").write_text("0" * 40)
    return repository / "snapshots" / ("0" * 40)
