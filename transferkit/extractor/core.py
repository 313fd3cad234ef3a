"""What an extractor is and does once it is open: image in, embedding out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transferkit.backbones import Backbone
from transferkit.backbones.weights import state_sha256
from transferkit.errors import UserError
from transferkit.extractor.forward import Features, Forward, Precision, network_input
from transferkit.images.decoding import ImageError, read_image
from transferkit.images.preprocessing import Preprocessing
from transferkit.runtime.full_float32 import full_float32


class ExtractorCore:
    """Backbone, preprocessing and pooling, with the linear head and class names if it has been trained.

    Args:
        backbone: the network, its pooling chosen.
        preprocessing: image -> pixels; ``None`` is what the backbone's weights expect.
        head: linear layer (D -> classes) on the embedding, or None.
        class_names: what the head's outputs stand for, in order.
        l2_normalize: whether the head reads L2-normalised embeddings.
        record: what is known of its training (class counts, regime, metrics), for the model card.
    """

    def __init__(
        self,
        backbone: Backbone,
        preprocessing: Preprocessing | None = None,
        head: nn.Linear | None = None,
        class_names: Sequence[str] = (),
        l2_normalize: bool = False,
        record: Mapping[str, Any] | None = None,
    ) -> None:
        self.backbone = backbone.eval()
        self.preprocessing = preprocessing or backbone.preprocessing
        self.head = head.eval() if head else None
        self.class_names = list(class_names)
        self.l2_normalize = l2_normalize
        self.record = dict(record or {})

    @property
    def name(self) -> str:
        """Name of the backbone."""
        return self.backbone.name

    @property
    def pooling(self) -> str:
        """How features become one embedding."""
        return self.backbone.pooling

    @property
    def embed_dim(self) -> int:
        """Width D of the embedding."""
        return self.backbone.embed_dim

    @property
    def device(self) -> torch.device:
        """Where the backbone lies."""
        return next(self.backbone.parameters()).device

    def to(self, device: str | torch.device) -> Self:
        """Move backbone and head to a device; returns itself."""
        self.backbone.to(device)
        if self.head:
            self.head.to(device)
        return self

    @torch.inference_mode()
    def __call__(self, pixels: Tensor) -> Tensor:
        """Embed preprocessed pixels.

        Args:
            pixels: uint8 (B, 3, h, w), as :meth:`Preprocessing.resize_crop` gives.

        Returns:
            float32 (B, D) on the backbone's device.
        """
        with full_float32():
            embedding: Tensor = self.backbone(network_input(self.backbone, self.preprocessing, pixels))
        return embedding.float()

    def embed(self, images: Sequence[str | Path | Tensor], batch_size: int = 32) -> Tensor:
        """Embed image files or decoded images.

        Args:
            images: paths, or uint8 RGB tensors (3, H, W) of any sizes.
            batch_size: images a forward pass.

        Returns:
            float32 (N, D) on the CPU, in the order given.

        Raises:
            UserError: a file that is no readable image.
        """
        if isinstance(images, (str, Path)):
            raise UserError(f"embed takes a list of images, not {images!r}; for a folder use transferkit embed")
        batches = [torch.empty(0, self.embed_dim)]
        forward = self.forward() if len(images) > batch_size else self  # making it takes as long as a few images
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            pixels = torch.stack([self.preprocessing.resize_crop(open_image(image)) for image in batch])
            batches.append(forward(pixels).cpu())
        return torch.cat(batches)

    @torch.inference_mode()
    def classify(self, embedding: Tensor) -> Tensor:
        """Compute the logits of embeddings.

        Args:
            embedding: float32 (N, D), as :meth:`embed` returns it; L2-normalized here if the head was trained so.

        Returns:
            float32 (N, classes) on the head's device, columns in the order of ``class_names``.

        Raises:
            UserError: the extractor has no head.
        """
        if self.head is None:
            raise UserError(f"{self.name} has no head; train one with fit, or probe the extractor")
        with full_float32():
            return head_logits(self.head, embedding.to(self.head.weight.device), self.l2_normalize)

    def forward(
        self,
        precision: Precision = "32",
        layer: str | None = None,
        features: Features = "pooled",
        normalize: bool = False,
    ) -> Forward:
        """The forward pass for many batches, as fast as it can be had; arguments as of :class:`Forward`.

        It may keep the weights of this moment: make it anew after training.

        Raises:
            UserError: no such stage, or features that the network does not have.
        """
        return Forward(self.backbone, self.preprocessing, precision, layer, features, normalize)

    def weights_sha256(self) -> str:
        """SHA-256 over the backbone's tensors."""
        return state_sha256(self.backbone.model.state_dict())

    def spec(self) -> dict[str, Any]:
        """Plain-typed description of backbone, pooling and the preprocessing in use."""
        return self.backbone.spec() | {"preprocessing": self.preprocessing.to_dict()}


def head_logits(head: nn.Linear, embedding: Tensor, l2_normalize: bool, dropout: float = 0.0) -> Tensor:
    """Compute the logits of embeddings: (N, D) -> (N, classes).

    Args:
        head: linear layer (D -> classes).
        embedding: (N, D), as the backbone gives it.
        l2_normalize: whether the head reads embeddings of length 1.
        dropout: share of the numbers of an embedding that are zeroed before the head, in training.
    """
    rows = F.normalize(embedding) if l2_normalize else embedding
    logits: Tensor = head(F.dropout(rows, dropout) if dropout else rows)
    return logits


def open_image(image: str | Path | Tensor) -> Tensor:
    """A decoded image as it is, a path read: uint8 (3, H, W).

    Raises:
        UserError: a file that is no readable image.
    """
    if isinstance(image, Tensor):
        return image
    try:
        return read_image(image)
    except ImageError as error:
        raise UserError(f"{image} cannot be read as an image: {error}") from error
