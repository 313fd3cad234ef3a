"""A probe's directory: its report, classifiers, test predictions and splits."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from transferkit.data.splits import save_splits
from transferkit.errors import UserError
from transferkit.probe.protocol import Predictions, ProbeResult
from transferkit.reports.predictions import prediction_columns, write_parquet
from transferkit.runtime.files import atomic_path

REPORT, CLASSIFIER, START = "probe.json", "classifier.safetensors", "start.safetensors"
PREDICTIONS, SPLITS = "predictions.parquet", "splits.parquet"


def save_probe(result: ProbeResult, folder: Path, more: Mapping[str, Any] | None = None) -> list[Path]:
    """Write what a probe found; the five files.

    Args:
        result: of `probe_embeddings`.
        folder: to write into.
        more: further entries of the report.
    """
    files = [folder / name for name in (REPORT, CLASSIFIER, START, PREDICTIONS, SPLITS)]
    report = {**result.report, **(more or {})}
    with atomic_path(files[0]) as temporary:
        temporary.write_text(json.dumps(report, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    result.classifier.save(files[1])
    result.start.save(files[2])
    test = result.predictions
    write_parquet(prediction_columns(test.paths, test.labels, [(test.preds, test.confidence)]), files[3])
    save_splits(result.splits, files[4])
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
