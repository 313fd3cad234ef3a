"""The extractor once it is open: from image to embedding to logits."""

import itertools
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, partial
from hashlib import sha256
from numbers import Integral
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transferkit.backbones import Backbone
from transferkit.backbones.text_tower import TextTower
from transferkit.backbones.weights import state_sha256
from transferkit.errors import UserError
from transferkit.extractor.calibration import Calibration
from transferkit.extractor.engine import Choice, Engine, choose_engine
from transferkit.extractor.forward import Features, Forward, Precision, network_input
from transferkit.extractor.halving import Halving
from transferkit.extractor.quantization import Quantization
from transferkit.images.image_source import count_of, each_image, read_pixels
from transferkit.images.preprocessing import Preprocessing
from transferkit.runtime.full_float32 import full_float32
from transferkit.runtime.progress import progress_bar
from transferkit.runtime.verbosity import showing_progress
from transferkit.similarity import cosine_matrix

log = logging.getLogger(__name__)


RECORD = "transferkit.json"  # of an exported directory


class ExtractorCore:
    """A backbone with its preprocessing and pooling, and a linear head with class names if it has been trained.

    Args:
        backbone: the network with its pooling.
        preprocessing: image -> pixels; ``None`` is what the backbone's weights expect.
        head: linear layer (D -> classes) on the embedding, or None.
        class_names: names of the head's outputs, in order.
        l2_normalize: whether the head reads L2-normalized embeddings.
        record: facts about its training (class counts, regime, metrics), for the model card.
        calibration: of this head; one that was made for another head, pooling or preprocessing is dropped.

    Attributes:
        engine: what runs the network over many images, see :meth:`run_with`.
        precision: of that.
        quantization: how it becomes one in int8, for that precision.
    """

    engine: Engine = "torch"
    precision: Precision = "32"
    quantization: Quantization | None = None

    def __init__(
        self,
        backbone: Backbone,
        preprocessing: Preprocessing | None = None,
        head: nn.Linear | None = None,
        class_names: Sequence[str] = (),
        l2_normalize: bool = False,
        record: Mapping[str, Any] | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        self.backbone = backbone.eval()
        self.preprocessing = preprocessing or backbone.preprocessing
        self.head = head.eval() if head else None
        self.class_names = list(class_names)
        self.l2_normalize = l2_normalize
        self.record = dict(record or {})
        fits = calibration is not None and self.head is not None and calibration.classifier == self.classifier_sha256()
        self.calibration = calibration if fits else None
        self.compiled: dict[tuple[Any, ...], Forward] = {}

    def __repr__(self) -> str:
        """Return the network, what it sees and what it gives."""
        height, width = self.preprocessing.image_size
        classes = f", {len(self.class_names)} classes" if self.head and self.class_names else ""
        return f"{type(self).__name__}({self.name!r}, {height} x {width}, {self.pooling}, {self.embed_dim}-d{classes})"

    @property
    def name(self) -> str:
        """Name of the backbone."""
        return self.backbone.name

    @property
    def pooling(self) -> str:
        """Name of the pooling, which turns features into one embedding."""
        return self.backbone.pooling

    @property
    def embed_dim(self) -> int:
        """Width D of the embedding."""
        return self.backbone.embed_dim

    @property
    def device(self) -> torch.device:
        """Device of the backbone."""
        return next(self.backbone.parameters()).device

    def to(self, device: str | torch.device) -> Self:
        """Move backbone and head to a device, and return self."""
        self.backbone.to(device)
        if self.head:
            self.head.to(device)
        if "text" in vars(self):
            self.text.to(device)
        return self

    def run_with(
        self, engine: Choice = "auto", precision: Precision = "32", quantization: Quantization | None = None
    ) -> Self:
        """Choose engine and precision for many images, on the device where the network is now; return self.

        Args:
            engine: ``torch``; ``openvino`` or ``onnx``, see :mod:`transferkit.extractor.engine`; ``auto`` is openvino
                on a CPU if it is installed and can run the network, otherwise torch.
            precision: ``32``, ``bf16`` or ``int8``.
            quantization: images for ``int8``, see :func:`~transferkit.embed.samples.quantization_of`.

        Raises:
            UserError: nothing can compute in int8.
        """
        self.engine, self.precision = choose_engine(engine, self.device, precision), precision
        self.quantization = quantization
        if precision == "int8":  # it takes images, which may come later
            return self
        if engine == "auto" and self.engine != "torch":
            try:
                self.forward()
            except UserError as error:
                log.warning("PyTorch runs the network: %s", str(error).partition("; ")[0])
                self.engine = "torch"
        return self

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        """Embed preprocessed pixels.

        Args:
            pixels: uint8 (B, 3, h, w), as :meth:`Preprocessing.resize_crop` returns them.

        Returns:
            float32 (B, D) on the backbone's device.
        """
        with full_float32():
            embedding: Tensor = self.backbone(network_input(self.backbone, self.preprocessing, pixels))
        return embedding.float()

    def embed(self, images: Iterable[Any], batch_size: int = 32, progress: bool = False) -> Tensor:
        """Embed images in any form, also mixed; of a dataset's rows the image is taken.

        Args:
            images: a list, an array ``(N,)``, an iterator, or a dataset of torch or Hugging Face, of paths, bytes, open
                files, ``PIL.Image``, RGB arrays ``(H, W, 3)`` or tensors ``(3, H, W)`` of any sizes: uint8, or floats
                of 0..1; see :func:`~transferkit.images.from_python.pixels_of`.
            batch_size: images per forward pass.
            progress: show a progress bar on a terminal or in a notebook.

        Returns:
            float32 (N, D) on the CPU, in the given order.

        Raises:
            UserError: a single image is given, or one cannot be read as an image.
        """
        if not isinstance(batch_size, Integral):
            raise UserError(f"`batch_size` is {batch_size!r}; give a whole number")
        if batch_size < 1:
            raise UserError(f"`batch_size` is {batch_size}; give 1 or more")
        source, count = each_image(images), count_of(images)
        batches = [torch.empty(0, self.embed_dim)]
        # the fast pass takes as long to make as a few images
        few = count is not None and count <= batch_size and self.precision == "32"
        forward = Halving(self if few else self.forward())
        numbered = enumerate(source)
        with showing_progress(progress), progress_bar(f"embedding with {self.name}", count) as advance:
            while batch := list(itertools.islice(numbered, batch_size)):
                pixels = [self.preprocessing.resize_crop(read_pixels(image, row)) for row, image in batch]
                batches.append(forward(torch.stack(pixels)).cpu())
                advance(len(batch))
        return torch.cat(batches)

    def embed_text(self, texts: Sequence[str], batch_size: int = 64) -> Tensor:
        """Embed texts in the space of the images, of a model of images and texts (CLIP, SigLIP, ...).

        Args:
            texts: any sentences or words; the cosine with an image's embedding says how well they fit.
            batch_size: texts per forward pass.

        Returns:
            float32 (N, D) on the CPU, L2-normalized, in the given order.

        Raises:
            UserError: the model is one of images alone, its pooling is not in the shared space, or a text is empty.
        """
        if isinstance(texts, str):
            raise UserError(f"embed_text takes a list of texts, not {texts[:40]!r}; put it in a list")
        if empty := [row for row, text in enumerate(texts) if not text.strip()]:
            raise UserError(f"text {empty[0] + 1} of {len(texts)} is empty; leave it out or write what to look for")
        starts = range(0, len(texts), batch_size)
        with full_float32():
            batches = [self.text(texts[start : start + batch_size]).cpu() for start in starts]
        return torch.cat([torch.empty(0, self.embed_dim), *batches])

    @cached_property
    def text(self) -> TextTower:
        """The text tower that belongs to the backbone, opened when it is first needed.

        Raises:
            UserError: see :meth:`embed_text`.
        """
        tower: TextTower = self.backbone.open_text().to(self.device)
        return tower

    def similarity(
        self, images: Iterable[Any], others: Iterable[Any] | None = None, batch_size: int = 32, progress: bool = False
    ) -> Tensor:
        """Return the cosine similarity of every image with every other, in [-1, 1].

        Args:
            images: as for :meth:`embed`, N of them.
            others: M images to compare with; by default the same.
            batch_size: images per forward pass.
            progress: show a progress bar on a terminal or in a notebook.

        Returns:
            float32 (N, M) on the CPU.

        Raises:
            UserError: see :meth:`embed`; there are no images.
        """
        first = self.embed(images, batch_size, progress)
        return cosine_matrix(first, None if others is None else self.embed(others, batch_size, progress))

    @torch.no_grad()
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
        precision: Precision | None = None,
        layer: str | None = None,
        features: Features = "pooled",
        normalize: bool = False,
    ) -> Forward:
        """Return the fast forward pass for many batches, with the extractor's engine and, by default, its precision.

        It may copy the weights: make a new one after training. For the arguments see :class:`Forward`.

        Raises:
            UserError: the network has no such stage or features, or there are no images for int8.
        """
        precision = precision or self.precision
        quantization = self.quantized(layer, features) if precision == "int8" else None
        if precision == "int8" and quantization is None:
            raise UserError("int8 needs images to measure ranges on; give `int8_images`, or another precision")
        make = partial(
            Forward, self.backbone, self.preprocessing, precision, layer, features, normalize, self.engine, quantization
        )
        if self.engine == "torch":
            return make()
        network = self.weights_sha256(), json.dumps(self.spec()), self.engine
        key = (*network, precision, layer, features, normalize, quantization and quantization.identity)
        if key not in self.compiled:  # takes seconds
            self.compiled[key] = make()
        return self.compiled[key]

    def quantized(self, layer: str | None = None, features: Features = "pooled") -> Quantization | None:
        """Return file and identity of the network in int8; None if no images for it are known."""
        if self.quantization is None:
            return None
        return self.quantization.of(self.weights_sha256(), layer, features)

    def weights_sha256(self) -> str:
        """Return the SHA-256 over the backbone's tensors."""
        return state_sha256(self.backbone.model.state_dict())

    def classifier_sha256(self) -> str:
        """Return a hash over what makes logits of an image; the head, which every fit changes, stands for the backbone.

        Raises:
            UserError: the extractor has no head.
        """
        if self.head is None:
            raise UserError(f"{self.name} has no head; train one with fit, or probe the extractor")
        state = {name: value.bfloat16() for name, value in self.head.state_dict().items()}  # as in any precision
        facts = [state_sha256(state), self.pooling, self.preprocessing.to_dict(), self.l2_normalize, self.class_names]
        return sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def spec(self) -> dict[str, Any]:
        """Return a plain-typed description of backbone, pooling and preprocessing."""
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
