"""The LightningModule of a distillation: a backbone learns to give what the teacher gives, through a projection."""

from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from transferkit.data.batches import Batch
from transferkit.errors import UserError
from transferkit.extractor import Extractor
from transferkit.extractor.checkpoint_reader import DISTILLED, FORMAT, KEY
from transferkit.extractor.forward import training_input
from transferkit.images.augmentation import view_seed
from transferkit.runtime.versions import versions
from transferkit.training.checkpoints import current_metrics, mend_progress
from transferkit.training.distill_losses import center_of, direction_loss, on_grid, relation_loss
from transferkit.training.metrics import TrainingEpoch
from transferkit.training.optimizers import CosineWithWarmup, gradient_descent
from transferkit.training.shared_views import Cells, as_map

WARMUP_EPOCHS = 1.0


class DistillModule(LightningModule):
    """Train a backbone to give a teacher's embedding, relations between images, and patches.

    The loss is the sum of :func:`~transferkit.training.distill_losses.direction_loss` of the embedding,
    :func:`~transferkit.training.distill_losses.relation_loss`, and the direction loss of the patches, all three after a
    linear projection and from the teacher's mean.

    Args:
        student: whose backbone learns.
        others: (Q, D) the teacher's embeddings of the images that each one is related to.
        patch_center: (C,) mean of the teacher's patches; None compares no patches.
        cells: rows and columns of the grid of patches.
        lr: learning rate, after a warm-up of an epoch and before a cosine to zero.
        weight_decay: of AdamW, on linear layers and convolutions.
        seed: of the projection, and of what is random in the student.
        origin: what student and teacher are, for the record.

    Attributes:
        monitor: the metric whose highest value decides on ``best.ckpt``. The loss would choose an early epoch where
            images are few: its relations to images that are learned by heart grow too sure.
        validated_at: global step of the last validation.
    """

    monitor = "val/cosine"

    def __init__(
        self,
        student: Extractor,
        others: Tensor,
        patch_center: Tensor | None,
        cells: Cells,
        lr: float,
        weight_decay: float,
        seed: int,
        origin: dict[str, Any],
    ) -> None:
        super().__init__()
        self.backbone, self.preprocessing = student.backbone, student.preprocessing
        self.cells, self.seed, self.origin = cells, seed, origin
        self.rates = {"lr_head": lr, "lr_backbone": lr, "weight_decay": weight_decay}
        center = center_of(others)
        self.register_buffer("center", center, persistent=False)
        self.register_buffer("others", others - center, persistent=False)
        self.register_buffer("patch_center", patch_center, persistent=False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.projections = nn.ModuleDict({"embedding": nn.Linear(student.embed_dim, others.shape[1])})
            if patch_center is not None:
                blank = torch.zeros(1, 3, *student.preprocessing.image_size, device=student.device)
                with torch.no_grad():
                    width = as_map(self.backbone.forward_features(blank), blank).shape[1]
                self.projections["patches"] = nn.Linear(width, len(patch_center))
        self.training_epoch = TrainingEpoch()
        self.validated_at: int | None = None

    center: Tensor
    others: Tensor
    patch_center: Tensor | None

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the projected embedding and patches of uint8 pixels: (B, D), (B, cells, C) or None."""
        inputs = training_input(self.backbone, self.preprocessing, pixels)
        if self.patch_center is None:
            return self.projections["embedding"](self.backbone(inputs)), None
        features, embedding = self.backbone.forward_both(inputs)
        patches = on_grid(as_map(features, inputs), self.cells)
        return self.projections["embedding"](embedding), self.projections["patches"](patches)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the parts of the loss of each image, (B,) each; the projections learn what is left of the center."""
        embedding, patches = self(batch["pixels"])
        teacher = batch["teacher"] - self.center
        found = {
            "direction": direction_loss(embedding.float(), teacher),
            "relation": relation_loss(embedding.float(), teacher, self.others),
        }
        if patches is not None and self.patch_center is not None:
            found["patches"] = direction_loss(patches.float(), batch["patches"] - self.patch_center)
        return found

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW with a cosine schedule."""
        options = {"optimizer": "adamw", "momentum": 0.0, "layer_decay": 1.0, "regime": "full", **self.rates}
        return gradient_descent(self.backbone, self.projections, options, self.trainer, fitted=False)

    def on_fit_start(self) -> None:
        """Set train mode, which Lightning leaves as it finds it."""
        self.train()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed dropout by epoch and batch, so that a resumed fit repeats it, and set the learning rates."""
        torch.manual_seed(view_seed(self.seed, self.current_epoch, batch_idx))
        schedule = self.lr_schedulers()
        assert isinstance(schedule, CosineWithWarmup)
        schedule.follow(self.trainer, batch_idx, WARMUP_EPOCHS)
        self.training_epoch.begin(self.trainer.optimizers[0])

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of one batch."""
        losses = torch.stack([*self.losses(batch).values()]).sum(0)
        self.training_epoch.loss.update(losses, torch.ones_like(losses))
        return losses.mean()

    def on_train_epoch_end(self) -> None:
        """Log the loss, the time of the epoch in seconds and its first learning rates.

        Raises:
            UserError: the loss is not finite.
        """
        values = self.training_epoch.end(self.trainer.strategy)
        if not values["train/loss"].isfinite():
            raise UserError(
                f"the training has diverged: the loss of epoch {self.current_epoch + 1} is not finite; "
                "give a lower rate: `lr`"
            )
        self.log_dict(values)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the loss under ``val/`` and its parts, as means over the images; the direction as a cosine."""
        parts = {name: losses.mean() for name, losses in self.losses(batch).items()}
        values = {"val/loss": torch.stack([*parts.values()]).sum(), "val/cosine": 1 - parts.pop("direction")}
        values |= {f"val/{name}": value for name, value in parts.items()}
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=len(batch["row"]))

    def on_validation_epoch_end(self) -> None:
        """Note the step that the losses were measured at."""
        self.validated_at = None if self.trainer.sanity_checking else self.trainer.global_step

    def describe(self) -> dict[str, Any]:
        """Return a plain-typed record: all that an extractor needs, and how it was made."""
        return {
            "format": FORMAT,
            "complete": True,
            "backbone": self.backbone.spec() | {"preprocessing": self.preprocessing.to_dict()},
            "class_names": [],
            "l2_normalize": False,
            "regime": DISTILLED,
            "versions": versions(),
            "metrics": current_metrics(self.trainer, self.validated_at),
            **self.origin,
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the record."""
        checkpoint[KEY] = self.describe()
        mend_progress(checkpoint, self.trainer)
