"""Frozen `fit`, 25 epochs, against the loop of PyTorch's transfer-learning tutorial.

https://docs.pytorch.org/tutorials/beginner/transfer_learning_tutorial.html, "ConvNet as fixed feature extractor": its
transforms, batch size, optimiser and schedule, and its 4 loading processes.
"""

import copy
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from tests.bench.inputs import Network, photographs, resnet, workplace
from tests.bench.row_frozen import fit
from tests.bench.timing import Row, Seconds, Turns, in_turns, settled
from transferkit.similarity.intervals import wilson

EPOCHS, REDUCED = 25, 1
SCALE = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
TRAIN = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), transforms.ToTensor(), SCALE]
VAL = [transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(), SCALE]


def rows(full: bool) -> Iterator[Row]:
    """Compare both; at reduced size the tutorial runs one epoch, scaled to 25, so its accuracy is that of one epoch."""
    with workplace() as place:
        folder, network = photographs(place, None if full else 160), resnet(place)
        count = len(list(folder.glob("val/*/*.jpg")))
        epochs = EPOCHS if full else REDUCED
        accuracies: list[float] = []

        def turns() -> Turns:
            ours, theirs = in_turns(
                lambda: accuracies.append(fit(network, folder, place, EPOCHS)),
                lambda: accuracies.append(tutorial(network, folder, epochs)),
            )
            return ours, [Seconds(*(EPOCHS / epochs * value for value in side)) for side in theirs]

        ours, theirs = turns()
        a, b = max(accuracies[::2]), max(accuracies[1::2])
        low, high = wilson(round(b * count), count)
        conditions = {f"accuracy {a:.3f} no lower than {low:.3f} (theirs {b:.3f}, to {high:.3f})": a >= low}
        note = "" if full else f"the tutorial ran {epochs} epoch, its time is scaled to {EPOCHS}"
        what, against = "frozen fit ResNet18, 25 epochs", "the PyTorch tutorial's loop"
        yield settled(Row(what, against, "faster", 20, ours, theirs, conditions, note), turns)


def tutorial(network: Network, folder: Path, epochs: int) -> float:
    """Run the tutorial's `train_model`; return the highest accuracy on val."""
    torch.manual_seed(0)
    model = copy.deepcopy(network.module)
    for parameter in model.parameters():
        parameter.requires_grad = False
    model.fc = nn.Linear(512, 2)
    optimizer = torch.optim.SGD(model.fc.parameters(), lr=0.001, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.1)
    recipes = {"train": TRAIN, "val": VAL}
    data = {split: ImageFolder(str(folder / split), transforms.Compose(recipes[split])) for split in recipes}
    loaders = {split: DataLoader(part, batch_size=4, shuffle=True, num_workers=4) for split, part in data.items()}
    best = 0.0
    for _ in range(epochs):
        model.train()
        for pixels, target in loaders["train"]:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(pixels), target).backward()
            optimizer.step()
        scheduler.step()
        model.eval()
        with torch.no_grad():
            right = sum(int((model(pixels).argmax(1) == target).sum()) for pixels, target in loaders["val"])
        best = max(best, right / len(data["val"]))
    return best
