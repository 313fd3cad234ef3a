"""float32 that is float32: no TF32 in convolutions and matrix products, whatever the process has switched on."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_lock = threading.Lock()
_inside = 0
_before: list[str] = []


def _settings() -> list[Any]:
    """What holds a ``fp32_precision``; PyTorch's default is TF32 for cuDNN (a relative error of 1e-3)."""
    backends: Any = torch.backends
    return [backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul, backends.mkldnn.conv, backends.mkldnn.matmul]


@contextmanager
def full_float32() -> Iterator[None]:
    """Compute float32 in full while the block runs, and restore the settings after it.

    They belong to the whole process, so where several threads are inside, the first one sets them and the last
    one restores them.
    """
    global _inside, _before
    with _lock:
        if not _inside:
            _before = [setting.fp32_precision for setting in _settings()]
            for setting in _settings():
                setting.fp32_precision = "ieee"
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                for setting, value in zip(_settings(), _before, strict=True):
                    setting.fp32_precision = value
