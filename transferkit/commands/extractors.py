"""The extractor that ``--extractor`` names, on the device to use."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transferkit.extractor import Extractor


def open_extractor(name: str, weights: str = "DEFAULT", pooling: str | None = None) -> "Extractor":
    """Open an extractor on the GPU if there is one, else on the CPU.

    Args:
        name: torchvision name, Hugging Face id or directory, exported directory, or checkpoint.
        weights: ``DEFAULT``, ``none`` (random, the same each time) or a path.
        pooling: ``None`` is the extractor's own.

    Raises:
        UserError: see :meth:`Extractor.from_pretrained`.
    """
    import torch

    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return read_extractor(name, weights, pooling).to(device or "cpu")


def read_extractor(
    name: str, weights: str = "DEFAULT", pooling: str | None = None, preprocessing: dict[str, Any] | None = None
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

    torch.manual_seed(0)
    return Extractor.from_pretrained(name, weights, pooling, preprocessing)
