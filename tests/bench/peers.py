"""How other tools fine-tune the same network on the same pixels, each with its own defaults.

A recipe takes the task and returns the model that it has trained; images are already preprocessed, so that recipes
differ in how they learn alone. None validates: each trains for the same number of epochs and gives its last weights.
"""

import contextlib
import io
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset


@dataclass(frozen=True)
class Task:
    """What a recipe gets.

    Attributes:
        backbone: the pretrained network, images `(B, 3, H, W)` to embeddings `(B, D)`; a copy that may be changed.
        width: D.
        classes: K.
        pixels: `(N, 3, H, W)` float32, the training images.
        target: `(N,)` int64.
        epochs: how often each image is seen.
        seed: of the head and of the order.
    """

    backbone: nn.Module
    width: int
    classes: int
    pixels: Tensor
    target: Tensor
    epochs: int
    seed: int

    def model(self) -> nn.Sequential:
        """Return the backbone, all of it to be trained, under a new linear head."""
        return nn.Sequential(self.backbone.requires_grad_(), nn.Linear(self.width, self.classes))

    def loader(self, batch_size: int) -> DataLoader[tuple[Tensor, ...]]:
        """Return shuffled batches; a last one of a single image is left out, since BatchNorm refuses it."""
        lone = len(self.target) % batch_size == 1
        return DataLoader(TensorDataset(self.pixels, self.target), batch_size, shuffle=True, drop_last=lone)


Optimize = Callable[[nn.Module], torch.optim.Optimizer]


def loop(
    task: Task,
    batch_size: int,
    optimize: Optimize,
    schedule: Callable[[torch.optim.Optimizer], Any] | None = None,
    smoothing: float = 0.0,
) -> nn.Module:
    """Run a plain loop; the schedule, if there is one, steps after each epoch."""
    model = task.model().train()
    optimizer = optimize(model)
    scheduler = schedule(optimizer) if schedule else None
    for epoch in range(1, task.epochs + 1):
        for images, target in task.loader(batch_size):
            optimizer.zero_grad()
            F.cross_entropy(model(images), target, label_smoothing=smoothing).backward()
            optimizer.step()
        if isinstance(scheduler, torch.optim.lr_scheduler.LRScheduler):
            scheduler.step()
        elif scheduler:  # timm's
            scheduler.step(epoch)
    return model


def tutorial(task: Task) -> nn.Module:
    """PyTorch's transfer learning tutorial: batches of 4, SGD at 1e-3 with momentum 0.9, a tenth every 7 epochs."""

    def decay(optimizer: torch.optim.Optimizer) -> Any:
        return torch.optim.lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.1)

    return loop(task, 4, lambda model: torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9), decay)


def adamw(task: Task) -> nn.Module:
    """AdamW at 1e-3, batches of 32, no schedule."""
    return loop(task, 32, lambda model: torch.optim.AdamW(model.parameters(), 1e-3))


def sgd(task: Task) -> nn.Module:
    """SGD at 1e-2 with momentum 0.9, batches of 32, no schedule."""
    return loop(task, 32, lambda model: torch.optim.SGD(model.parameters(), 1e-2, momentum=0.9))


def timm_recipe(task: Task) -> nn.Module:
    """timm's train.py: SGD with Nesterov momentum at 0.1 x batch / 256, cosine decay, label smoothing 0.1.

    Its five epochs of warm-up are a fifth of the budget here.
    """
    from timm.optim import create_optimizer_v2
    from timm.scheduler import CosineLRScheduler

    def optimize(model: nn.Module) -> torch.optim.Optimizer:
        return create_optimizer_v2(model, "sgd", lr=0.1 * 32 / 256, weight_decay=2e-5, momentum=0.9)

    def cosine(optimizer: torch.optim.Optimizer) -> Any:
        return CosineLRScheduler(optimizer, task.epochs, warmup_t=max(1, task.epochs // 5), warmup_lr_init=1e-5)

    return loop(task, 32, optimize, cosine, smoothing=0.1)


def fastai_fine_tune(task: Task) -> nn.Module:
    """fastai's `fine_tune`: an epoch of the head, then all with discriminative rates and one cycle; batches of 64.

    Of fewer images it would drop the only batch and train nothing; a user then gives a smaller one.
    """
    from fastai.data.load import DataLoader as Loader  # type: ignore[import-not-found]
    from fastai.learner import Learner, params  # type: ignore[import-not-found]
    from fastai.vision.all import DataLoaders  # type: ignore[import-not-found]

    rows = list(zip(task.pixels, task.target, strict=True))
    size = min(64, len(rows))
    loaders = DataLoaders(*(Loader(rows, bs=size, shuffle=train, drop_last=train) for train in (True, False)))
    halves = lambda model: [params(model[0]), params(model[1])]  # noqa: E731  # of the body and of the head
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        learner = Learner(loaders, task.model(), F.cross_entropy, splitter=halves, path=folder)
        with learner.no_bar(), learner.no_logging():
            learner.fine_tune(task.epochs - 1)
    return learner.model


def hugging_face_trainer(task: Task) -> nn.Module:
    """transformers' Trainer: AdamW at 5e-5 with linear decay, batches of 8."""
    from transformers import Trainer, TrainingArguments

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = task.model()

        def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
            logits = self.model(pixel_values)
            return {"loss": F.cross_entropy(logits, labels), "logits": logits}

    rows = [{"pixel_values": x, "labels": y} for x, y in zip(task.pixels, task.target, strict=True)]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        options = TrainingArguments(
            folder, num_train_epochs=task.epochs, seed=task.seed, use_cpu=True, report_to="none", save_strategy="no",
            disable_tqdm=True, logging_strategy="no", dataloader_pin_memory=False,
            dataloader_drop_last=len(rows) % 8 == 1,
        )  # fmt: skip
        model = Classifier()
        Trainer(model, options, train_dataset=rows).train()  # type: ignore[arg-type]
    return model.model


PEERS: dict[str, tuple[str, Callable[[Task], nn.Module]]] = {  # the package that each needs
    "PyTorch tutorial": ("torch", tutorial),
    "AdamW 1e-3": ("torch", adamw),
    "SGD 1e-2": ("torch", sgd),
    "timm": ("timm", timm_recipe),
    "fastai": ("fastai", fastai_fine_tune),
    "Hugging Face Trainer": ("transformers", hugging_face_trainer),
}
