"""Linear, kNN and few-shot probes on embeddings: `probe_embeddings` runs them all."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transferkit.probe.by_target import probe_targets
    from transferkit.probe.classifier import LinearClassifier
    from transferkit.probe.protocol import PROTOCOL, Predictions, ProbeResult, compare_predictions, probe_embeddings
    from transferkit.probe.saved_probe import load_predictions, save_probe
    from transferkit.similarity.paired import PairedComparison

__all__ = [
    "PROTOCOL",
    "LinearClassifier",
    "PairedComparison",
    "Predictions",
    "ProbeResult",
    "compare_predictions",
    "load_predictions",
    "probe_embeddings",
    "probe_targets",
    "save_probe",
]

if not TYPE_CHECKING:  # an audit of embeddings needs the solver, not torchvision and its 170 MiB of memory
    MODULES = {
        "LinearClassifier": "transferkit.probe.classifier",
        "PairedComparison": "transferkit.similarity.paired",
        "load_predictions": "transferkit.probe.saved_probe",
        "probe_targets": "transferkit.probe.by_target",
        "save_probe": "transferkit.probe.saved_probe",
    }

    def __getattr__(name: str) -> object:
        """Import a public name when it is first used."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(MODULES.get(name, "transferkit.probe.protocol")), name)
