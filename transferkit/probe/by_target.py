"""The probe that fits the targets of a table: classes, several labels, or numbers."""

from typing import Any

import torch

from transferkit.data.embeddings import Embeddings
from transferkit.probe.label_probe import probe_labels
from transferkit.probe.number_probe import probe_numbers
from transferkit.probe.protocol import ProbeResult, probe_embeddings


def probe_targets(
    embeddings: Embeddings, *, coarse_to_fine: bool = False, device: torch.device | str = "cpu", **options: Any
) -> ProbeResult:
    """Probe embeddings: select on the validation rows, report on the test rows.

    Args:
        embeddings: table with targets of any kind.
        coarse_to_fine: fit every fourth C, then only those beside the best; a number needs no sweep.
        device: where the sweep of classes runs; the others run on the CPU.
        options: ``seed``, ``val_fraction`` and ``test_fraction`` of the drawn splits, and others of
            :func:`~transferkit.probe.protocol.probe_embeddings` and the like.

    Raises:
        UserError: the rows cannot be split, or nothing can be learned from their targets.
    """
    if embeddings.kind == "class":
        return probe_embeddings(embeddings, coarse_to_fine=coarse_to_fine, device=device, **options)
    if embeddings.kind == "number":
        return probe_numbers(embeddings, **options)
    return probe_labels(embeddings, coarse_to_fine=coarse_to_fine, **options)
