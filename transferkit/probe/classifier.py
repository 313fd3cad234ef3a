"""The classifier that a probe fits: a linear layer on raw embeddings, saved as safetensors."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from transferkit.data.seen import BACKBONE, backbone_seen, remember_paths
from transferkit.data.targets import Kind as TargetKind
from transferkit.embed import space_of
from transferkit.embed.embedding_space import EmbeddingSpace
from transferkit.errors import UserError
from transferkit.extractor import Extractor
from transferkit.probe.linear import logits_of
from transferkit.probe.standardize import Kind
from transferkit.runtime.files import atomic_path

KEY = "transferkit"
TENSORS = ("weight", "bias")
FILE_KEYS = {"standardization": "standardisation"}  # attribute -> key in the file, where they differ


@dataclass(frozen=True)
class LinearClassifier:
    """A linear layer on embeddings, and what it was fitted on.

    Attributes:
        weight: `(K, D)` float32, for raw embeddings; for unit rows if `standardization` is `l2`.
        bias: `(K,)` float32.
        class_names: K names, in the order of the rows of `weight`.
        standardization: `none` and `zscore` are folded into the weights, `l2` is not.
        c: inverse strength of regularization of the fit.
        temperature: divides the logits for calibrated probabilities.
        metadata: that of the embeddings it was fitted on (extractor, pooling, weights_sha256, ...).
        fitted_on: the images it was fitted on, as :func:`~transferkit.data.seen.remember_paths` writes them.
        kind: what it predicts, see :mod:`transferkit.data.targets`.
        thresholds: of several labels, the probability of each from which on an image has it.
    """

    weight: Tensor
    bias: Tensor
    class_names: tuple[str, ...]
    standardization: Kind
    c: float
    temperature: float
    metadata: Mapping[str, Any]
    fitted_on: str = ""
    kind: TargetKind = "class"
    thresholds: Mapping[str, float] | None = None

    def logits(self, embedding: Tensor) -> Tensor:
        """Return logits `(N, K)`, not calibrated, of raw embeddings `(N, D)`."""
        return logits_of(embedding, self.weight, self.bias, self.standardization)

    def probabilities(self, embedding: Tensor) -> Tensor:
        """Return calibrated class probabilities `(N, K)` of raw embeddings `(N, D)`; of labels each by itself."""
        logits = self.logits(embedding) / self.temperature
        return logits.sigmoid() if self.kind == "labels" else logits.softmax(1)

    def as_head_of(self, extractor: Extractor) -> Extractor:
        """Return the extractor with this classifier as its head, to export or fine-tune.

        The head's weights are divided by the temperature, so that its softmax is calibrated.

        Args:
            extractor: the one whose embeddings the classifier was fitted on.

        Raises:
            UserError: the classifier was fitted on embeddings of another extractor.
        """
        classes, width = self.weight.shape
        differing = {"embed_dim": (width, extractor.embed_dim)} if width != extractor.embed_dim else {}
        differing |= EmbeddingSpace.from_metadata(self.metadata).differences(space_of(extractor))
        differing.pop("normalize", None)  # the head then reads unit rows, see below
        for field, (fitted, value) in differing.items():
            raise UserError(
                f"the probe's classifier was fitted on embeddings with {field} {fitted}, "
                f"{extractor.name} has {value}; give the extractor that was probed, or probe this one"
            )
        head = nn.Linear(width, classes, device=extractor.device)
        head.load_state_dict({"weight": self.weight / self.temperature, "bias": self.bias / self.temperature})
        unit = self.standardization == "l2" or self.metadata.get("normalize", False)
        seen = backbone_seen(extractor.record)
        record: dict[str, Any] = {"regime": "frozen", "fitted_on": remember_paths((), self.fitted_on, seen)}
        record |= {BACKBONE: seen} if seen else {}
        record |= {"target": self.kind} if self.kind != "class" else {}
        record |= {"thresholds": dict(self.thresholds)} if self.thresholds else {}
        return Extractor(extractor.backbone, extractor.preprocessing, head, self.class_names, unit, record)

    def save(self, path: str | Path) -> None:
        """Write the tensors `weight` and `bias`, and the rest as JSON under the metadata key `transferkit`."""
        left_out = TENSORS if self.kind != "class" else (*TENSORS, "kind", "thresholds")
        rest = {FILE_KEYS.get(name, name): value for name, value in vars(self).items() if name not in left_out}
        tensors = {"weight": self.weight.contiguous(), "bias": self.bias.contiguous()}
        text = json.dumps({**rest, "metadata": dict(self.metadata)}, sort_keys=True)
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata={KEY: text})

    @classmethod
    def load(cls, path: str | Path) -> "LinearClassifier":
        """Read what `save` wrote.

        Raises:
            UserError: the file does not exist, or is not a probe's classifier.
        """
        try:
            with safe_open(path, framework="pt") as file:
                rest = json.loads(file.metadata()[KEY])
                weight, bias = file.get_tensor("weight"), file.get_tensor("bias")
            for name, key in FILE_KEYS.items():
                rest[name] = rest.pop(key)
            rest["class_names"] = tuple(rest["class_names"])
            return cls(weight=torch.as_tensor(weight), bias=torch.as_tensor(bias), **rest)
        except FileNotFoundError as error:
            raise UserError(f"no such file: {path}; probe an extractor to get one, classifier.safetensors") from error
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path} is not a probe's classifier ({type(error).__name__}); probe an extractor to get one"
            ) from error
