"""The network that is trained: an extractor's backbone, partly or wholly frozen, under a linear head."""

import copy
from contextlib import nullcontext
from functools import cached_property, partial
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from transferkit.backbones import Backbone
from transferkit.backbones.adapters import merge_adapters
from transferkit.backbones.cut import Cut
from transferkit.data.batches import Batch
from transferkit.data.datamodule import ImageDataModule
from transferkit.data.sample_weights import SampleWeights
from transferkit.data.seen import BACKBONE, backbone_seen, remember_paths
from transferkit.data.targets import TARGETS, Kind, require_class
from transferkit.errors import UserError
from transferkit.extractor import Extractor
from transferkit.extractor.calibration import Calibration
from transferkit.extractor.checkpoint_reader import LOSS_SCALE, format_of, in_units_record
from transferkit.extractor.core import head_logits
from transferkit.extractor.fast_modules import channels_last
from transferkit.extractor.forward import training_input
from transferkit.extractor.word_head import reads_unit_rows, word_head
from transferkit.runtime.full_float32 import full_float32
from transferkit.runtime.versions import versions
from transferkit.training.metrics import EvaluationMetrics
from transferkit.training.predicting import Predicting
from transferkit.training.regimes import Regime, first_trainable, freeze, frozen_keys, set_mode
from transferkit.training.start import WORDS
from transferkit.training.tasks import Loss, Task, task_of


