"""The LightningModule: an extractor's backbone and a linear head, trained on labelled images."""

import logging
import math
import os
import time
from collections.abc import Mapping
from typing import Any, Literal

import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MetricCollection

from transferkit.data.augmentation import view_seed
from transferkit.data.batches import Batch
from transferkit.data.datamodule import ImageDataModule
from transferkit.embed import fill_features
from transferkit.errors import UserError
from transferkit.extractor import Extractor
from transferkit.freezing import Regime, first_trainable, freeze, set_mode
from transferkit.metrics import classification_metrics
from transferkit.module_record import RecordedModule
from transferkit.optimizers import (
    cosine_with_warmup,
    learning_rates,
    make_optimizer,
    may_fuse,
    optimizer_steps,
    parameter_groups,
)
from transferkit.probe import LinearClassifier

log = logging.getLogger(__name__)


class TransferModule(RecordedModule):
    """A backbone, frozen or fine-tuned, under a linear head.

    Args:
        backbone: torchvision name, Hugging Face id or directory, exported directory, or checkpoint.
        weights: ``DEFAULT``, ``none`` (random) or a path; with regime ``scratch`` none.
        pooling: how features become one embedding; ``None`` is the backbone's default.
        regime: ``frozen`` trains the head alone, ``partial`` also the last stages, ``full`` everything,
            ``scratch`` everything from random weights.
        unfreeze_last: how many stages learn with regime ``partial``.
        lr_head: learning rate of the head.
        lr_backbone: learning rate of the backbone's last stage.
        layer_decay: factor on the learning rate for each stage further from the head, in (0, 1].
        optimizer: ``adamw`` or ``sgd``.
        weight_decay: decoupled for ``adamw``, L2 for ``sgd``; not on norms, biases, tokens, position embeddings.
        momentum: of ``sgd``.
        warmup_epochs: epochs of linear warm-up before the cosine.
        label_smoothing: in [0, 1).
        dropout: on the embedding before the head, in [0, 1).
        l2_normalize: give the head L2-normalised embeddings; ``None`` is as the checkpoint's head had it, else false.
        head: ``classifier.safetensors`` of a probe of the same extractor, to start from; the data must have its
            classes, and ``l2_normalize`` comes from it (probe, then fine-tune: Kumar et al. 2022, arXiv:2202.10054).
        preprocessing: fields to override, such as ``{image_size: 160}``; ``None`` is the weights' own.
        architecture: changes to the architecture, for random weights only.
    """

    def __init__(
        self,
        backbone: str = "resnet18",
        weights: str = "DEFAULT",
        pooling: str | None = None,
        regime: Regime = "frozen",
        unfreeze_last: int = 1,
        lr_head: float = 3e-3,
        lr_backbone: float = 1e-4,
        layer_decay: float = 1.0,
        optimizer: Literal["adamw", "sgd"] = "adamw",
        weight_decay: float = 0.01,
        momentum: float = 0.9,
        warmup_epochs: float = 1.0,
        label_smoothing: float = 0.0,
        dropout: float = 0.0,
        l2_normalize: bool | None = None,
        head: str | None = None,
        preprocessing: dict[str, Any] | None = None,
        architecture: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        check_ranges(self.hparams)
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0))  # what seed_everything was given
        if regime == "scratch":
            if weights not in ("DEFAULT", "none"):
                raise UserError(f"--model.regime scratch takes no --model.weights {weights}; use regime full")
            weights = "none"
        classifier = LinearClassifier.load(head) if head else None
        extractor = Extractor.from_pretrained(backbone, weights, pooling, preprocessing, architecture)
        self.epoch: int | None = extractor.record.get("epoch")  # of the checkpoint that it was opened from
        self.backbone = extractor.backbone
        self.preprocessing = extractor.preprocessing
        self.class_names: list[str] = []
        self.head: nn.Linear | None = None  # made when the classes are known
        self.l2_normalize = extractor.l2_normalize if l2_normalize is None else l2_normalize
        if extractor.head and extractor.l2_normalize == self.l2_normalize:
            self.set_classes(extractor.class_names)
            self.head = extractor.head  # kept where the data has the same classes
        elif extractor.head:
            log.warning("--model.l2_normalize %s is not what the head of %s knows: a new one", l2_normalize, backbone)
        self.regime, self.dropout = regime, dropout
        if classifier:
            probed = classifier.on(extractor)
            self.set_classes(probed.class_names)
            self.head, self.l2_normalize = probed.head, probed.l2_normalize
        self.first_trainable = first_trainable(self.backbone, regime, unfreeze_last)
        freeze(self.backbone, self.first_trainable)
        self.class_weights: Tensor | None = None
        self.class_counts: dict[str, int] = {}
        self.image_counts: dict[str, int] = {}
        self.by_class: dict[str, Tensor] = {}
        self.train_loss = torch.zeros(2)  # sums of loss and of images over the epoch
        self.evaluation_loss = torch.zeros(2)

    def set_classes(self, names: list[str]) -> None:
        """Make a new head for the given classes; its weights depend on the seed alone."""
        self.class_names = list(names)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.head = nn.Linear(self.backbone.embed_dim, len(names))
        for stage in ("val", "test"):
            setattr(self, f"{stage}_metrics", classification_metrics(len(names), stage))

    def configure_callbacks(self) -> list[Callback]:
        """Where data and model meet: before callbacks are set up, since some then copy the module, head and all.

        Raises:
            UserError: the data does not suit the classes of a trained head.
        """
        stage = self.trainer.state.fn
        self.meet(self.data, stage.value if stage else "fit")
        return []

    def setup(self, stage: str) -> None:
        """Embed what a frozen backbone sees once, or check that every image can be read.

        Raises:
            UserError: broken images.
        """
        data = self.data
        if stage == "fit" and self.regime == "frozen" and data.caches_features:
            trainer = self.trainer
            extractor = self.as_extractor().to(trainer.strategy.root_device)
            fill_features(extractor, data, trainer.global_rank, trainer.world_size, trainer.strategy.barrier)
        elif stage == "fit":
            data.check_images(("train", "val"))
        else:
            data.check_images([data.test_split if stage == "test" else "val" if stage == "validate" else "predict"])
        if stage == "fit":
            self.class_weights = data.loss_weights()
            labels = data.tables["train"].labels
            self.class_counts = {name: labels.count(name) for name in self.class_names}
            self.image_counts = {name: len(table) for name, table in data.tables.items()}

    @property
    def data(self) -> ImageDataModule:
        """What the Trainer was given to train on or evaluate.

        Raises:
            UserError: something else than our DataModule.
        """
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, ImageDataModule):
            raise UserError("TransferModule needs transferkit's ImageDataModule: trainer.fit(module, datamodule)")
        return data

    def meet(self, data: ImageDataModule, stage: str) -> None:
        """Exchange classes and preprocessing with the data, checking what can be checked without decoding.

        Raises:
            UserError: the head to start from knows other classes than the data.
        """
        data.preprocessing, data.seed = self.preprocessing, self.seed
        data.setup(stage)
        if stage != "fit":
            data.set_class_names(self.class_names)
        elif self.class_names != data.class_names:
            if self.hparams["head"]:
                raise UserError(
                    f"the classes of {self.hparams['head']} are {', '.join(self.class_names)}, the data has "
                    f"{', '.join(data.class_names)}; probe this data, or leave out --model.head"
                )
            self.set_classes(data.class_names)
        if stage == "fit":
            data.loss_weights()  # refused now rather than after an hour of embedding
            if self.regime != "frozen" and data.views:
                log.warning("--data.views %d has no effect: only a frozen backbone is cached", data.views)

    @property
    def logged_names(self) -> set[str]:
        """What a fit logs, and a callback may monitor; the classes are known."""
        stage = "val"
        metrics: MetricCollection = getattr(self, f"{stage}_metrics")
        scalars = {str(name) for name in metrics} - {"val/acc_per_class", "val/confusion"}
        return scalars | {"val/loss", "train/loss", "epoch_time", "lr/head", "lr/backbone"}

    def train(self, mode: bool = True) -> "TransferModule":
        """Train or evaluate; frozen stages stay in eval mode, so that their BatchNorm does not move by a bit."""
        super().train(mode)
        set_mode(self.backbone, self.first_trainable, mode)
        return self

    def embed(self, batch: Batch) -> Tensor:
        """Embeddings of a batch, computed or cached: float (B, D)."""
        if "embedding" in batch:
            return batch["embedding"]
        pixels = self.preprocessing.normalize(batch["pixels"]).to(self.dtype)  # bf16-true and the like
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.regime != "frozen"):
            embedding: Tensor = self.backbone(pixels)
        return embedding

    def classify(self, embedding: Tensor) -> Tensor:
        """Class scores of embeddings: (B, D) -> (B, classes)."""
        if self.l2_normalize:
            embedding = F.normalize(embedding)
        assert self.head is not None  # setup() has made it
        scores: Tensor = self.head(F.dropout(embedding, self.dropout, self.training))
        return scores

    def forward(self, pixels: Tensor) -> Tensor:
        """Class scores of preprocessed pixels: uint8 (B, 3, h, w) -> (B, classes)."""
        return self.classify(self.embed({"pixels": pixels}))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Cross-entropy of one batch."""
        target = batch["target"]
        loss = self.loss(self.classify(self.embed(batch)), target, self.hparams["label_smoothing"])
        # self.log once a step takes longer than a step on cached embeddings
        self.train_loss += torch.stack([loss.detach() * len(target), loss.new_tensor(len(target))])
        return loss

    def loss(self, logits: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
        """Cross-entropy, weighted by class where the data says so."""
        weight = None if self.class_weights is None else self.class_weights.to(logits)
        return F.cross_entropy(logits, target, weight=weight, label_smoothing=smoothing)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Update the metrics under ``val/``."""
        self.evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Update the metrics under ``test/``; returns embedding, probability and row of each image."""
        return self.evaluate(batch, "test")

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Embedding (B, D), probability (B, classes) and row (B,) of each image."""
        embedding = self.embed(batch)
        return {"embedding": embedding, "probability": self.classify(embedding).softmax(1), "row": batch["row"]}

    def evaluate(self, batch: Batch, stage: Literal["val", "test"]) -> dict[str, Tensor]:
        """Log loss and metrics of one batch."""
        embedding = self.embed(batch)
        logits, target = self.classify(embedding), batch["target"]
        metrics: MetricCollection = getattr(self, f"{stage}_metrics")
        probability = logits.softmax(1)
        metrics.update(probability, target)
        # self.log halves an odd number of images to a whole one where two processes share them
        loss = self.loss(logits, target).float() * len(target)
        self.evaluation_loss += torch.stack([loss, loss.new_tensor(len(target))])
        return {"embedding": embedding, "probability": probability, "row": batch["row"]}

    def log_metrics(self, stage: Literal["val", "test"]) -> None:
        """Log an epoch's scalar metrics; those by class or pair of classes stay for the reports."""
        total: Any = self.trainer.strategy.reduce(self.evaluation_loss, reduce_op="sum")
        self.log(f"{stage}/loss", total[0] / total[1], sync_dist=True, prog_bar=True)
        metrics: MetricCollection = getattr(self, f"{stage}_metrics")
        values = metrics.compute()
        self.by_class = {name: value.cpu() for name, value in values.items() if value.ndim}
        scalars = {name: value for name, value in values.items() if not value.ndim}
        self.log_dict(scalars, sync_dist=True)  # torchmetrics has joined the processes; Lightning wants it said
        metrics.reset()

    def on_validation_epoch_start(self) -> None:
        """Start the sums of the loss anew."""
        self.evaluation_loss = torch.zeros(2, device=self.device)

    on_test_epoch_start = on_validation_epoch_start

    def on_validation_epoch_end(self) -> None:
        """Log the metrics under ``val/``: they are of the weights at this step."""
        self.log_metrics("val")
        self.validated_at = None if self.trainer.sanity_checking else self.trainer.global_step

    def on_test_epoch_end(self) -> None:
        """Log the metrics under ``test/``."""
        self.log_metrics("test")

    def on_fit_start(self) -> None:
        """Leave eval mode, in which extractors are built: Lightning trains in the mode it finds."""
        self.train()

    def on_train_epoch_start(self) -> None:
        """Dropout's draws depend on seed and epoch alone, so that a resumed fit repeats them."""
        torch.manual_seed(view_seed(self.seed, self.current_epoch, self.trainer.global_rank))
        self.train_loss = torch.zeros(2, device=self.device)
        self.rates = learning_rates(self.trainer.optimizers[0])
        self.epoch_start = time.perf_counter()

    def on_train_epoch_end(self) -> None:
        """Log the loss, the epoch's time in seconds (validation included) and its first learning rates.

        Raises:
            UserError: the loss is not finite: nothing good can come of going on.
        """
        total: Any = self.trainer.strategy.reduce(self.train_loss, reduce_op="sum")
        if not total.isfinite().all():
            raise UserError(
                f"the training has diverged: the loss of epoch {self.current_epoch + 1} is not finite; "
                "give lower rates: --model.lr_head, --model.lr_backbone"
            )
        seconds = time.perf_counter() - self.epoch_start
        self.log_dict({"train/loss": total[0] / total[1], "epoch_time": seconds, **self.rates}, sync_dist=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW or SGD over the parameter groups, cosine with warm-up by step."""
        h = self.hparams
        assert self.head is not None
        groups = parameter_groups(
            self.backbone, self.head, h["lr_head"], h["lr_backbone"], h["layer_decay"], h["weight_decay"]
        )
        optimizer = make_optimizer(h["optimizer"], groups, h["momentum"], fused=may_fuse(self.trainer))
        steps = optimizer_steps(self.trainer, len(self.data.train_dataloader()))
        warmup = round(h["warmup_epochs"] * steps / max(1, self.trainer.max_epochs or 1))
        scheduler = cosine_with_warmup(optimizer, steps, min(warmup, steps // 2))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def check_ranges(options: Mapping[str, Any]) -> None:
    """Refuse numbers that no training can use.

    Raises:
        UserError: naming the option and its range.
    """
    for name in ("lr_head", "lr_backbone", "weight_decay", "warmup_epochs"):
        if not 0 <= options[name] < math.inf:
            raise UserError(f"--model.{name} is {options[name]}; give a number from 0 up")
    for name in ("momentum", "label_smoothing", "dropout"):
        if not 0 <= options[name] < 1:
            raise UserError(f"--model.{name} is {options[name]}; give a number in [0, 1)")
    if not 0 < options["layer_decay"] <= 1:
        raise UserError(f"--model.layer_decay is {options['layer_decay']}; give a number in (0, 1], 1 for none")
