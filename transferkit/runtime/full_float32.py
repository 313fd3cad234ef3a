"""Full float32 precision: no TF32 in convolutions and matrix products, whatever the process has enabled."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

lock = threading.Lock()
inside = 0
before: list[str] = []


def settings() -> list[Any]:
    """Return everything with an ``fp32_precision``; PyTorch's default is TF32 for cuDNN (relative error 1e-3)."""
    backends: Any = torch.backends
    return [backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul, backends.mkldnn.conv, backends.mkldnn.matmul]


@contextmanager
def full_float32() -> Iterator[None]:
    """Disable TF32 while the block runs, and restore the settings after it.

    They belong to the whole process: of several threads, the first one sets them and the last one restores them.
    """
    global inside, before
    with lock:
        if not inside:
            before = [setting.fp32_precision for setting in settings()]
            for setting in settings():
                setting.fp32_precision = "ieee"
        inside += 1
    try:
        yield
    finally:
        with lock:
            inside -= 1
            if not inside:
                for setting, value in zip(settings(), before, strict=True):
                    setting.fp32_precision = value
