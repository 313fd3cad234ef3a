"""Linear, kNN and few-shot probes on embeddings: `probe_embeddings` runs them all."""

from transferkit.probe.classifier import LinearClassifier
from transferkit.probe.protocol import Predictions, ProbeResult, compare_predictions, probe_embeddings
from transferkit.probe.statistics import PairedComparison

__all__ = [
    "LinearClassifier",
    "PairedComparison",
    "Predictions",
    "ProbeResult",
    "compare_predictions",
    "probe_embeddings",
]
