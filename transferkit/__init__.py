"""Transfer learning on images: train an extractor, measure its embeddings, hand it over."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transferkit import embed, similarity
    from transferkit.data.datamodule import ImageDataModule
    from transferkit.data.embeddings import Embeddings
    from transferkit.errors import UserError
    from transferkit.extractor import Extractor
    from transferkit.probe.estimators import EmbeddingTransformer, TransferClassifier
    from transferkit.training.check_backbone import check_backbone
    from transferkit.training.distilling import distill
    from transferkit.training.fitting import fit
    from transferkit.training.module import TransferModule
    from transferkit.training.run import Run

__version__ = "0.1.0"
__all__ = [
    "EmbeddingTransformer",
    "Embeddings",
    "Extractor",
    "ImageDataModule",
    "Run",
    "TransferClassifier",
    "TransferModule",
    "UserError",
    "check_backbone",
    "distill",
    "embed",
    "fit",
    "similarity",
]

if not TYPE_CHECKING:  # a type checker takes the imports above
    MODULES = {
        "EmbeddingTransformer": "transferkit.probe.estimators",
        "Embeddings": "transferkit.data.embeddings",
        "Extractor": "transferkit.extractor",
        "ImageDataModule": "transferkit.data.datamodule",
        "Run": "transferkit.training.run",
        "TransferClassifier": "transferkit.probe.estimators",
        "TransferModule": "transferkit.training.module",
        "UserError": "transferkit.errors",
        "check_backbone": "transferkit.training.check_backbone",
        "distill": "transferkit.training.distilling",
        "fit": "transferkit.training.fitting",
    }

    def __getattr__(name: str) -> object:
        """Import a public name when it is first used, so that ``import transferkit`` does not import torch."""
        if name in MODULES:
            return getattr(importlib.import_module(MODULES[name]), name)
        if name in __all__:
            return importlib.import_module(f"transferkit.{name}")
        raise AttributeError(f"module 'transferkit' has no attribute {name!r}")

    def __dir__() -> list[str]:
        """List the names that are imported when they are first used, too."""
        return sorted({*globals(), *__all__})
