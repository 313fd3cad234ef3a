"""``quickstart``: transfer learning on drawn symbols and handwritten digits, start to end."""

from pathlib import Path
from typing import TYPE_CHECKING

from transferkit.cli import console
from transferkit.cli.parsing import call

if TYPE_CHECKING:
    from transferkit.training.demo_backbone import Row, Study


def main(arguments: list[str]) -> int:
    """Run the command; return the exit status."""
    return call(quickstart, arguments)


def quickstart(
    out: str = "runs/quickstart",
    n_per_class: int = 5,
    seeds: int = 5,
    drawings: int = 48,
    resnet_epochs: int = 3,
    vit_epochs: int = 9,
    seed: int = 0,
) -> int:
    """Show the benefit of transfer learning on scikit-learn's handwritten digits, without a network connection.

    A ResNet18 and a small ViT learn letters and punctuation marks drawn from fonts, no digit among them, and are
    exported as extractors. The ten digits are then learned from a few examples each: from scratch, on random frozen
    features, on the transferred features, and by fine-tuning. The table shows the accuracy on held-out digits.

    Args:
        out: directory for drawings, runs, extractors, embeddings, the table and a figure.
        n_per_class: training images per digit.
        seeds: number of draws of these images.
        drawings: images per letter or punctuation mark.
        resnet_epochs: epochs of ResNet18 on the drawings.
        vit_epochs: epochs of the ViT on the drawings.
        seed: of the drawings, the random weights and the draws.
    """
    from transferkit.errors import UserError
    from transferkit.training import demo
    from transferkit.training.demo_backbone import BACKBONES, Study

    counts = {"n_per_class": n_per_class, "resnet_epochs": resnet_epochs, "vit_epochs": vit_epochs, "seeds": seeds}
    least = {**dict.fromkeys(counts, 1), "drawings": 2}  # one to train on, one to test
    for name, value in {**counts, "drawings": drawings}.items():
        if value < least[name]:
            raise UserError(f"--{name} is {value}; give {least[name]} or more")
    pretraining = {"ResNet18": resnet_epochs, "ViT": vit_epochs}
    study = Study(Path(out), n_per_class, seeds, drawings, pretraining, seed=seed)
    rows = demo.run(study)
    print_table(rows, study)
    for name in BACKBONES:
        print(verdict(name, demo.best(rows, name, transferred=True), demo.best(rows, name, transferred=False)))
    print(f"table: {study.out / demo.TABLE}")
    print(f"figure: {study.out / demo.FIGURE}")
    print(f"drawings: {study.symbols}")
    print(f"extractors: {' '.join(str(study.extractor(name)) for name in BACKBONES)}")
    print(f"embeddings, predictions and similarity metrics of each draw: {study.out}/BACKBONE-APPROACH/DRAW/")
    print("next: transferkit fit --config resnet18.yaml --data.root YOUR_FOLDER_OF_CLASS_FOLDERS")
    print(f"  without a network: transferkit fit --data.root digits --model.backbone {study.extractor('ResNet18')}")
    return 0


def verdict(name: str, transferred: "Row", other: "Row") -> str:
    """Say in one line what transfer gained."""
    gain = 100 * (transferred.accuracy - other.accuracy)
    said = f"transfer gained {gain:.1f} points" if gain > 0 else f"transfer gained nothing ({gain:.1f} points)"
    best, without = (f"{row.approach} {accuracy(row)}" for row in (transferred, other))
    return f"{name}: {said}: {best}, without transfer at best {without}"


def accuracy(row: "Row") -> str:
    """Return the accuracy with its standard deviation."""
    return f"{row.accuracy:.3f}" if row.std is None else f"{row.accuracy:.3f} ± {row.std:.3f}"


def print_table(rows: list["Row"], study: "Study") -> None:
    """Print the results, one approach per line."""
    from transferkit.training.demo_backbone import PRETRAINING

    columns = ("backbone", "images", "approach", "width", "parameters", "learn", "accuracy", "seconds")
    cells = []
    for r in rows:
        images = "symbols" if r.approach == PRETRAINING else "digits"
        network = (r.embed_dim, r.parameters, r.learning)
        cells.append([r.backbone, images, r.approach, *network, accuracy(r), f"{r.seconds:.1f}"])
    draws = f"mean ± std of {study.draws} draws" if study.draws > 1 else "one draw"
    console.table(columns, cells, f"Ten digits from {study.n_per_class} examples each, {draws}; seconds of one")
