"""A probe's directory: ``probe.json``, ``classifier.safetensors``, ``predictions.parquet``."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from transferkit.errors import UserError
from transferkit.files import atomic_path
from transferkit.probe.protocol import Predictions, ProbeResult

REPORT, CLASSIFIER, PREDICTIONS = "probe.json", "classifier.safetensors", "predictions.parquet"


def save_probe(result: ProbeResult, folder: Path, more: Mapping[str, Any] | None = None) -> list[Path]:
    """Write what a probe found; the three files.

    Args:
        result: of `probe_embeddings`.
        folder: to write into.
        more: further entries of the report.
    """
    files = [folder / name for name in (REPORT, CLASSIFIER, PREDICTIONS)]
    report = {**result.report, **(more or {})}
    with atomic_path(files[0]) as temporary:
        temporary.write_text(json.dumps(report, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    result.classifier.save(files[1])
    said = result.predictions
    columns = {
        "path": pa.array(said.paths, pa.string()),
        "label": pa.array(said.labels, pa.string()),
        "prediction": pa.array(said.preds, pa.string()),
        "probability": pa.array(said.confidence.numpy(), pa.float32()),
    }
    with atomic_path(files[2]) as temporary:
        pq.write_table(pa.table(columns), temporary)
    return files


def load_predictions(folder: str | Path) -> Predictions:
    """The test predictions of a probe's directory.

    Raises:
        UserError: the folder is not there or holds none.
    """
    file = Path(folder) / PREDICTIONS
    try:
        columns = pq.read_table(file, columns=["path", "label", "prediction", "probability"]).to_pydict()
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise UserError(f"{folder} holds no {PREDICTIONS} of a probe; write it with transferkit probe") from error
    return Predictions(
        paths=tuple(columns["path"]),
        labels=tuple(columns["label"]),
        preds=tuple(columns["prediction"]),
        confidence=torch.tensor(columns["probability"], dtype=torch.float32),
    )
