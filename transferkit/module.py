"""The LightningModule: an extractor's backbone and a linear head, trained on labelled images."""

import logging
import os
import time
from collections import Counter
from contextlib import nullcontext
from typing import Any, Literal

import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MetricCollection

from transferkit.checkpoints import leave_ended_epoch
from transferkit.data.augmentation import view_seed
from transferkit.data.batches import Batch
from transferkit.data.datamodule import ImageDataModule
from transferkit.data.seen import check_unseen, remember_paths
from transferkit.embed import fill_features
from transferkit.errors import UserError
from transferkit.extractor import Extractor
from transferkit.extractor.full_float32 import full_float32
from transferkit.freezing import Regime, check_unfreezing, first_trainable, freeze, set_mode
from transferkit.metrics import RunningMean, classification_metrics
from transferkit.module_record import RecordedModule, run_validation
from transferkit.optimizers import (
    CosineWithWarmup,
    check_length,
    check_ranges,
    chosen_rates,
    learning_rates,
    make_optimizer,
    may_fuse,
    parameter_groups,
    progress_of,
    warmup_share,
)
from transferkit.probe import LinearClassifier
from transferkit.regularization_path import RegularizationPath, is_solvable

log = logging.getLogger(__name__)

# A probe is so sure of the images it was fitted on that hardly a gradient would reach the backbone: with logits of a
# tenth, 5 epochs end at 96.7 instead of 94.7 % on digits (ResNet18 of CIFAR-10, tests/bench/bench_transfer.py).
SOFTER = 0.1


