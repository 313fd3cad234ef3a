"""Linear, kNN and few-shot probes on embeddings: `probe_embeddings` runs them all."""

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
