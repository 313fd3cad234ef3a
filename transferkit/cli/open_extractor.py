"""The extractor that ``--extractor`` names, on the device to use."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from transferkit.extractor import Extractor

Accelerator = Literal["auto", "cpu", "gpu", "cuda", "mps"]


def open_extractor(
    name: str,
    weights: str = "DEFAULT",
    pooling: str | None = None,
    accelerator: Accelerator = "auto",
    preprocessing: Mapping[str, Any] | None = None,
) -> "Extractor":
    """Open an extractor on the device to use.

    Args:
        name: torchvision name, Hugging Face id or directory, exported directory, or checkpoint.
        weights: ``DEFAULT``, ``none`` (random, the same each time) or a path.
        pooling: ``None`` is the extractor's own.
        accelerator: ``auto`` takes a GPU if there is one.
        preprocessing: fields to override; ``None`` is the extractor's own.

    Raises:
        UserError: no such accelerator; see :meth:`Extractor.from_pretrained`.
    """
    from transferkit.runtime.processes import find_device

    device = find_device(accelerator, "--accelerator")
    return read_extractor(name, weights, pooling, preprocessing).to(device)


def read_extractor(
    name: str, weights: str = "DEFAULT", pooling: str | None = None, preprocessing: Mapping[str, Any] | None = None
) -> "Extractor":
    """Open an extractor on the CPU; random weights are the same for every command.

    Args:
        name: see :func:`open_extractor`, also for ``weights`` and ``pooling``.
        weights: likewise.
        pooling: likewise.
        preprocessing: fields to override.

    Raises:
        UserError: see :meth:`Extractor.from_pretrained`.
    """
    import torch

    from transferkit.extractor import Extractor

    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(0)
        return Extractor.from_pretrained(name, weights, pooling, preprocessing)
