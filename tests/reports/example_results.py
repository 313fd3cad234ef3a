"""Directories of results, written without training anything: a run and a probe over images with difficult names."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from PIL import Image
from sklearn.metrics import f1_score
from torchmetrics.functional.classification import multiclass_calibration_error

from transferkit.data.embeddings import Embeddings

NASTY = ("<script>alert(1)</script>", 'it\'s "quoted" & <b>bold</b>', "bees 🐝👩‍🔬", "long " + "x" * 195)


@dataclass(frozen=True)
class Example:
    """A run directory and the columns that its files hold."""

    run: Path
    paths: list[str]
    labels: list[str]
    preds: list[str]
    probability: np.ndarray[Any, np.dtype[np.float32]]
    metrics: dict[str, float]


def write_run(
    root: Path, names: Sequence[str] = NASTY, per_class: int = 6, wrong: float = 0.3, images: bool = True
) -> Example:
    """Write ``root/images`` with a manifest and the files of a tested run into ``root/runs/example/0``."""
    rng = np.random.default_rng(0)
    total = len(names) * per_class
    target = np.repeat(np.arange(len(names)), per_class)
    logits = rng.normal(0, 1, (total, len(names)))
    logits[np.arange(total), target] += 6
    spoiled = rng.permutation(total)[: round(wrong * total)]
    logits[spoiled, target[spoiled]] -= 12
    share = torch.from_numpy(logits).softmax(1).float()
    probability, pred = share.max(1)
    labels, preds = [names[number] for number in target], [names[number] for number in pred.tolist()]
    paths = [f"test/{number:05d}.jpg" for number in range(total)]
    folder, run = root / "images", root / "runs" / "example" / "0"
    (folder / "test").mkdir(parents=True)
    run.mkdir(parents=True)
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(
            [("path", "label", "split"), *((p, n, "test") for p, n in zip(paths, labels, strict=True))]
        )
    for path, number in zip(paths, target.tolist(), strict=True) if images else ():
        color = rng.integers(0, 255, 3) // 2 + 20 * (number % 5)
        pixels = np.clip(rng.normal(color, 30, (40, 52, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / path)
    classes = torch.from_numpy(target)
    metrics = {
        "test/acc": float((pred == classes).double().mean()),
        "test/f1_macro": float(f1_score(target, pred.numpy(), average="macro")),
        "test/ece": float(multiclass_calibration_error(share, classes, len(names), n_bins=15)),
        "test/loss": float(torch.nn.functional.cross_entropy(torch.from_numpy(logits), classes)),
        "test/epoch": 2,
        "val/epoch": 2,
    }
    write_json(run / "metrics.json", metrics)
    config = {"seed_everything": 0, "name": "example", "model": {"backbone": "resnet18", "regime": "frozen"},
              "data": {"root": str(folder / "labels.csv"), "image_root": None}}  # fmt: skip
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    rows = ["epoch,val/loss,val/acc,train/loss", "1,1.5,0.5,1.6", "2,1.1,0.7,1.2", "3,1.2,0.6,0.9"]
    (run / "metrics.csv").write_text("\n".join(rows) + "\n")
    columns = {"path": paths, "label": labels, "prediction": preds, "probability": probability.numpy()}
    mild = (torch.from_numpy(logits) / 2).softmax(1).float().amax(1).numpy()
    pq.write_table(pa.table(columns | {"calibrated_probability": mild}), run / "predictions.parquet")
    pq.write_table(pa.table({"path": paths, "label": labels, "split": ["test"] * total}), run / "splits.parquet")
    write_json(run / "leaks.json", {"count": 0, "threshold": 0.98, "images": total, "of": total, "pairs": []})
    vectors = torch.from_numpy(logits).float() + 0.1
    made = {"versions": {"transferkit": "0.1.0", "torch": "2.14"}, "weights_sha256": "ab" * 32}
    Embeddings(vectors, paths, labels, ["test"] * total, made).save(run / "embeddings.parquet")
    write_audit(run, paths, labels, preds)
    return Example(run, paths, labels, preds, probability.numpy(), metrics)


def write_audit(run: Path, paths: Sequence[str], labels: Sequence[str], preds: Sequence[str]) -> None:
    """Write an audit that finds the mistakes to be wrong labels, the first image to be an outlier."""
    wrong = [row for row, label in enumerate(labels) if preds[row] != label][:40]
    rows = [*(("label", 0.9, row) for row in wrong), ("outlier", 0.4, 0)]
    columns = {
        "issue": [kind for kind, _, _ in rows], "score": [score for _, score, _ in rows],
        "path": [paths[row] for *_, row in rows], "label": [labels[row] for *_, row in rows],
        "split": ["test"] * len(rows), "suggested": [preds[row] for *_, row in rows], "detail": [""] * len(rows),
    }  # fmt: skip
    pq.write_table(pa.table(columns), run / "audit.parquet")
    counts = {"label": len(wrong), "outlier": 1}
    total = len(paths)
    summary = {"rows": total, "of": total, "labeled": total, "judged": total, "counts": counts, "remarks": []}
    write_json(run / "audit.json", summary)


def write_photographed_run(root: Path) -> Example:
    """Write a run of 2,000 images in 50 classes, as hard to compress as photographs: noise on all scales."""
    example = write_run(root, [f"class {number:02d}" for number in range(50)], per_class=40, images=False)
    rng = np.random.default_rng(0)
    for path in example.paths:
        pixels = sum(
            np.kron(rng.normal(0, 12, (300 // size + 1, 400 // size + 1, 3)), np.ones((size, size, 1)))[:300, :400]
            for size in (2, 8, 32, 128)
        )
        Image.fromarray(np.clip(128 + 2 * pixels, 0, 255).astype(np.uint8)).save(root / "images" / path, quality=85)
    return example


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content))
