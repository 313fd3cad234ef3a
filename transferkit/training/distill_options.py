"""The options of a distillation, for the command line and Python; torch is not imported."""

import math
from dataclasses import asdict, dataclass
from typing import Literal

from transferkit.data.option_ranges import check_values
from transferkit.errors import UserError


@dataclass(frozen=True)
class DistillOptions:
    """What a distillation is started with, and what its ``config.yaml`` holds besides the images.

    Args:
        teacher: the network to learn from: a Hugging Face id or directory, torchvision name, export or checkpoint.
        student: the network that learns, as for teacher.
        weights: that the student starts from: DEFAULT, none (random) or a file of weights.
        image_size: side of what the student sees, in pixels; by default its own.
        teacher_size: side of what the teacher sees; by default its own.
        epochs: passes over the images.
        views: fixed views per image: the first is the plain one, others are random crops. The teacher costs one pass
            per view, before the first epoch.
        patches: compare the grids of patches, too.
        relations: number of images that each one is related to, at most all.
        batch_size: images per step.
        lr: learning rate, after a warm-up.
        weight_decay: of AdamW.
        val_fraction: share of the images that is held out for the validation loss, where no val is given.
        seed: of random weights, views, held-out images and the order.
        on_error: unreadable images: fail names them all, skip leaves them out.
        num_workers: loading processes; by default one per core but one, at most 8.
        accelerator: auto is a GPU if there is one.
        precision: of Lightning's Trainer, such as bf16-mixed; auto is that where the device has it.
    """

    teacher: str = "facebook/dinov2-small"
    student: str = "resnet18"
    weights: str = "DEFAULT"
    image_size: int | None = None
    teacher_size: int | None = None
    epochs: int = 50
    views: int = 1
    patches: bool = True
    relations: int = 1024
    batch_size: int = 32
    lr: float = 1e-3
    weight_decay: float = 0.01
    val_fraction: float = 0.1
    seed: int = 0
    on_error: Literal["fail", "skip"] = "fail"
    num_workers: int | None = None
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = "auto"
    precision: str = "32-true"

    def __post_init__(self) -> None:
        """Validate types and ranges.

        Raises:
            UserError: naming the argument.
        """
        check_values(type(self), asdict(self))
        for name in ("epochs", "views", "relations", "batch_size", "image_size", "teacher_size"):
            if (value := getattr(self, name)) is not None and value < (2 if name == "batch_size" else 1):
                raise UserError(f"`{name}` is {value}; give {2 if name == 'batch_size' else 1} or more")
        if not 0 < self.lr < math.inf:
            raise UserError(f"`lr` is {self.lr}; give a number above 0")
        for name in ("weight_decay", "num_workers"):
            if (value := getattr(self, name)) is not None and not 0 <= value < math.inf:
                raise UserError(f"`{name}` is {value}; give a number from 0 up")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"`seed` is {self.seed}; give a whole number from 0 to {2**32 - 1}")
        if not 0 < self.val_fraction < 1:
            raise UserError(f"`val_fraction` is {self.val_fraction}; give a number between 0 and 1")
