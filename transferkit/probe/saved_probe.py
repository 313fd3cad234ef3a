"""A probe's directory: its report, classifiers, test predictions and splits."""

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
from transferkit.runtime.json_files import write_json

REPORT, CLASSIFIER, START = "probe.json", "classifier.safetensors", "start.safetensors"
PREDICTIONS, SPLITS = "predictions.parquet", "splits.parquet"


def save_probe(result: ProbeResult, folder: Path, more: Mapping[str, Any] | None = None) -> list[Path]:
    """Write the result of a probe into a directory.

    Args:
        result: what `probe_embeddings` returned.
        folder: the directory.
        more: further entries of the report.

    Returns:
        The five files.
    """
    files = [folder / name for name in (REPORT, CLASSIFIER, START, PREDICTIONS, SPLITS)]
    report = {**result.report, **(more or {})}
    write_json(files[0], report)
    result.classifier.save(files[1])
    result.start.save(files[2])
    test = result.predictions
    classes = prediction_columns(test.paths, test.labels, [(test.preds, test.confidence)]) if not result.columns else {}
    write_parquet(result.columns or classes, files[3])
    save_splits(result.splits, files[4])
    return files


def load_predictions(folder: str | Path) -> Predictions:
    """Read the test predictions from a probe's directory.

    Raises:
        UserError: the directory or its predictions do not exist.
    """
    file = Path(folder) / PREDICTIONS
    try:
        columns = pq.read_table(file, columns=["path", "label", "prediction", "probability"]).to_pydict()
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise UserError(f"{folder} holds no {PREDICTIONS} of a probe; give a directory that a probe wrote") from error
    return Predictions(
        paths=tuple(columns["path"]),
        labels=tuple(columns["label"]),
        preds=tuple(columns["prediction"]),
        confidence=torch.tensor(columns["probability"], dtype=torch.float32),
    )