class TransferModule(RecordedModule):
    """A backbone, frozen or fine-tuned, under a linear head.

    Args:
        backbone: torchvision name, Hugging Face id or directory, exported directory, or checkpoint.
        weights: ``DEFAULT``, ``none`` (random) or a path; with regime ``scratch`` none.
        pooling: how features become one embedding; ``None`` is the backbone's default.
        regime: ``frozen`` trains the head alone, ``partial`` also the last stages, ``full`` everything,
            ``scratch`` everything from random weights.
        unfreeze_last: how many stages learn with regime ``partial``.
        lr_head: learning rate of the head; by default 3e-3, and where a frozen backbone's head is solved, none.
        lr_backbone: learning rate of the backbone's last stage; by default 3e-4 with BatchNorm, 1e-4 without.
        layer_decay: factor on the learning rate for each stage further from the head, in (0, 1].
        optimizer: ``adamw``, ``sgd``, or ``lbfgs``, which solves for the head on a frozen backbone's embeddings: each
            epoch at one strength of regularization, from strong to weak, and ``best.ckpt`` is the best of them.
            ``auto`` is ``lbfgs`` where there is neither augmentation, dropout nor ``lr_head``, else ``adamw``.
        batchnorm: ``train`` normalizes by the batch where BatchNorm layers learn, ``eval`` by the running statistics,
            which then stay; ``auto`` is what was found better, ``train``, also from a trained head.
        weight_decay: decoupled for ``adamw``, L2 for ``sgd``; on weights of linear layers and convolutions alone.
        momentum: of ``sgd``.
        warmup_epochs: epochs of linear warm-up before the cosine.
        label_smoothing: in [0, 1).
        dropout: on the embedding before the head, in [0, 1).
        l2_normalize: give the head L2-normalized embeddings; ``None`` is as the checkpoint's head had it, else false.
        head: classifier of a probe of the same extractor, to start from; the data must have its classes, val and
            test none of the images that it was fitted on, and ``l2_normalize`` comes from it (probe, then
            fine-tune: Kumar et al. 2022, arXiv:2202.10054). ``none`` starts from a new head, even where the
            backbone comes with one for the same classes.
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
        lr_head: float | None = None,
        lr_backbone: float | None = None,
        layer_decay: float = 1.0,
        optimizer: Literal["auto", "adamw", "sgd", "lbfgs"] = "auto",
        batchnorm: Literal["auto", "train", "eval"] = "auto",
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
        classifier = LinearClassifier.load(head) if head not in (None, "none") else None
        extractor = Extractor.from_pretrained(backbone, weights, pooling, preprocessing, architecture)
        self.epoch: int | None = extractor.record.get("epoch")  # of the checkpoint that it was opened from
        self.backbone = extractor.backbone
        self.preprocessing = extractor.preprocessing
        self.class_names: list[str] = []
        self.head: nn.Linear | None = None  # made when the classes are known
        self.class_weights: Tensor | None = None
        self.l2_normalize = extractor.l2_normalize if l2_normalize is None else l2_normalize
        if extractor.head and head is None and extractor.l2_normalize == self.l2_normalize:
            self.start_from(extractor)  # kept where the data has the same classes
        elif extractor.head and head is None:
            log.warning("--model.l2_normalize %s is not what the head of %s knows: a new one", l2_normalize, backbone)
        self.regime, self.dropout = regime, dropout
        self.first_trainable = first_trainable(self.backbone, regime, unfreeze_last)
        if classifier:
            self.start_from(classifier.on(extractor, 1.0 if regime == "frozen" else SOFTER))
        freeze(self.backbone, self.first_trainable)
        self.class_counts: dict[str, int] = {}
        self.image_counts: dict[str, int] = {}
        self.by_class: dict[str, Tensor] = {}
        self.train_loss, self.evaluation_loss = RunningMean(), RunningMean()
        self.epoch_start: float | None = None
        self.solves = False  # whether the optimizer is lbfgs; known when the data is

    def set_classes(self, names: list[str]) -> None:
        """Make a new head for the given classes; its weights depend on the seed alone."""
        self.class_names = list(names)
        self.starts_trained, self.fitted_on = False, ""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.head = nn.Linear(self.backbone.embed_dim, len(names))
        for stage in ("val", "test"):
            setattr(self, f"{stage}_metrics", classification_metrics(len(names), stage))

    def start_from(self, extractor: Extractor) -> None:
        """Take over a trained head, and what it was trained on."""
        self.set_classes(extractor.class_names)
        self.head, self.l2_normalize = extractor.head, extractor.l2_normalize
        self.starts_trained, self.fitted_on = True, extractor.record.get("fitted_on", "")
        if weights := extractor.record.get("class_weights"):
            self.class_weights = torch.tensor(weights)

    def configure_callbacks(self) -> list[Callback]:
        """Where data and model meet: before callbacks are set up, since some then copy the module, head and all.

        Raises:
            UserError: the data does not suit the classes of a trained head; a callback that unfreezes.
        """
        stage = self.trainer.state.fn
        check_unfreezing(self.trainer.callbacks)  # type: ignore[attr-defined]  # set in its constructor
        self.meet(self.data, stage.value if stage else "fit")
        return []

    def setup(self, stage: str) -> None:
        """Embed what a frozen backbone sees once, or check that every image can be read.

        Raises:
            UserError: broken images.
        """
        data = self.data
        own = {"test": (data.test_split,), "predict": ("predict",), "validate": ("val",)}
        splits = own.get(stage, ("train", "val"))
        # what is cached is float32: a fit's head is solved on that, and measured on what the user asks for
        cached = data.cache == "auto" and self.trainer.precision == "32-true"
        if self.regime == "frozen" and (data.caches_features if stage == "fit" else cached):
            extractor = self.as_extractor().to(self.trainer.strategy.root_device)
            fill_features(extractor, data, splits)
        else:
            data.check_images(splits)
        if stage == "fit":
            self.class_weights = data.loss_weights()
            train = data.tables["train"]
            counts = Counter(train.labels)
            self.class_counts = {name: counts[name] for name in self.class_names}
            self.image_counts = {name: len(table) for name, table in data.tables.items()}
            self.fitted_on = remember_paths(train.paths, self.fitted_on)
            all_batches = self.trainer.limit_train_batches == 1.0
            views = data.features.get("train", []) if all_batches and self.regime == "frozen" else []
            self.solves = data.one_batch = is_solvable(self.hparams, views, len(self.class_names))

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
        data.preprocessing, data.seed, data.features = self.preprocessing, self.seed, {}
        data.setup(stage)
        if stage != "fit":
            data.set_class_names(self.class_names)
        elif self.class_names != data.class_names:
            if self.hparams["head"] not in (None, "none"):
                raise UserError(
                    f"the classes of {self.hparams['head']} are {', '.join(self.class_names)}, the data has "
                    f"{', '.join(data.class_names)}; probe this data, or leave out --model.head"
                )
            self.set_classes(data.class_names)
        if stage == "fit":
            held_out = {name: table.paths for name, table in data.tables.items() if name in ("val", "test")}
            check_unseen(held_out, self.fitted_on if self.starts_trained else "")
            data.loss_weights()  # refused now rather than after an hour of embedding
            if self.regime != "frozen" and data.views:
                log.warning("--data.views %d has no effect: only a frozen backbone is cached", data.views)

    @property
    def logged_names(self) -> set[str]:
        """What a fit logs, and a callback may monitor; the classes are known."""
        metrics: MetricCollection = self.val_metrics  # type: ignore[assignment]  # set with the classes
        scalars = {str(name) for name in metrics} - {"val/acc_per_class", "val/confusion"}
        return scalars | {"val/loss", "train/loss", "epoch_time", "lr/head", "lr/backbone", "head/C"}

    def train(self, mode: bool = True) -> "TransferModule":
        """Train or evaluate; frozen stages stay in eval mode, so that their BatchNorm does not move by a bit."""
        super().train(mode)
        set_mode(self.backbone, self.first_trainable, mode, self.hparams["batchnorm"] != "eval")
        return self

    def embed(self, batch: Batch) -> Tensor:
        """Embeddings of a batch, computed or cached: float (B, D)."""
        if "embedding" in batch:
            return batch["embedding"]
        if not len(batch["pixels"]):  # of a process without a share: not every network takes none
            return batch["pixels"].new_empty(0, self.backbone.embed_dim).to(self.dtype)
        pixels = self.preprocessing.normalize(batch["pixels"]).to(self.dtype)  # bf16-true and the like
        exact = nullcontext() if self.training else full_float32()
        with exact, torch.set_grad_enabled(torch.is_grad_enabled() and self.regime != "frozen"):
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
        """Cross-entropy of one batch, weighted by class where the data says so.

        The weights have mean 1 over the training images and are not divided by their sum over the batch, which
        would cancel them in a batch of one class.
        """
        logits, target = self.classify(self.embed(batch)), batch["target"]
        weight = self.weight_of(target)
        losses = F.cross_entropy(logits, target, label_smoothing=self.hparams["label_smoothing"], reduction="none")
        losses = losses * weight
        self.train_loss.update(losses, weight)  # self.log takes longer than a step on cached embeddings
        return losses.mean() * batch["scale"] if "scale" in batch else losses.mean()

    def weight_of(self, target: Tensor) -> Tensor:
        """The weight of each row in the loss, by its class: (B,)."""
        if self.class_weights is None:
            return torch.ones(len(target), device=target.device)
        return self.class_weights.to(target.device)[target]

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
        if len(target):  # torchmetrics takes no empty batch
            metrics.update(probability, target)
        weight = self.weight_of(target)
        # self.log halves an odd number of images to a whole one where two processes share them
        self.evaluation_loss.update(F.cross_entropy(logits.float(), target, reduction="none") * weight, weight)
        return {"embedding": embedding, "probability": probability, "row": batch["row"]}

    def log_metrics(self, stage: Literal["val", "test"]) -> None:
        """Log an epoch's scalar metrics; those by class or pair of classes stay for the reports."""
        loss = self.evaluation_loss.compute(self.trainer.strategy)
        self.log(f"{stage}/loss", loss, sync_dist=True, prog_bar=True)
        metrics: MetricCollection = getattr(self, f"{stage}_metrics")
        values = metrics.compute()
        self.by_class = {name: value.cpu() for name, value in values.items() if value.ndim}
        scalars = {name: value for name, value in values.items() if not value.ndim}
        self.log_dict(scalars, sync_dist=True)  # torchmetrics has joined the processes; Lightning wants it said
        metrics.reset()

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

    def on_train_start(self) -> None:
        """Measure a trained head before the first step: the state that it starts from may be the best."""
        leave_ended_epoch(self.trainer)
        if self.starts_trained and not self.trainer.global_step:
            run_validation(self.trainer)
            self.train()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Set the learning rates; what is drawn depends on seed, epoch and batch alone, so a resumed fit repeats it."""
        if self.regime != "frozen" or self.dropout:
            place = batch_idx * self.trainer.world_size + self.trainer.global_rank
            torch.manual_seed(view_seed(self.seed, self.current_epoch, place))
        schedule = self.lr_schedulers()
        if isinstance(schedule, CosineWithWarmup):  # a callback may have put its own in its place
            warmup = warmup_share(self.trainer, self.hparams["warmup_epochs"])
            schedule.set_progress(progress_of(self.trainer, batch_idx), warmup)
        if self.epoch_start is None:  # the first batch, or where a resumed fit goes on within an epoch
            self.epoch_start, self.rates = time.perf_counter(), learning_rates(self.trainer.optimizers[0])

    def on_train_epoch_end(self) -> None:
        """Log the loss, the epoch's time in seconds (validation included) and its first learning rates.

        Raises:
            UserError: the loss is not finite: nothing good can come of going on.
        """
        loss = self.train_loss.compute(self.trainer.strategy)
        if not loss.isfinite():
            raise UserError(
                f"the training has diverged: the loss of epoch {self.current_epoch + 1} is not finite; "
                "give lower rates: --model.lr_head, --model.lr_backbone"
            )
        seconds = time.perf_counter() - (self.epoch_start or 0.0)
        self.epoch_start = None
        self.log_dict({"train/loss": loss, "epoch_time": seconds, **self.rates}, sync_dist=True)
        optimizer = self.trainer.optimizers[0]
        if isinstance(optimizer, RegularizationPath):
            self.log("head/C", optimizer.param_groups[0]["C"], sync_dist=True)

    def on_train_end(self) -> None:
        """Say so where the head is not at its optimum."""
        optimizer = self.trainer.optimizers[0]
        if isinstance(optimizer, RegularizationPath) and optimizer.unsolved:
            strengths = ", ".join(f"{c:.2g}" for c in optimizer.unsolved)
            log.warning(
                "the head's fit did not converge at C = %s; the embeddings may be of very unequal scale", strengths
            )

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """L-BFGS where the head can be solved for; else AdamW or SGD over the parameter groups, cosine with warm-up."""
        h, trainer = self.hparams, self.trainer
        assert self.head is not None
        check_length(trainer, len(self.data.train_dataloader()))
        if self.solves:
            (train,) = self.data.features["train"]
            lengths = [n for n in (trainer.max_epochs, trainer.max_steps) if n is not None and n != -1]
            steps, smoothing = max(1, min(lengths)), h["label_smoothing"]
            target, weights = self.data.targets("train"), self.class_weights
            return RegularizationPath(self.head, train, target, steps, self.l2_normalize, weights, smoothing)
        rates = chosen_rates(h["lr_head"], h["lr_backbone"], self.backbone)
        groups = parameter_groups(self.backbone, self.head, *rates, h["layer_decay"], h["weight_decay"])
        kind: Literal["adamw", "sgd"] = "sgd" if h["optimizer"] == "sgd" else "adamw"
        optimizer = make_optimizer(kind, groups, h["momentum"], fused=may_fuse(trainer))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": CosineWithWarmup(optimizer), "interval": "step"}}
