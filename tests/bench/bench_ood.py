"""How well distances from the training images tell images of another kind: area under the ROC curve (AUROC).

python -m tests.bench.bench_ood [--images 300]

Photographs of hymenoptera against digits and drawn images with DINOv2-S; digits 0 to 4 against 5 to 9 with ResNet18 of
CIFAR-10. References are the training images, those of val are to be told from the others. ``stage`` is where the
embeddings are from: predict takes the stage before the last.
"""

import argparse
import csv
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from sklearn.metrics import roc_auc_score

from tests.bench.inputs import SHARED
from transferkit.data.image_table import ImageTable, open_images
from transferkit.embed.in_memory import embed
from transferkit.extractor import Extractor
from transferkit.extractor.calibration import DISTANCES, Calibration, inner_stage


def measure(name: str, extractor: Extractor, train: ImageTable, val: ImageTable, others: dict[str, ImageTable]) -> None:
    """Write a row of CSV for each kind of other images, stage and distance."""
    classes = sorted(set(map(str, train.labels)))
    for stage in (inner_stage(extractor.backbone), None):
        forward = extractor.forward(layer=stage)
        tables = [embed(table, extractor, forward=forward, on_error="skip") for table in (train, val)]
        train_target, target = (torch.tensor([classes.index(str(k)) for k in table.labels]) for table in tables)
        reference, known = (table.embedding for table in tables)
        logits = torch.nn.functional.one_hot(target, len(classes)).float()  # the distances do not depend on them
        calibration = Calibration.fit(logits, target, classes, known, reference, train_target, stage)
        for kind, table in others.items():
            strange = embed(table, extractor, forward=forward).embedding
            for distance in DISTANCES:
                near, far = calibration.tensors[distance], calibration.distance(strange, distance)
                is_far = [0] * len(near) + [1] * len(far)
                auroc = roc_auc_score(is_far, torch.cat([near, far]).numpy())
                caught = float((far > calibration.distance_threshold(distance)).double().mean())
                last = extractor.backbone.stage_names[-1]
                row = (
                    name,
                    kind,
                    stage or f"{last} (last)",
                    distance,
                    len(near),
                    len(far),
                    f"{auroc:.4f}",
                    f"{caught:.3f}",
                )
                csv.writer(sys.stdout).writerow(row)
                sys.stdout.flush()


def every(table: ImageTable, rows: Sequence[int], most: int) -> ImageTable:
    """At most so many of the rows, evenly spread."""
    return table.select(rows[:: -(-len(rows) // most)])


def draw(folder: Path, count: int) -> ImageTable:
    """Write images of a few ellipses and rectangles in flat colors."""
    random = np.random.default_rng(0)
    for number in range(count):
        image = Image.new("RGB", (256, 256), tuple(random.integers(0, 256, 3).tolist()))
        for _ in range(random.integers(2, 8)):
            (x1, x2), (y1, y2) = (sorted(random.integers(0, 256, 2).tolist()) for _ in range(2))
            pen = ImageDraw.Draw(image)
            shape = pen.ellipse if random.random() < 0.5 else pen.rectangle
            shape((x1, y1, x2, y2), fill=tuple(random.integers(0, 256, 3).tolist()))
        image.save(folder / f"{number:04}.png")
    return open_images(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=300, help="images of each other kind, and of digits")
    most = parser.parse_args().images
    names = ("data", "against", "stage", "distance", "images", "others", "AUROC", "caught at 5% false alarms")
    csv.writer(sys.stdout).writerow(names)
    digits = open_images("digits")
    low, high = ([r for r, label in enumerate(digits.labels) if (str(label) > "4") == upper] for upper in (False, True))
    weights = str(SHARED / "checkpoints" / "resnet18-cifar10.safetensors")
    size = {"resize": [64, 64], "crop": [64, 64]}
    cifar = Extractor.from_pretrained("resnet18", weights, preprocessing=size)
    train, val = digits.select(low[::2]), every(digits, low[1::2], most)
    measure("digits 0-4", cifar, train, val, {"digits 5-9": every(digits, high, most)})
    photos = open_images(SHARED / "data" / "hymenoptera")
    train, val = (photos.select(r for r, s in enumerate(photos.splits) if s == split) for split in ("train", "val"))
    dino = Extractor.from_pretrained(SHARED / "checkpoints" / "dinov2-small-saliency")
    with tempfile.TemporaryDirectory() as folder:
        others = {"digits": every(digits, range(len(digits)), most), "drawn": draw(Path(folder), most)}
        measure("hymenoptera", dino, train, val, others)


if __name__ == "__main__":
    main()
