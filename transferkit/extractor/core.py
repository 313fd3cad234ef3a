"""What an extractor is and does once it is open: image in, embedding out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from transferkit.backbones import Backbone
from transferkit.backbones.weights import state_sha256
from transferkit.errors import UserError
from transferkit.extractor.forward import Features, Forward, Precision
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
            embedding: Tensor = self.backbone(self.preprocessing.normalize(pixels.to(self.device)))
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

    def override(self, preprocessing: Mapping[str, Any]) -> None:
        """Change fields of the preprocessing.

        Raises:
            UserError: unknown fields, or a size that the backbone does not take.
        """
        self.preprocessing = self.backbone.preprocessing = self.preprocessing.override(preprocessing)
        self.backbone.fit_to(self.preprocessing.image_size)
        self.backbone.dry_run(self.backbone)


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