class TransferNetwork(LightningModule):
    """A backbone under a linear head, with the metrics that measure the head.

    Args:
        extractor: gives backbone, preprocessing, and the head to start from, if there is one.
        regime: which parts learn.
        unfreeze_last: number of stages that learn with regime ``partial``.
        dropout: on the embedding before the head, in [0, 1).
        batchnorm_moves: whether BatchNorm layers that learn normalize by the batch and update their statistics.
        seed: seed of a new head's weights.
        loss: see :func:`~transferkit.training.tasks.task_of`.

    Attributes:
        task: what is predicted.
        head: linear layer (D -> classes); None until the classes are known.
        class_weights: (classes,) weight of each class in the loss, or None.
        row_weights: weight of each training image in the loss, or None.
        order_seed: seed of the order of batches, augmentation and dropout; that of the weights unless it is changed.
        class_counts: number of training images by class.
        image_counts: number of images by split.
        starts_trained: whether the head was trained before.
        chosen: values of the options of which a fit has tried several.
        calibration: what is known of the head that it starts from; as_extractor() drops that of another head.
        first_trainable: index of the first stage that a fit changes.
        learns_from: index of the first stage that learns now.
        cut: where the batches of a fit enter the backbone, if its frozen stages ran before.
        predicting: what embeds images for predictions.
        fitted_on: the images that it was fitted on, as :func:`~transferkit.data.seen.remember_paths` writes them.
        backbone_seen: those of them that the backbone was trained on, now or before.
    """

    predicting = Predicting()
    cut: Cut | None = None

    def __init__(
        self,
        extractor: Extractor,
        regime: Regime,
        unfreeze_last: int,
        dropout: float,
        batchnorm_moves: bool,
        seed: int,
        loss: Loss = "auto",
    ) -> None:
        super().__init__()
        self.backbone, self.preprocessing = extractor.backbone, extractor.preprocessing
        self.regime, self.dropout, self.batchnorm_moves = regime, dropout, batchnorm_moves
        self.seed = self.order_seed = seed
        self.class_names: list[str] = []
        self.loss, self.task = loss, task_of("class")
        self.head: nn.Linear | None = None
        self.l2_normalize = extractor.l2_normalize
        self.class_weights: Tensor | None = None
        self.row_weights: SampleWeights | None = None
        self.class_counts: dict[str, int] = {}
        self.image_counts: dict[str, int] = {}
        self.backbone_seen = backbone_seen(extractor.record)
        self.starts_trained, self.fitted_on = False, self.backbone_seen
        self.chosen: dict[str, float] = {}
        self.calibration: Calibration | None = None
        if extractor.head:
            self.start_from(extractor)
        self.first_trainable = first_trainable(self.backbone, regime, unfreeze_last)
        self.learns_from = self.first_trainable
        freeze(self.backbone, self.first_trainable)

    def set_classes(self, names: list[str], task: Task | None = None) -> None:
        """Make a new head for the given classes, or outputs; its weights depend on the seed alone."""
        self.class_names, self.task = list(names), task or task_of("class", self.loss)
        self.starts_trained, self.fitted_on = False, self.backbone_seen
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.head = nn.Linear(self.backbone.embed_dim, len(names))
        self.val_metrics, self.test_metrics = (self.task.metrics(names, stage) for stage in ("val", "test"))

    def start_from(self, extractor: Extractor) -> None:
        """Take over a trained head, its classes and their weights, and the images that it was fitted on."""
        record = extractor.record
        assert extractor.head is not None
        task = task_of(record.get("target", "class"), self.loss, record | {"scale": record.get(LOSS_SCALE)})
        self.set_classes(extractor.class_names, task)
        self.head, self.starts_trained, self.calibration = task.unfold(extractor.head), True, extractor.calibration
        self.fitted_on = record.get("fitted_on", "")
        if weights := record.get("class_weights"):
            self.class_weights = torch.tensor(weights)

    def remember_training(self, data: ImageDataModule) -> None:
        """Take down what a fit learns from: its loss, its images, how many of each class and split, targets."""
        self.task.use_loss(self.loss)
        if "train" not in data.tables:  # the user's own loaders
            return
        counts = TARGETS[self.task.kind].counts(data.tables["train"].labels)
        self.class_counts = {name: counts.get(name, 0) for name in self.class_names}
        self.image_counts = {name: len(table) for name, table in data.tables.items()}
        self.fitted_on = remember_paths(data.tables["train"].paths, self.fitted_on)
        if self.regime != "frozen":
            self.backbone_seen = remember_paths(data.tables["train"].paths, self.backbone_seen)
        self.learn_targets(data.targets("train"))

    def take_classes(self, names: list[str], kind: Kind, head: str | None) -> None:
        """Make a head for the classes of the data, which are not those of the head so far.

        Args:
            names: the classes.
            kind: of the targets.
            head: the option of the module.

        Raises:
            UserError: a classifier of other classes was asked for, or words for targets that are no classes.
        """
        if head == WORDS:
            require_class(kind, f'`head="{WORDS}"`')
            self.start_from_words(names)
        elif head in (None, "none"):
            self.set_classes(names, task_of(kind, self.loss))
        else:
            raise UserError(
                f"the classes of {head} are {', '.join(self.class_names)}, the data has {', '.join(names)}; "
                "probe this data, or leave out `head`"
            )

    def start_from_words(self, names: list[str]) -> None:
        """Make the head that the names of the classes are, see :func:`~transferkit.extractor.word_head.word_head`.

        Raises:
            UserError: the text tower cannot be opened, or a class has an empty name.
        """
        extractor = Extractor(self.backbone, self.preprocessing)
        self.set_classes(names)
        self.head, self.starts_trained = word_head(extractor, names), True
        self.l2_normalize = reads_unit_rows(extractor)

    @cached_property
    def frozen_keys(self) -> set[str]:
        """Names within the backbone of the tensors that training does not change."""
        return frozen_keys(self.backbone, self.first_trainable)

    def train(self, mode: bool = True) -> "TransferNetwork":
        """Set train or eval mode; frozen stages stay in eval mode, so that their BatchNorm statistics stay."""
        super().train(mode)
        set_mode(self.backbone, self.learns_from, mode, self.batchnorm_moves)
        return self

    def embed(self, batch: Batch) -> Tensor:
        """Return the embeddings of a batch, computed or cached: float (B, D)."""
        if "embedding" in batch:
            return self.from_cut(self.backbone, batch["embedding"])
        if "inputs" in batch:  # of the user's own DataLoader: normalized already
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.regime != "frozen"):
                own: Tensor = self.backbone(batch["inputs"].to(self.dtype))
            return own
        if not len(batch["pixels"]):  # a process without a share of the rows; not every network accepts none
            return batch["pixels"].new_empty(0, self.backbone.embed_dim).to(self.dtype)
        exact = nullcontext() if self.training else full_float32()
        with exact, torch.set_grad_enabled(torch.is_grad_enabled() and self.regime != "frozen"):
            pixels = batch["input"] if "input" in batch else self.normalized(batch["pixels"])
            embedding: Tensor = self.backbone(pixels)
        return embedding

    def from_cut(self, backbone: Backbone, values: Tensor) -> Tensor:
        """Return the embeddings of what was cached: these themselves, or what enters the stages that learn."""
        if self.cut is None:
            return values
        if not len(values):  # a process without a share of the rows
            return values.new_empty(0, backbone.embed_dim)
        with nullcontext() if self.training else full_float32():
            return self.cut.rest(backbone, values, partial(channels_last, backbone))

    def normalized(self, pixels: Tensor) -> Tensor:
        """Return what the backbone takes: uint8 (B, 3, h, w) -> float (B, 3, h, w)."""
        return training_input(self.backbone, self.preprocessing, pixels)

    def classify(self, embedding: Tensor) -> Tensor:
        """Return the class scores of embeddings: (B, D) -> (B, classes)."""
        assert self.head is not None  # set_classes() has made it
        return head_logits(self.head, embedding, self.l2_normalize, self.dropout if self.training else 0.0)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the class scores of preprocessed pixels: uint8 (B, 3, h, w) -> (B, classes)."""
        return self.classify(self.embed({"pixels": pixels}))

    @property
    def logged_names(self) -> set[str]:
        """Names that a fit logs and a callback may monitor, once the classes are known."""
        return self.val_metrics.scalars | {"train/loss", "epoch_time", "lr/head", "lr/backbone", "head/C", "stages"}

    def learn_targets(self, target: Tensor) -> None:
        """Let the task take over what it needs of the training targets; a trained head is adapted to it."""
        assert self.head is not None
        head = self.task.fold(self.head)
        self.task.learn(target)
        if self.starts_trained:
            self.head.load_state_dict(self.task.unfold(head).state_dict())

    def evaluate(self, batch: Batch, metrics: EvaluationMetrics) -> dict[str, Tensor]:
        """Update metrics by one batch; return embedding (B, D), probability (B, classes) and row (B,)."""
        embedding = self.embed(batch)
        logits = self.classify(embedding)
        probability = self.task.activate(logits)
        metrics.update(probability, batch["target"], *self.task.losses(logits.float(), batch, self.class_weights, 0.0))
        return {"embedding": embedding, "probability": probability, "row": batch["row"]}

    def as_extractor(self) -> Extractor:
        """Return the extractor in eval mode; it shares its tensors with this module, whose mode stays.

        Adapters are merged into weights of its own.
        """
        if self.regime == "lora":
            backbone, head = copy.deepcopy((self.backbone, self.head))
            merge_adapters(backbone)
            head = head and head.float()
        else:
            parts = [value for module in self.modules() for value in vars(module).values() if isinstance(value, Tensor)]
            tensors = {id(tensor): tensor for tensor in (*self.parameters(), *self.buffers(), *parts)}
            backbone, head = copy.deepcopy((self.backbone, self.head), tensors)  # copies modules, not their tensors
        record = in_units_record(self.describe())
        head = head and self.task.fold(head)
        return Extractor(
            backbone, self.preprocessing, head, self.class_names, self.l2_normalize, record, self.calibration
        )

    def describe(self) -> dict[str, Any]:
        """Return a plain-typed record: all that an extractor needs, and what the head was trained on."""
        return {
            "format": format_of(self.task.describe(self.class_names)),
            "complete": True,
            "backbone": self.spec,
            "class_names": self.class_names,
            "class_counts": self.class_counts,
            "images": self.image_counts,
            "l2_normalize": self.l2_normalize,
            "regime": self.regime,
            "fitted_on": self.fitted_on,
            BACKBONE: self.backbone_seen,
            "class_weights": None if self.class_weights is None else self.class_weights.tolist(),
            "sample_weights": self.row_weights and self.row_weights.record,
            "versions": self.versions,
            **self.task.describe(self.class_names),
        }

    @cached_property
    def spec(self) -> dict[str, Any]:
        """Plain-typed description of backbone, pooling and preprocessing, cached: it takes milliseconds to make."""
        return self.backbone.spec() | {"preprocessing": self.preprocessing.to_dict()}

    @cached_property
    def versions(self) -> dict[str, str]:
        """Versions of the libraries, cached: looking them up reads many files."""
        return versions()
