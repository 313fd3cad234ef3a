"""How well an audit finds wrong labels, beside cleanlab's own score of the same probabilities.

python -m tests.bench.bench_label_errors [digits hymenoptera]

Of all labels 5, 10 and 20 % are flipped, to any other class (uniform) or to the class whose mean embedding is nearest
(similar), with five seeds. A row of CSV has means over the seeds: the area under the ROC curve (AUROC) of the audit's
quality of a label and of cleanlab's self-confidence; the worst difference of the two; the share of flips among as many
labels of lowest quality as there are flips (precision at the number of flips); precision and recall of the labels that
the audit lists; and how many of the listed flips get their right class suggested. Digits are embedded with ResNet18 of
CIFAR-10 at 64 pixels, hymenoptera with DINOv2-S. Two classes have one way to be flipped.
"""

import argparse
import csv
import sys
from collections.abc import Iterator, Sequence
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from cleanlab.rank import get_label_quality_scores
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from tests.bench.inputs import SHARED
from transferkit.data.embeddings import Embeddings
from transferkit.data.image_table import open_images
from transferkit.embed import cached_features
from transferkit.extractor import Extractor
from transferkit.probe import audit
from transferkit.probe.out_of_fold import out_of_fold
from transferkit.similarity import class_codes, unit_rows

SEEDS = range(5)
RATES = (0.05, 0.1, 0.2)
COLUMNS = (
    "data", "images", "flips", "rate", "AUROC", "cleanlab's", "worst difference", "precision at number of flips",
    "precision of listed", "recall of listed", "right suggestion",
)  # fmt: skip


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="*", default=["digits", "hymenoptera"], help="digits, hymenoptera")
    out = csv.writer(sys.stdout)
    out.writerow(COLUMNS)
    for name in parser.parse_args().data:
        table = {"digits": digits, "hymenoptera": hymenoptera}[name]()
        for row in rows_of(table):
            out.writerow((name, len(table), *row))
            sys.stdout.flush()


def digits() -> Embeddings:
    """Scikit-learn's 1,797 digits."""
    weights = str(SHARED / "checkpoints" / "resnet18-cifar10.safetensors")
    size = {"resize": [64, 64], "crop": [64, 64]}
    return cached_features(Extractor.from_pretrained("resnet18", weights, preprocessing=size), open_images("digits"))


def hymenoptera() -> Embeddings:
    """Photographs of ants and bees."""
    extractor = Extractor.from_pretrained(SHARED / "checkpoints" / "dinov2-small-saliency")
    return cached_features(extractor, open_images(SHARED / "data" / "hymenoptera"))


def rows_of(table: Embeddings) -> Iterator[tuple[str, ...]]:
    """Measure every way and rate of flipping."""
    names, (codes,) = class_codes(table.labels)
    target, unit = codes.numpy(), unit_rows(table.embedding)
    means = unit_rows(torch.stack([unit[codes == number].mean(0) for number in range(len(names))]))
    alike = (means @ means.T).fill_diagonal_(-2).argmax(1).numpy()
    for kind in ("uniform", "similar") if len(names) > 2 else ("uniform",):
        for rate in RATES:
            found = np.array([measure(table, target, kind, rate, seed, alike, names) for seed in SEEDS])
            mean = found.mean(0)
            worst = (found[:, 0] - found[:, 1]).min()
            yield (
                kind,
                f"{rate:g}",
                f"{mean[0]:.4f}",
                f"{mean[1]:.4f}",
                f"{worst:+.4f}",
                *(f"{v:.3f}" for v in mean[2:]),
            )


def measure(
    table: Embeddings,
    target: NDArray[np.int64],
    kind: str,
    rate: float,
    seed: int,
    alike: NDArray[np.int64],
    names: Sequence[object],
) -> tuple[float, ...]:
    """Flip labels, audit them, and return what a row has, but for the difference."""
    rng = np.random.default_rng(seed)
    any_other = (target + rng.integers(1, len(names), len(target))) % len(names)
    wrong = np.zeros(len(target), dtype=bool)
    wrong[rng.permutation(len(target))[: round(rate * len(target))]] = True
    noisy = np.where(wrong, alike[target] if kind == "similar" else any_other, target)
    labels = [str(names[number]) for number in noisy]
    audited = Embeddings(table.embedding, table.paths, labels, [None] * len(labels), {})
    probability = torch.empty(0)

    def kept(*arguments: Any, **options: Any) -> tuple[torch.Tensor, float]:
        nonlocal probability
        probability, c = out_of_fold(*arguments, **options)
        return probability, c

    with patch.object(audit, "out_of_fold", kept):
        found = audit.audit_embeddings(audited)
    theirs = get_label_quality_scores(noisy, probability.double().numpy())
    ours = np.array([found.quality[path] for path in table.paths])
    row_of = {path: row for row, path in enumerate(table.paths)}
    listed = {row_of[each.path]: each.suggested for each in found.issues if each.issue == "label"}
    caught = [row for row in listed if wrong[row]]
    return (
        roc_auc_score(wrong, -ours),
        roc_auc_score(wrong, -theirs),
        wrong[np.argsort(ours, kind="stable")[: wrong.sum()]].mean(),
        len(caught) / max(1, len(listed)),
        len(caught) / wrong.sum(),
        np.mean([listed[row] == str(names[target[row]]) for row in caught]) if caught else 0.0,
    )


if __name__ == "__main__":
    main()
