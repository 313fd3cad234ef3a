"""The network that is trained: an extractor's backbone, partly or wholly frozen, under a linear head."""

import copy
from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from functools import cached_property
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from transferkit.backbones.adapters import merge_adapters
from transferkit.data.batches import Batch
from transferkit.data.image_table import ImageTable
from transferkit.data.sample_weights import SampleWeights
from transferkit.data.seen import remember_paths
from transferkit.errors import UserError
from transferkit.extractor import Extractor
from transferkit.extractor.calibration import Calibration
from transferkit.extractor.checkpoint_reader import FORMAT
from transferkit.extractor.core import head_logits
from transferkit.extractor.forward import network_input
from transferkit.extractor.word_head import reads_unit_rows, word_head
from transferkit.runtime.full_float32 import full_float32
from transferkit.runtime.versions import versions
from transferkit.training.metrics import EvaluationMetrics
from transferkit.training.regimes import Regime, first_trainable, freeze, frozen_keys, set_mode
from transferkit.training.start import WORDS


class TransferNetwork(LightningModule):
    """A backbone under a linear head, with the metrics that measure the head.

    Args:
        extractor: gives backbone, preprocessing, and the head to start from, if there is one.
        regime: which parts learn.
        unfreeze_last: number of stages that learn with regime ``partial``.
        dropout: on the embedding before the head, in [0, 1).
        batchnorm_moves: whether BatchNorm layers that learn normalize by the batch and update their statistics.
        seed: seed of a new head's weights.

    Attributes:
        head: linear layer (D -> classes); None until the classes are known.
        class_weights: (classes,) weight of each class in the loss, or None.
        row_weights: weight of each training image in the loss, or None.
        class_counts: number of training images by class.
        image_counts: number of images by split.
        starts_trained: whether the head was trained before.
        chosen: values of the options of which a fit has tried several.
        calibration: what is known of the head that it starts from; as_extractor() drops that of another head.
        first_trainable: index of the first stage that a fit changes.
        learns_from: index of the first stage that learns now.
        fitted_on: the images that it was fitted on, as :func:`~transferkit.data.seen.remember_paths` writes them.
    """

    def __init__(
        self, extractor: Extractor, regime: Regime, unfreeze_last: int, dropout: float, batchnorm_moves: bool, seed: int
    ) -> None:
        super().__init__()
        self.backbone, self.preprocessing = extractor.backbone, extractor.preprocessing
        self.regime, self.dropout, self.batchnorm_moves, self.seed = regime, dropout, batchnorm_moves, seed
        self.class_names: list[str] = []
        self.head: nn.Linear | None = None
        self.l2_normalize = extractor.l2_normalize
        self.class_weights: Tensor | None = None
        self.row_weights: SampleWeights | None = None
        self.class_counts: dict[str, int] = {}
        self.image_counts: dict[str, int] = {}
        self.starts_trained, self.fitted_on = False, ""
        self.chosen: dict[str, float] = {}
        self.calibration: Calibration | None = None
        if extractor.head:
            self.start_from(extractor)
        self.first_trainable = first_trainable(self.backbone, regime, unfreeze_last)
        self.learns_from = self.first_trainable
        freeze(self.backbone, self.first_trainable)

    def set_classes(self, names: list[str]) -> None:
        """Make a new head for the given classes; its weights depend on the seed alone."""
        self.class_names = list(names)
        self.starts_trained, self.fitted_on = False, ""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.head = nn.Linear(self.backbone.embed_dim, len(names))
        self.val_metrics = EvaluationMetrics(len(names), "val")
        self.test_metrics = EvaluationMetrics(len(names), "test")

    def start_from(self, extractor: Extractor) -> None:
        """Take over a trained head, its classes and their weights, and the images that it was fitted on."""
        self.set_classes(extractor.class_names)
        self.head, self.starts_trained, self.calibration = extractor.head, True, extractor.calibration
        self.fitted_on = extractor.record.get("fitted_on", "")
        if weights := extractor.record.get("class_weights"):
            self.class_weights = torch.tensor(weights)

    def remember_images(self, tables: Mapping[str, ImageTable]) -> None:
        """Take down how many images a fit has by class and split, and which it learns from, by table of each split."""
        if "train" not in tables:  # the user's own loaders
            return
        counts = Counter(tables["train"].labels)
        self.class_counts = {name: counts[name] for name in self.class_names}
        self.image_counts = {name: len(table) for name, table in tables.items()}
        self.fitted_on = remember_paths(tables["train"].paths, self.fitted_on)

    def take_classes(self, names: list[str], head: str | None) -> None:
        """Make a head for the classes of the data, which are not those of the head so far.

        Args:
            names: the classes.
            head: the option of the module.

        Raises:
            UserError: a classifier of other classes was asked for.
        """
        if head == WORDS:
            self.start_from_words(names)
        elif head in (None, "none"):
            self.set_classes(names)
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
            return batch["embedding"]
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

    def normalized(self, pixels: Tensor) -> Tensor:
        """Return what the backbone takes: uint8 (B, 3, h, w) -> float (B, 3, h, w)."""
        return network_input(self.backbone, self.preprocessing, pixels)

    def classify(self, embedding: Tensor) -> Tensor:
        """Return the class scores of embeddings: (B, D) -> (B, classes)."""
        assert self.head is not None  # set_classes() has made it
        return head_logits(self.head, embedding, self.l2_normalize, self.dropout if self.training else 0.0)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the class scores of preprocessed pixels: uint8 (B, 3, h, w) -> (B, classes)."""
        return self.classify(self.embed({"pixels": pixels}))

    def weight_of(self, target: Tensor) -> Tensor:
        """Return the weight of each row in the loss, by its class: (B,)."""
        if self.class_weights is None:
            return torch.ones(len(target), device=target.device)
        return self.class_weights.to(target.device)[target]

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
        record = self.describe()
        return Extractor(
            backbone, self.preprocessing, head, self.class_names, self.l2_normalize, record, self.calibration
        )

    def describe(self) -> dict[str, Any]:
        """Return a plain-typed record: all that an extractor needs, and what the head was trained on."""
        return {
            "format": FORMAT,
            "complete": True,
            "backbone": self.spec,
            "class_names": self.class_names,
            "class_counts": self.class_counts,
            "images": self.image_counts,
            "l2_normalize": self.l2_normalize,
            "regime": self.regime,
            "fitted_on": self.fitted_on,
            "class_weights": None if self.class_weights is None else self.class_weights.tolist(),
            "sample_weights": self.row_weights and self.row_weights.record,
            "versions": self.versions,
        }

    @cached_property
    def spec(self) -> dict[str, Any]:
        """Plain-typed description of backbone, pooling and preprocessing, cached: it takes milliseconds to make."""
        return self.backbone.spec() | {"preprocessing": self.preprocessing.to_dict()}

    @cached_property
    def versions(self) -> dict[str, str]:
        """Versions of the libraries, cached: looking them up reads many files."""
        return versions()
