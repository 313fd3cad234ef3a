"""The LightningModule: an extractor's backbone and a linear head, trained on labelled images."""

import logging
from typing import Any, Literal

import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from transferkit.backbones.gradient_checkpointing import checkpoint_blocks
from transferkit.backbones.weights import apply_masks
from transferkit.data.batches import Batch
from transferkit.data.datamodule import ImageDataModule
from transferkit.data.option_ranges import check_values, make_plain
from transferkit.data.seen import check_unseen
from transferkit.errors import UserError
from transferkit.extractor.checkpoint_reader import KEY
from transferkit.images.augmentation import view_seed
from transferkit.training.checkpoints import (
    EPOCH,
    check_resumable,
    check_row_weights,
    current_metrics,
    keep_readable,
    mend_progress,
    same_weights,
)
from transferkit.training.fit_progress import leave_ended_epoch, run_validation
from transferkit.training.head_rates import candidates, choose_rates
from transferkit.training.lora import adapt, complete, leave_out_base
from transferkit.training.metrics import EvaluationMetrics, TrainingEpoch, check_finite, check_weights
from transferkit.training.mixing import mixed, weigh_rows
from transferkit.training.network import TransferNetwork
from transferkit.training.optimizers import CosineWithWarmup, check_length, check_ranges, gradient_descent
from transferkit.training.own_callbacks import own_callbacks
from transferkit.training.prepare_images import prepare_images
from transferkit.training.probe_start import probe_start
from transferkit.training.regimes import Regime, check_unfreezing
from transferkit.training.regularization_path import RegularizationPath, is_solvable, path_length
from transferkit.training.resume import check_processes, is_within_epoch, resumed_solver
from transferkit.training.start import open_start
from transferkit.training.tasks import Loss, task_of

log = logging.getLogger(__name__)


