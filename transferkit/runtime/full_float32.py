"""Full float32 precision: no TF32 in convolutions and matrix products, whatever the process has enabled."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from transferkit.runtime.shared_change import SharedChange


def settings() -> list[Any]:
    """Return everything with an ``fp32_precision``; PyTorch's default is TF32 for cuDNN (relative error 1e-3)."""
    backends: Any = torch.backends
    return [backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul, backends.mkldnn.conv, backends.mkldnn.matmul]


def full_float32() -> AbstractContextManager[None]:
    """Disable TF32 while the block runs, and restore the settings after it; they belong to the whole process."""
    return ieee.made()


@contextmanager
def without_tf32() -> Iterator[None]:
    """Disable TF32, and restore the settings."""
    before = [setting.fp32_precision for setting in settings()]
    for setting in settings():
        setting.fp32_precision = "ieee"
    try:
        yield
    finally:
        for setting, value in zip(settings(), before, strict=True):
            setting.fp32_precision = value


ieee = SharedChange(without_tf32)
