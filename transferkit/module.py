"""The LightningModule: an extractor's backbone and a linear head, trained on labelled images."""

import logging
import math
import os
import time
from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MetricCollection

from transferkit.checkpoints import drop_frozen, frozen_sha256, restore_frozen
from transferkit.data.augmentation import view_seed
from transferkit.data.batches import Batch
from transferkit.data.datamodule import ImageDataModule
from transferkit.data.seen import count_seen, remember_paths
from transferkit.embed import fill_features
from transferkit.errors import UserError
from transferkit.extractor import Extractor
from transferkit.extractor.checkpoint import FORMAT, KEY
from transferkit.freezing import Regime, first_trainable, freeze, frozen_keys, set_mode
from transferkit.metrics import RunningMean, classification_metrics
from transferkit.optimizers import (
    CosineWithWarmup,
    check_length,
    learning_rates,
    make_optimizer,
    parameter_groups,
    progress_of,
    warmup_share,
)
from transferkit.probe import LinearClassifier
from transferkit.regularization_path import RegularizationPath
from transferkit.versions import versions

log = logging.getLogger(__name__)

LR_HEAD = 3e-3
MOST_LOGITS = 2**28  # of all training images in float32: a gigabyte


class TransferModule(LightningModule):
    """A backbone, frozen or fine-tuned, under a linear head.

    Args:
        backbone: torchvision name, Hugging Face id or directory, exported directory, or checkpoint.
        weights: ``DEFAULT``, ``none`` (random) or a path; with regime ``scratch`` none.
        pooling: how features become one embedding; ``None`` is the backbone's default.
        regime: ``frozen`` trains the head alone, ``partial`` also the last stages, ``full`` everything,
            ``scratch`` everything from random weights.
        unfreeze_last: how many stages learn with regime ``partial``.
        lr_head: learning rate of the head; by default 3e-3, and where a frozen backbone's head is solved, none.
        lr_backbone: learning rate of the backbone's last stage.
        layer_decay: factor on the learning rate for each stage further from the head, in (0, 1].
        optimizer: ``adamw``, ``sgd``, or ``lbfgs``, which solves for the head on a frozen backbone's embeddings: each
            epoch at one strength of regularization, from strong to weak, and ``best.ckpt`` is the best of them.
            ``auto`` is ``lbfgs`` where there is neither augmentation, dropout nor ``lr_head``, else ``adamw``.
        batchnorm: ``train`` normalizes by the batch where BatchNorm layers learn, ``eval`` by the running statistics,
            which then stay; ``auto`` is ``eval`` where the head to start from is trained already, as it was on
            these statistics, else ``train``.
        weight_decay: decoupled for ``adamw``, L2 for ``sgd``; on weights of linear layers and convolutions alone.
        momentum: of ``sgd``.
        warmup_epochs: epochs of linear warm-up before the cosine.
        label_smoothing: in [0, 1).
        dropout: on the embedding before the head, in [0, 1).
        l2_normalize: give the head L2-normalised embeddings.
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
        lr_backbone: float = 1e-4,
        layer_decay: float = 1.0,
        optimizer: Literal["auto", "adamw", "sgd", "lbfgs"] = "auto",
        batchnorm: Literal["auto", "train", "eval"] = "auto",
        weight_decay: float = 0.01,
        momentum: float = 0.9,
        warmup_epochs: float = 1.0,
        label_smoothing: float = 0.0,
        dropout: float = 0.0,
        l2_normalize: bool = False,
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
        self.regime, self.l2_normalize, self.dropout = regime, l2_normalize, dropout
        self.class_weights: Tensor | None = None
        if extractor.head and extractor.l2_normalize == l2_normalize and head is None:
            self.start_from(extractor)  # kept where the data has the same classes
        if classifier:
            self.start_from(classifier.on(extractor))
        self.first_trainable = first_trainable(self.backbone, regime, unfreeze_last)
        freeze(self.backbone, self.first_trainable)
        self.class_counts: dict[str, int] = {}
        self.image_counts: dict[str, int] = {}
        self.by_class: dict[str, Tensor] = {}
        self.train_loss, self.evaluation_loss = RunningMean(), RunningMean()
        self.epoch_start: float | None = None
        self.solves = False  # whether the optimizer is lbfgs; known when the data is

    def as_extractor(self) -> Extractor:
        """The extractor as it stands, in eval mode, sharing its weights with this module."""
        record = self.describe()
        return Extractor(self.backbone, self.preprocessing, self.head, self.class_names, self.l2_normalize, record)

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

    def setup(self, stage: str) -> None:
        """Where data and model meet: classes come from the data, preprocessing goes to it.

        Raises:
            UserError: the data does not suit the classes of a trained head; broken images.
        """
        data = self.data
        data.seed = self.seed
        self.meet(data, stage)
        if stage == "fit" and self.regime == "frozen" and data.caches_features:
            trainer = self.trainer
            extractor = self.as_extractor().to(trainer.strategy.root_device)
            fill_features(extractor, data)
        elif stage == "fit":
            data.check_images(("train", "val"))
        else:
            data.check_images([data.test_split if stage == "test" else "val" if stage == "validate" else "predict"])
        if stage == "fit":
            self.class_weights = data.loss_weights()
            train = data.tables["train"]
            counts = Counter(train.labels)
            self.class_counts = {name: counts[name] for name in self.class_names}
            self.image_counts = {name: len(table) for name, table in data.tables.items()}
            self.fitted_on = remember_paths(train.paths, self.fitted_on)
            self.solves = data.one_batch = self.can_solve(data)

    def can_solve(self, data: ImageDataModule) -> bool:
        """Whether the head's optimum is found at once: a convex problem on embeddings that are there.

        Raises:
            UserError: it is asked for where it cannot be.
        """
        asked = self.hparams["optimizer"]
        if asked == "auto" and self.hparams["lr_head"] is not None:
            return False
        views = data.features.get("train", [])
        plain = len(views) == 1 and not self.dropout and self.trainer.limit_train_batches == 1.0
        if plain and len(views[0]) * len(self.class_names) <= MOST_LOGITS:
            return asked in ("auto", "lbfgs")
        if asked == "lbfgs":
            raise UserError(
                "--model.optimizer lbfgs solves for the head on a frozen backbone's cached embeddings: it takes no "
                f"augmentation, no dropout, all batches, and images times classes up to {MOST_LOGITS}; give adamw"
            )
        return False

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
        data.preprocessing = self.preprocessing
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
            self.check_unseen(data)
            data.loss_weights()  # refused now rather than after an hour of embedding
            if self.regime != "frozen" and data.views:
                log.warning("--data.views %d has no effect: only a frozen backbone is cached", data.views)

    def check_unseen(self, data: ImageDataModule) -> None:
        """Refuse to select or report on images that the head to start from was fitted on.

        Raises:
            UserError: saying how many there are.
        """
        for name in {"val", "test"} & data.tables.keys() if self.starts_trained else ():
            if seen := count_seen(data.tables[name].paths, self.fitted_on):
                raise UserError(
                    f"{seen} of the {len(data.tables[name])} images of {name} were used to fit the head to start from; "
                    "give the splits that it was fitted with (--data.splits FILE), or start from a new head "
                    "(--model.head none)"
                )

    def train(self, mode: bool = True) -> "TransferModule":
        """Train or evaluate; frozen stages stay in eval mode, so that their BatchNorm does not move by a bit."""
        super().train(mode)
        asked = self.hparams["batchnorm"]
        moves = not self.starts_trained if asked == "auto" else asked == "train"
        set_mode(self.backbone, self.first_trainable, mode, moves)
        return self

    def embed(self, batch: Batch) -> Tensor:
        """Embeddings of a batch, computed or cached: float (B, D)."""
        if "embedding" in batch:
            return batch["embedding"]
        pixels = self.preprocessing.normalize(batch["pixels"])
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
        """Cross-entropy of one batch, weighted by class where the data says so.

        The weights have mean 1 over the training images and are not divided by their sum over the batch, which
        would cancel them in a batch of one class.
        """
        logits, target = self.classify(self.embed(batch)), batch["target"]
        weight = self.weight_of(target)
        losses = F.cross_entropy(logits, target, label_smoothing=self.hparams["label_smoothing"], reduction="none")
        losses = losses * weight
        self.train_loss.update(losses, weight)  # self.log takes longer than a step on cached embeddings
        return losses.mean()

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
        """Log the metrics under ``val/``."""
        self.log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Log the metrics under ``test/``."""
        self.log_metrics("test")

    def on_fit_start(self) -> None:
        """Leave eval mode, in which extractors are built: Lightning trains in the mode it finds."""
        self.train()

    def on_train_start(self) -> None:
        """Measure a trained head before the first step: the state that it starts from may be the best."""
        if self.starts_trained and not self.trainer.global_step:
            self.validate_now()

    def validate_now(self) -> None:
        """Run the validation loop outside of the training loop's own times for it."""
        trainer = self.trainer
        first = trainer._logger_connector._first_loop_iter
        trainer.validating = True
        trainer.fit_loop.epoch_loop.val_loop.run()
        trainer.training = True
        trainer._logger_connector._first_loop_iter = first
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
            self.log("head/C", optimizer.param_groups[0]["C"])

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
            lengths = [n for n in (trainer.max_epochs, trainer.max_steps) if n is not None and n != -1]
            (train,) = self.data.features["train"]
            return RegularizationPath(
                self.head,
                train,
                self.data.targets("train"),
                max(1, min(lengths)),
                self.l2_normalize,
                self.class_weights,
                h["label_smoothing"],
            )
        rate = LR_HEAD if h["lr_head"] is None else h["lr_head"]
        groups = parameter_groups(self.backbone, self.head, rate, h["lr_backbone"], h["layer_decay"], h["weight_decay"])
        optimizer = make_optimizer("sgd" if h["optimizer"] == "sgd" else "adamw", groups, h["momentum"])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": CosineWithWarmup(optimizer), "interval": "step"}}

    @cached_property
    def frozen_keys(self) -> set[str]:
        """Names within the backbone of what training does not change."""
        return frozen_keys(self.backbone, self.first_trainable)

    @cached_property
    def frozen_sha256(self) -> str:
        """SHA-256 over what training does not change."""
        return frozen_sha256(self.backbone.state_dict(), self.frozen_keys)

    @cached_property
    def spec(self) -> dict[str, Any]:
        """Plain-typed description of backbone, pooling and preprocessing, made once: writing it takes milliseconds."""
        return self.backbone.spec() | {"preprocessing": self.preprocessing.to_dict()}

    @cached_property
    def versions(self) -> dict[str, str]:
        """Versions of the libraries, looked up once: it reads many files."""
        return versions()

    def describe(self) -> dict[str, Any]:
        """The checkpoint's plain-typed record: all that an extractor needs, and what is known of the training."""
        trainer = self._trainer
        logged = trainer.callback_metrics if trainer else {}
        return {
            "format": FORMAT,
            "complete": True,
            "backbone": self.spec,
            "class_names": self.class_names,
            "class_counts": self.class_counts,
            "images": self.image_counts,
            "l2_normalize": self.l2_normalize,
            "regime": self.regime,
            "weights": f"{self.hparams['backbone']} ({self.hparams['weights']})",
            "fitted_on": self.fitted_on,
            "class_weights": None if self.class_weights is None else self.class_weights.tolist(),
            "metrics": {name: float(value) for name, value in logged.items()},
            "versions": self.versions,
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the record; leave out frozen weights while the fit goes on."""
        checkpoint[KEY] = self.describe()
        if self.trainer.training and self.frozen_keys:
            checkpoint[KEY]["frozen_sha256"] = self.frozen_sha256
            drop_frozen(checkpoint, self.frozen_keys)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over the classes and put frozen weights back.

        Raises:
            UserError: other classes than the data's, or other frozen weights.
        """
        names = checkpoint[KEY]["class_names"]
        trainer = self._trainer
        if trainer is not None and trainer.state.fn == "fit" and names != self.class_names:
            raise UserError(
                f"the checkpoint was trained on the classes {', '.join(names)}, the data has "
                f"{', '.join(self.class_names)}; start a new fit with --model.backbone CKPT"
            )
        if names != self.class_names:
            self.set_classes(names)
            if trainer is not None:
                self.data.set_class_names(names)
        if weights := checkpoint[KEY].get("class_weights"):  # of the loss: a checkpoint's is the same in every stage
            self.class_weights = torch.tensor(weights)
        restore_frozen(checkpoint, self.backbone.state_dict(), self.frozen_keys)


def check_ranges(options: Mapping[str, Any]) -> None:
    """Refuse numbers that no training can use.

    Raises:
        UserError: naming the option and its range.
    """
    for name in ("lr_head", "lr_backbone", "weight_decay", "warmup_epochs"):
        if options[name] is not None and not 0 <= options[name] < math.inf:
            raise UserError(f"--model.{name} is {options[name]}; give a number from 0 up")
    for name in ("momentum", "label_smoothing", "dropout"):
        if not 0 <= options[name] < 1:
            raise UserError(f"--model.{name} is {options[name]}; give a number in [0, 1)")
    if not 0 < options["layer_decay"] <= 1:
        raise UserError(f"--model.layer_decay is {options['layer_decay']}; give a number in (0, 1], 1 for none")