class TransferModule(TransferNetwork):
    """Train a linear head on a backbone that is frozen or fine-tuned.

    Args:
        backbone: torchvision name, Hugging Face id or directory, exported directory, or checkpoint.
        weights: ``DEFAULT``, ``none`` (random, as with scratch) or a path.
        pooling: how features become one embedding; ``None`` is the backbone's default.
        regime: ``frozen`` trains the head, ``partial`` also the last stages, ``full`` everything, ``scratch``
            everything from random weights, ``lp-ft`` everything from a linear probe's head, ``stages`` the head, then
            one more stage after the other, ``lora`` adapters.
        unfreeze_last: number of stages that learn with regime ``partial``.
        lr_head: learning rate of the head; by default 3e-3, of a fitted head the backbone's; ``auto`` or a list, if
            frozen, is the best of several on val.
        lr_backbone: of the last stage; by default 1e-4, BatchNorm 3e-4, lora 1e-3; or ``auto``.
        layer_decay: factor on the rate per stage away from the head, in (0, 1].
        optimizer: ``adamw``, ``sgd``, or ``lbfgs``, which solves for the head on a frozen backbone's embeddings at one
            strength of regularization per epoch; ``auto`` is ``lbfgs`` without augmentation, dropout and ``lr_head``,
            otherwise ``adamw``.
        batchnorm: layers that learn normalize by the batch, or (``eval``) by the running statistics, which then stay.
        weight_decay: decoupled for ``adamw``, L2 for ``sgd``; on linear layers and convolutions; or a list, as lr_head.
        momentum: of ``sgd``.
        warmup_epochs: epochs of linear warm-up before the cosine.
        label_smoothing: in [0, 1).
        dropout: on the embedding before the head, in [0, 1).
        l2_normalize: normalize embeddings; None is as the checkpoint's head, or false.
        head: a probe's classifier of the same extractor and classes, fitted on no image of val and test, which brings
            its ``l2_normalize``; ``zeroshot`` starts from the class names, with a model of images and texts (pooling
            ``projection``); ``none`` from a new head.
        preprocessing: fields to override, such as ``{image_size: 160}``; ``None`` is the weights' own.
        architecture: changes to the architecture, for random weights only.
        seed: seed of a new head's weights, the order of batches, augmentation and dropout.
        revision: branch, tag or commit of a Hugging Face repository; by default its newest.
        ema: decay of a moving average of the weights, validated and kept: say 0.999.
        lora: fields of regime lora: ``{rank: 4, alpha: 8, dora: false, rslora: false}``.
        gradient_checkpointing: less memory for more time.
        loss: ``huber`` for numbers, ``asymmetric`` for several labels.

    Attributes:
        epoch: epoch of the checkpoint that the backbone and head were opened from, or None.
        by_class: metrics of the last evaluation by class or pair of classes, for reports.
        validated_at: global step of the last validation.
    """

    def __init__(
        self,
        backbone: str = "resnet18",
        weights: str = "DEFAULT",
        pooling: str | None = None,
        regime: Regime = "frozen",
        unfreeze_last: int = 1,
        lr_head: float | list[float] | Literal["auto"] | None = None,
        lr_backbone: float | Literal["auto"] | None = None,
        layer_decay: float = 1.0,
        optimizer: Literal["auto", "adamw", "sgd", "lbfgs"] = "auto",
        batchnorm: Literal["auto", "train", "eval"] = "auto",
        weight_decay: float | list[float] = 0.01,
        momentum: float = 0.9,
        warmup_epochs: float = 1.0,
        label_smoothing: float = 0.0,
        dropout: float = 0.0,
        l2_normalize: bool | None = None,
        head: str | None = None,
        preprocessing: dict[str, Any] | None = None,
        architecture: dict[str, Any] | None = None,
        seed: int = 0,
        revision: str | None = None,
        ema: float | None = None,
        lora: dict[str, Any] | None = None,
        gradient_checkpointing: bool = False,
        loss: Loss = "auto",
    ) -> None:
        check_values(TransferModule, {"regime": regime, "optimizer": optimizer, "batchnorm": batchnorm, "loss": loss})
        check_ranges(
            lr_head=lr_head, lr_backbone=lr_backbone, layer_decay=layer_decay, weight_decay=weight_decay,
            momentum=momentum, warmup_epochs=warmup_epochs, label_smoothing=label_smoothing, dropout=dropout, ema=ema,
            regime=regime,
        )  # fmt: skip
        extractor = open_start(
            backbone, weights, pooling, preprocessing, architecture,
            regime=regime, head=head, l2_normalize=l2_normalize, revision=revision,
        )  # fmt: skip
        adapters = adapt(
            extractor, regime, lora, seed,
            source=backbone, weights=weights, pooling=pooling, preprocessing=preprocessing, revision=revision,
        )  # fmt: skip
        super().__init__(extractor, regime, unfreeze_last, dropout, batchnorm != "eval", seed, loss)
        self.save_hyperparameters(logger=False)
        make_plain(self.hparams)
        checkpoint_blocks(self.backbone, gradient_checkpointing)
        self.adapters = adapters
        self.epoch: int | None = extractor.record.get("epoch")
        self.by_class: dict[str, Tensor] = {}
        self.validated_at: int | None = None
        self.training_epoch = TrainingEpoch()
        self.mixing = (0.0, 0.0)  # mixup and cutmix of the data
        self.solves = self.resumes = False  # whether a fit has lbfgs; whether it continues from a checkpoint
        self.connected: tuple[ImageDataModule, str] | None = None

    @property
    def data(self) -> ImageDataModule:
        """The Trainer's DataModule.

        Raises:
            UserError: it is not transferkit's.
        """
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, ImageDataModule):
            raise UserError(
                "TransferModule needs transferkit's ImageDataModule: trainer.fit(module, datamodule); wrap your own "
                "DataLoaders in transferkit.data.loaders.LoaderDataModule"
            )
        return data

    def connect(self, data: ImageDataModule, stage: str) -> None:
        """Exchange classes and preprocessing with the data, and check what can be checked without decoding images.

        Args:
            data: the data to train on or evaluate.
            stage: ``fit``, ``validate``, ``test`` or ``predict``.

        Raises:
            UserError: the data cannot be used, or has other classes than the head to start from.
        """
        data.configure(preprocessing=self.preprocessing, seed=self.order_seed, features={})
        data.setup(stage)
        if stage != "fit":
            data.set_class_names(self.class_names, self.task.kind)
        elif (self.class_names, self.task.kind) != (data.class_names, data.kind):
            self.take_classes(data.class_names, data.kind, self.hparams["head"])
        if stage == "fit":
            held_out = {name: table.paths for name, table in data.tables.items() if name in ("val", "test")}
            check_unseen(held_out, self.fitted_on if self.starts_trained else "", self.backbone_seen)
            data.loss_weights(), data.row_weights()  # raise now rather than after an hour of embedding
            candidates(self.hparams)
            if self.regime != "frozen" and data.views:
                log.warning("`views=%d` has no effect: embeddings are cached for a frozen backbone only", data.views)
        self.connected = (data, stage)

    def configure_callbacks(self) -> list[Callback]:
        """Connect with the data if the caller has not: some callbacks copy the module with its head in their setup.

        Raises:
            UserError: see :meth:`connect` and :func:`~transferkit.training.regimes.check_unfreezing`.
        """
        function = self.trainer.state.fn
        stage = function.value if function else "fit"
        frozen = self.frozen_keys if stage == "fit" else ()
        check_unfreezing(self.trainer.callbacks, frozen)  # type: ignore[attr-defined]  # set in its constructor
        if self.connected != (self.data, stage):
            self.connect(self.data, stage)
        self.connected = None  # the next fit or evaluation connects again
        return own_callbacks(self) if stage == "fit" else []

    def setup(self, stage: str) -> None:
        """Run all images once through what is frozen, or check that they can be read.

        Raises:
            UserError: images that cannot be read.
        """
        data = self.data
        prepare_images(self, data, stage)
        if stage == "fit":
            self.chosen, self.mixing = {}, (data.mixup, data.cutmix)
            self.resumes, self.starts_trained = False, self.starts_trained or self.regime == "lp-ft"
            self.class_weights, self.row_weights = data.loss_weights(), data.row_weights()
            self.remember_training(data)
            all_batches = self.trainer.limit_train_batches == 1.0 and not data.mixup and not data.balanced
            views = data.features.get("train", []) if all_batches and self.regime == "frozen" else []
            self.solves = is_solvable(self.hparams, views, len(self.class_names))
            data.configure(one_batch=self.solves)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return L-BFGS if the head can be solved for, else gradient descent with a cosine schedule."""
        assert self.head is not None
        check_length(self.trainer, len(self.data.train_dataloader()))
        if not self.solves:
            if len(candidates(self.hparams)) > 1 and not self.chosen:
                self.chosen = choose_rates(
                    self.head, self.hparams, self.data, self.trainer, self.class_weights, self.l2_normalize
                )
            options = {**self.hparams, **self.chosen}
            return gradient_descent(self.backbone, self.head, options, self.trainer, self.starts_trained)
        (train,), target = self.data.features["train"], self.task.standard(self.data.targets("train"))
        steps, smoothing, objective = path_length(self.trainer), self.hparams["label_smoothing"], self.task.objective
        assert objective is not None  # is_solvable() has refused others
        rows = None
        if self.row_weights:
            rows, train, target = self.row_weights.above_zero(train, target)
        return RegularizationPath(
            self.head, train, target, steps, self.l2_normalize, self.class_weights, smoothing, objective, rows
        )

    def on_fit_start(self) -> None:
        """Fit the head that a new ``lp-ft`` starts from, and set train mode, which Lightning leaves as it finds it.

        By now a resumed fit has its weights; the optimizer has the head's tensors, so they are filled.
        """
        if self.regime == "lp-ft" and not self.resumes and not self.trainer.global_step:
            assert self.head is not None
            extractor, unit = self.as_extractor(), self.hparams["l2_normalize"]
            start = probe_start(extractor, self.data, unit, self.class_weights, self.row_weights)
            assert start.head is not None
            self.head.load_state_dict(self.task.unfold(start.head).state_dict())
            self.l2_normalize = start.l2_normalize
        self.train()

    def on_train_start(self) -> None:
        """Evaluate a head that starts trained before the first step: it may be the best."""
        leave_ended_epoch(self.trainer)
        if self.starts_trained and not self.trainer.global_step:
            run_validation(self.trainer)
            self.train()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed dropout by epoch and batch, so that a resumed fit repeats it, and set the learning rates."""
        if self.regime != "frozen" or self.dropout or any(self.mixing):
            place = batch_idx * self.trainer.world_size + self.trainer.global_rank
            torch.manual_seed(view_seed(self.order_seed, self.current_epoch, place))
        schedule = self.lr_schedulers()
        if isinstance(schedule, CosineWithWarmup):  # a callback may have replaced it
            schedule.follow(self.trainer, batch_idx, self.hparams["warmup_epochs"])
        self.training_epoch.begin(self.trainer.optimizers[0])

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of one batch, weighted by class if the data has class weights.

        The weights have mean 1 over the training images and are not divided by their sum over the batch, which
        would cancel them in a batch of one class.
        """
        batch = mixed(batch, *self.mixing, len(self.class_names), self.normalized)
        logits, smoothing = self.classify(self.embed(batch)), self.hparams["label_smoothing"]
        losses, weight = weigh_rows(batch, *self.task.losses(logits, batch, self.class_weights, smoothing))
        self.training_epoch.loss.update(losses, weight)
        return losses.mean() * batch["scale"] if "scale" in batch else losses.mean()

    def on_train_epoch_end(self) -> None:
        """Log the loss, the time of the epoch in seconds (validation included) and its first learning rates.

        Raises:
            UserError: the loss is not finite.
        """
        values = self.training_epoch.end(self.trainer.strategy)
        check_finite(values["train/loss"], self.current_epoch)
        optimizer = self.trainer.optimizers[0]
        if isinstance(optimizer, RegularizationPath):
            values["head/C"] = optimizer.param_groups[0]["C"]
        self.log_dict(values, sync_dist=True)

    def on_train_end(self) -> None:
        """Warn if the head is not at its optimum."""
        if isinstance(optimizer := self.trainer.optimizers[0], RegularizationPath):
            optimizer.warn_of_unsolved()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Update the metrics under ``val/``."""
        self.evaluate(batch, self.val_metrics)

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Update the metrics under ``test/``; return embedding, probability and row of each image."""
        return self.evaluate(batch, self.test_metrics)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Return embedding (B, D), probability (B, classes) and row (B,) of each image."""
        embedding = self.embed(batch)
        return {
            "embedding": embedding,
            "probability": self.task.activate(self.classify(embedding)),
            "row": batch["row"],
        }

    def on_validation_epoch_end(self) -> None:
        """Log the metrics under ``val/``, and note the step that they were measured at.

        Raises:
            UserError: the training has diverged; before the checkpoint that is chosen by this validation.
        """
        if self.trainer.state.fn == "fit" and self.regime != "frozen":
            check_weights(self.backbone.state_dict(), self.trainer.strategy, self.current_epoch)
        self.log_metrics(self.val_metrics)
        self.validated_at = None if self.trainer.sanity_checking else self.trainer.global_step

    def on_test_epoch_end(self) -> None:
        """Log the metrics under ``test/``."""
        self.log_metrics(self.test_metrics)

    def log_metrics(self, metrics: EvaluationMetrics) -> None:
        """Log the scalars of an evaluation; keep the metrics by class or pair of classes for reports."""
        values = metrics.compute(self.trainer.strategy)
        self.by_class = {name: value.cpu() for name, value in values.items() if value.ndim}
        for name, value in values.items():
            if not value.ndim:  # already reduced over the processes, but Lightning warns without sync_dist
                self.log(name, value, sync_dist=True, prog_bar=name.endswith("/loss"))

    def describe(self) -> dict[str, Any]:
        """Return the record of a checkpoint: the network's, what it started from, and what it reached."""
        return super().describe() | {
            "weights": f"{self.hparams['backbone']} ({self.hparams['weights']})",
            "chosen": self.chosen,
            "metrics": current_metrics(self._trainer, self.validated_at) if self._trainer else {},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the record, and the state of an epoch that has not ended."""
        checkpoint[KEY] = self.describe()
        leave_out_base(checkpoint, self.adapters)
        keep_readable(checkpoint)
        mend_progress(checkpoint, self.trainer)
        if is_within_epoch(checkpoint):
            checkpoint[EPOCH] = {"processes": self.trainer.world_size} | self.training_epoch.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over the classes, and the state of an epoch that had not ended.

        Raises:
            UserError: it is not a transferkit checkpoint, or a fit on this data cannot be resumed from it.
        """
        if KEY not in checkpoint:
            raise UserError("this is not a transferkit checkpoint; give one that a fit of transferkit wrote")
        complete(checkpoint, self.backbone, self.adapters)
        apply_masks(checkpoint["state_dict"])
        record, state, trainer = checkpoint[KEY], checkpoint["state_dict"], self._trainer
        self.resumes = resumes = trainer is not None and trainer.state.fn == "fit"
        if resumes:
            check_resumable(checkpoint, self.class_names, self.backbone.state_dict(), self.frozen_keys)
            check_row_weights(record.get("sample_weights"), self.row_weights)
            self.chosen = record.get("chosen", {})
            self.solves = resumed_solver(checkpoint, self.regime, self.hparams["optimizer"], self.solves)
            self.data.configure(one_batch=self.solves)
        elif (record["class_names"], record.get("target", "class")) != (self.class_names, self.task.kind):
            self.set_classes(record["class_names"], task_of(record.get("target", "class"), self.loss))
            if trainer is not None:
                self.data.set_class_names(self.class_names, self.task.kind)
        self.task.restore(record)
        self.l2_normalize = record["l2_normalize"]  # of lp-ft the probe has chosen it
        if (weights := record.get("class_weights")) or not resumes:  # every stage has the loss of the fit
            self.class_weights = torch.tensor(weights) if weights else None
        if resumes and EPOCH in checkpoint:
            check_processes(checkpoint[EPOCH], self.trainer.world_size)
            self.training_epoch.load_state_dict(checkpoint[EPOCH], self.trainer.strategy.root_device)
        splits = () if resumes or trainer is None else tuple(self.data.features)
        if splits and not same_weights(state, self.backbone):
            self.data.configure(features={})
            self.data.check_images(splits)
