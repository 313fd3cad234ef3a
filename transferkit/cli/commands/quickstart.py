"""``quickstart``: transfer learning on built-in digits, start to end."""

from pathlib import Path
from typing import TYPE_CHECKING

from transferkit.cli import console
from transferkit.cli.parsing import call

if TYPE_CHECKING:
    from transferkit.training.demo import Row


def main(arguments: list[str]) -> int:
    """Run the command; return the exit status."""
    return call(quickstart, arguments)


def quickstart(
    out: str = "runs/quickstart", n_per_class: int = 5, seeds: int = 3, resnet_epochs: int = 16, vit_epochs: int = 30
) -> int:
    """Show the benefit of transfer learning on scikit-learn's handwritten digits, without a network connection.

    A ResNet18 and a small ViT learn the digits 0 to 4 from scratch and are exported as extractors; the digits
    5 to 9 are then learned from a few examples each: from scratch, on random frozen features, on the transferred
    features, and by fine-tuning. The table shows the accuracy on held-out digits.

    Features learned on five digits distinguish those five: frozen, they need not beat random features, which
    preserve the pixels, on images as simple as these. The benefit shows in fine-tuning.

    Args:
        out: directory for runs, extractors, embeddings and the table.
        n_per_class: training images per class of the digits 5 to 9.
        seeds: number of draws of these images.
        resnet_epochs: epochs of ResNet18 on the digits 0 to 4.
        vit_epochs: epochs of the ViT on the digits 0 to 4.
    """
    from transferkit.errors import UserError
    from transferkit.training import demo
    from transferkit.training.trainer import quiet_libraries

    counts = {"n_per_class": n_per_class, "resnet_epochs": resnet_epochs, "vit_epochs": vit_epochs, "seeds": seeds}
    for name, value in counts.items():
        if value < 1:
            raise UserError(f"--{name} is {value}; give 1 or more")
    quiet_libraries()
    folder = Path(out)
    rows = demo.run(folder, n_per_class, seeds, {"ResNet18": resnet_epochs, "ViT": vit_epochs})
    print_table(rows, n_per_class, seeds)
    for name in demo.BACKBONES:
        best, other = (demo.best(rows, name, transferred) for transferred in (True, False))
        gain = 100 * (best.accuracy - other.accuracy)
        verdict = f"transfer gained {gain:.1f} points" if gain > 0 else f"transfer gained nothing ({gain:.1f} points)"
        print(f"{name}: {verdict}: {best.approach} {best.accuracy:.3f}, {other.approach} {other.accuracy:.3f}")
    print(f"extractors: {folder}/resnet18-extractor {folder}/vit-extractor")
    print(f"table: {folder}/table.csv")
    print(f"embeddings, predictions and similarity metrics of each draw: {folder}/BACKBONE-APPROACH/DRAW/")
    print("next: transferkit fit --config resnet18.yaml --data.root YOUR_FOLDER_OF_CLASS_FOLDERS")
    print(f"  without a network: transferkit fit --data.root digits --model.backbone {folder}/resnet18-extractor")
    return 0


def print_table(rows: list["Row"], n_per_class: int, seeds: int) -> None:
    """Print the results, one approach per line."""
    from transferkit.training.demo import PRETRAINING

    columns = ("backbone", "digits", "approach", "width", "parameters", "learn", "accuracy", "seconds")
    cells = []
    for r in rows:
        digits = "0 to 4" if r.approach == PRETRAINING else "5 to 9"
        accuracy = f"{r.accuracy:.3f}" if r.std is None else f"{r.accuracy:.3f} ± {r.std:.3f}"
        network = (r.embed_dim, r.parameters, r.learning)
        cells.append([r.backbone, digits, r.approach, *network, accuracy, f"{r.seconds:.1f}"])
    draws = f"mean ± std of {seeds} draws" if seeds > 1 else "one draw"
    console.table(columns, cells, f"Digits 5 to 9 from {n_per_class} examples each, {draws}; seconds of one")
