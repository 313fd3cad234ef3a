"""Transfer learning on images: train an extractor, measure its embeddings, hand it over."""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "check_backbone": "transferkit.training.check_backbone",
    "Embeddings": "transferkit.data.embeddings",
    "Extractor": "transferkit.extractor",
    "ImageDataModule": "transferkit.data.datamodule",
    "TransferModule": "transferkit.training.module",
    "UserError": "transferkit.errors",
}


def __getattr__(name: str) -> Any:
    """Import the public names when they are first asked for: ``import transferkit`` does not import torch."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'transferkit' has no attribute {name!r}")
