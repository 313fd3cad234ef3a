"""The classifier that a probe found: a linear layer on raw embeddings, saved as safetensors."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from transferkit.embed import space_of
from transferkit.embed.embedding_space import EmbeddingSpace
from transferkit.errors import UserError
from transferkit.extractor import Extractor
from transferkit.probe.linear import logits_of
from transferkit.probe.standardize import Kind
from transferkit.runtime.files import atomic_path

KEY = "transferkit"


@dataclass(frozen=True)
class LinearClassifier:
    """A linear layer on embeddings, and where it comes from.

    Attributes:
        weight: `(K, D)` float32, for raw embeddings; for unit rows where `standardisation` is `l2`.
        bias: `(K,)` float32.
        class_names: K names, in the order of the rows of `weight`.
        standardisation: `none` and `zscore` are folded into the weights, `l2` is not.
        c: inverse strength of regularisation, of the fit.
        temperature: divides the logits for calibrated probabilities.
        metadata: of the embeddings it was fitted on (extractor, pooling, weights_sha256, ...).
        fitted_on: which images those were, as :func:`~transferkit.data.seen.remember_paths` writes it.
    """

    weight: Tensor
    bias: Tensor
    class_names: tuple[str, ...]
    standardisation: Kind
    c: float
    temperature: float
    metadata: Mapping[str, Any]
    fitted_on: str = ""

    def logits(self, embedding: Tensor) -> Tensor:
        """Logits `(N, K)`, not calibrated, of raw embeddings `(N, D)`."""
        return logits_of(embedding, self.weight, self.bias, self.standardisation)

    def probabilities(self, embedding: Tensor) -> Tensor:
        """Calibrated class probabilities `(N, K)` of raw embeddings `(N, D)`."""
        return (self.logits(embedding) / self.temperature).softmax(1)

    def on(self, extractor: Extractor, sureness: float = 1.0) -> Extractor:
        """The extractor with this classifier as its head, to be exported or fine-tuned.

        The head's weights are divided by the temperature, so that its softmax is calibrated.

        Args:
            extractor: of the embeddings it was fitted on.
            sureness: factor on the logits, which changes no prediction; 1 is calibrated, less is more even.

        Raises:
            UserError: the classifier was fitted on embeddings of another extractor.
        """
        classes, width = self.weight.shape
        found = {"embed_dim": (width, extractor.embed_dim)} if width != extractor.embed_dim else {}
        found |= EmbeddingSpace.from_metadata(self.metadata).differences(space_of(extractor))
        found.pop("normalize", None)  # the head then reads unit rows, see below
        for what, (fitted, value) in found.items():
            raise UserError(
                f"the probe's classifier was fitted on embeddings with {what} {fitted}, "
                f"{extractor.name} has {value}; give the extractor that was probed, or probe this one"
            )
        head = nn.Linear(width, classes, device=extractor.device)
        scale = sureness / self.temperature
        head.load_state_dict({"weight": self.weight * scale, "bias": self.bias * scale})
        unit = self.standardisation == "l2" or self.metadata.get("normalize", False)
        record = {"regime": "frozen", "fitted_on": self.fitted_on}
        return Extractor(extractor.backbone, extractor.preprocessing, head, self.class_names, unit, record)

    def save(self, path: str | Path) -> None:
        """Write tensors `weight` and `bias`, the rest as JSON under the metadata key `transferkit`."""
        rest = {name: value for name, value in vars(self).items() if name not in ("weight", "bias")}
        tensors = {"weight": self.weight.contiguous(), "bias": self.bias.contiguous()}
        text = json.dumps({**rest, "metadata": dict(self.metadata)}, sort_keys=True)
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata={KEY: text})

    @classmethod
    def load(cls, path: str | Path) -> "LinearClassifier":
        """Read what `save` wrote.

        Raises:
            UserError: not there, not safetensors, or not a probe's classifier.
        """
        try:
            with safe_open(path, framework="pt") as file:
                rest = json.loads(file.metadata()[KEY])
                weight, bias = file.get_tensor("weight"), file.get_tensor("bias")
            rest["class_names"] = tuple(rest["class_names"])
            return cls(weight=torch.as_tensor(weight), bias=torch.as_tensor(bias), **rest)
        except FileNotFoundError as error:
            raise UserError(f"no such file: {path}; transferkit probe writes one, classifier.safetensors") from error
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path} is not a probe's classifier ({type(error).__name__}); make one with transferkit probe"
            ) from error
