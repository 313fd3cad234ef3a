"""What a TransferModule writes into a checkpoint, reads from one, and hands over as an extractor."""

import copy
import time
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from transferkit.backbones import Backbone
from transferkit.backbones.weights import apply_masks
from transferkit.checkpoints import EPOCH, check_resumable, figures, is_within_epoch, mend_progress
from transferkit.data.datamodule import ImageDataModule
from transferkit.errors import UserError
from transferkit.extractor import Extractor
from transferkit.extractor.checkpoint import FORMAT, KEY
from transferkit.freezing import Regime, frozen_keys
from transferkit.metrics import RunningMean
from transferkit.preprocessing import Preprocessing
from transferkit.versions import versions


class RecordedModule(LightningModule):
    """A LightningModule whose checkpoints an extractor opens without knowing it.

    Attributes:
        train_loss: mean loss of the epoch, as far as it is.
        rates: the learning rates that the epoch began with.
        epoch_start: when it began, by ``time.perf_counter``; None between epochs.
        validated_at: the global step that the last validation was of.
    """

    backbone: Backbone
    preprocessing: Preprocessing
    head: nn.Linear | None
    class_names: list[str]
    class_counts: dict[str, int]
    image_counts: dict[str, int]
    l2_normalize: bool
    regime: Regime
    first_trainable: int
    class_weights: Tensor | None
    fitted_on: str
    train_loss: RunningMean
    rates: dict[str, float]
    epoch_start: float | None
    validated_at: int | None = None
    solves: bool

    def set_classes(self, names: list[str]) -> None:
        """Make a new head for the given classes."""
        raise NotImplementedError

    @property
    def data(self) -> ImageDataModule:
        """What the Trainer was given."""
        raise NotImplementedError

    def as_extractor(self) -> Extractor:
        """The extractor as it stands, in eval mode, sharing its weights with this module, which keeps its mode."""
        computed = [value for module in self.modules() for value in vars(module).values() if isinstance(value, Tensor)]
        tensors = {id(tensor): tensor for tensor in (*self.parameters(), *self.buffers(), *computed)}
        backbone, head = copy.deepcopy((self.backbone, self.head), tensors)  # the modules alone: tensors are known
        record = self.describe()
        return Extractor(backbone, self.preprocessing, head, self.class_names, self.l2_normalize, record)

    @cached_property
    def frozen_keys(self) -> set[str]:
        """Names within the backbone of what training does not change."""
        return frozen_keys(self.backbone, self.first_trainable)

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
            "metrics": figures(self._trainer, self.validated_at) if self._trainer else {},
            "versions": self.versions,
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the record, and what is known so far of an epoch that has not ended."""
        checkpoint[KEY] = self.describe()
        mend_progress(checkpoint, self.trainer)
        if not is_within_epoch(checkpoint):
            return
        checkpoint[EPOCH] = {"processes": self.trainer.world_size}
        if self.train_loss.sums is not None and self.epoch_start is not None:
            seconds = time.perf_counter() - self.epoch_start
            checkpoint[EPOCH] |= {"loss": self.train_loss.sums.cpu(), "rates": self.rates, "seconds": seconds}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over the classes, and what was known of an epoch that had not ended.

        Raises:
            UserError: other classes than the data's, other frozen weights, or another program's checkpoint.
        """
        if KEY not in checkpoint:
            raise UserError("this is not a transferkit checkpoint; give one that transferkit fit wrote")
        apply_masks(checkpoint["state_dict"])
        names = checkpoint[KEY]["class_names"]
        trainer = self._trainer
        resumes = trainer is not None and trainer.state.fn == "fit"
        if resumes and names != self.class_names:
            raise UserError(
                f"the checkpoint was trained on the classes {', '.join(names)}, the data has "
                f"{', '.join(self.class_names)}; start a new fit with --model.backbone CKPT"
            )
        if names != self.class_names:
            self.set_classes(names)
            if trainer is not None:
                self.data.set_class_names(names)
        if weights := checkpoint[KEY].get("class_weights"):  # the loss of a checkpoint is the same in every stage
            self.class_weights = torch.tensor(weights)
        if resumes:
            check_resumable(checkpoint, self.backbone.state_dict(), self.frozen_keys)
            self.resume_optimizer(checkpoint)
            self.resume_epoch(checkpoint.get(EPOCH))
        elif trainer is not None and self.data.features:
            self.forget_features(checkpoint["state_dict"])

    def resume_optimizer(self, checkpoint: Mapping[str, Any]) -> None:
        """Keep to the kind of optimizer that a checkpoint is of where the options leave it open.

        Raises:
            UserError: they ask for another one, or for other parameters to learn; weights alone.
        """
        if not checkpoint.get("optimizer_states"):
            raise UserError("the checkpoint holds weights only, not the state of a fit; start a new fit from it")
        regime = checkpoint[KEY].get("regime", self.regime)
        if regime != self.regime:
            raise UserError(
                f"the checkpoint is of a fit with regime {regime}, this one's is {self.regime}; give the same"
            )
        group, asked = checkpoint["optimizer_states"][0]["param_groups"][0], self.hparams["optimizer"]
        kind = "lbfgs" if "C" in group else "adamw" if "betas" in group else "sgd"
        if self.solves and asked == "auto" and kind == "adamw":  # as earlier versions chose
            self.solves = self.data.one_batch = False
        now = "lbfgs" if self.solves else "sgd" if asked == "sgd" else "adamw"
        if kind != now:
            raise UserError(f"the checkpoint is of a fit with optimizer {kind}, this one's is {now}; give the same")

    def forget_features(self, state: Mapping[str, Tensor]) -> None:
        """Let go of embeddings that were computed before a checkpoint with another backbone was loaded."""
        own = self.backbone.state_dict()
        if any(not torch.equal(state[f"backbone.{name}"].cpu(), value.cpu()) for name, value in own.items()):
            splits = tuple(self.data.features)
            self.data.features = {}
            self.data.check_images(splits)

    def resume_epoch(self, known: Mapping[str, Any] | None) -> None:
        """Go on within an epoch, with what its first part has shown.

        Raises:
            UserError: more or fewer processes: the rest of the epoch would be other images.
        """
        known, now = known or {}, self.trainer.world_size
        before = known.get("processes", now)
        if before != now:
            raise UserError(
                f"the checkpoint is of the midst of an epoch that {before} processes shared, this fit has {now}; "
                "give as many with --trainer.devices and --trainer.num_nodes, or start a new fit"
            )
        if "loss" in known:
            self.train_loss.sums = known["loss"].to(self.trainer.strategy.root_device)
            self.rates, self.epoch_start = known["rates"], time.perf_counter() - known["seconds"]


def run_validation(trainer: Trainer) -> None:
    """Run the validation loop of a fit before its first step, as Lightning runs it between steps."""
    connector = trainer._logger_connector
    first = connector._first_loop_iter
    trainer.validating = True
    trainer.fit_loop.epoch_loop.val_loop.run()
    trainer.training = True
    connector._first_loop_iter = first
