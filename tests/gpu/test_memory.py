"""A GPU without memory: embeddings go on with half of the batch, other commands end with one line."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.gpu.networks import difference
from tests.running import refused, transferkit
from transferkit.data.embeddings import Embeddings

pytestmark = pytest.mark.gpu

RANDOM = ["--extractor", "resnet18", "--weights", "none", "--trainer.accelerator", "gpu"]


@pytest.fixture(autouse=True)
def here(cuda: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In an empty folder; the GPU's memory is given back afterwards."""
    monkeypatch.chdir(tmp_path)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def limit(megabytes: int) -> None:
    """Let this process have so much more of the GPU's memory than it uses."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + megabytes * 2**20) / total)


def test_embed_halves_the_batch_and_goes_on() -> None:
    command = ["embed", "digits", *RANDOM, "--batch_size", "512", "--out"]
    whole = transferkit(*command, "whole.parquet")
    assert whole.status == 0 and "out of memory" not in whole.err, whole.err
    limit(800)  # a batch of 512 needs 3 GB
    done = transferkit(*command, "parts.parquet")
    assert done.status == 0, done.err
    assert done.err.count("out of memory with 512 images per forward pass; going on with 256") == 1
    found, expected = Embeddings.load("parts.parquet"), Embeddings.load("whole.parquet")
    assert found.paths == expected.paths and found.metadata["batch_size"] == 512
    assert difference(found.embedding, expected.embedding) <= 1e-4


def test_a_fit_names_the_batch_size() -> None:
    limit(600)
    model = ["--model.backbone", "resnet18", "--model.weights", "none", "--model.regime", "full"]
    trainer = ["--trainer.accelerator", "gpu", "--trainer.max_epochs", "1"]
    done = transferkit("fit", "digits", *model, *trainer, "--data.batch_size", "512", "--data.num_workers", "0")
    assert done.status == 2 and "transferkit: error: " in done.err and "Traceback" not in done.err, done.err
    assert "memory" in done.err.splitlines()[-1] and "--data.batch_size" in done.err.splitlines()[-1]


def test_where_nothing_is_left_one_line_says_so() -> None:
    limit(4)  # not even the weights
    assert refused(
        transferkit("embed", "digits", *RANDOM, "--out", "e.parquet"),
        r"out of memory \(CUDA\); give a smaller --batch_size, or compute on the CPU with --trainer.accelerator cpu",
    )
