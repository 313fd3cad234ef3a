"""The contract every backbone keeps, whatever library it comes from."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from transferkit.errors import UserError, first_line
from transferkit.images.preprocessing import Preprocessing

WITH_WORDS = "google/siglip2-base-patch16-224"
Output = TypeVar("Output")


class Backbone(nn.Module, ABC):
    """A pretrained network without its classifier: normalized pixels in, embedding out.

    Attributes:
        name: torchvision name, Hugging Face id or directory it was built from.
        model: the library's own module, with its classifier removed.
        pooling: how features become one embedding per image.
        poolings: every pooling this network offers, its default first.
        preprocessing: what its weights expect (image -> pixels).
        stages: stage name -> names of the submodules in it, stem first. Parameters outside of
            every listed submodule (class token, position embeddings) belong to the stem.
        embed_dim: width D of the embedding.
    """

    name: str
    model: nn.Module
    pooling: str
    poolings: tuple[str, ...]
    preprocessing: Preprocessing
    stages: dict[str, list[str]]
    embed_dim: int

    @abstractmethod
    def forward(self, pixels: Tensor) -> Tensor:
        """Embed normalized pixels: float (B, 3, H, W) -> (B, D)."""

    @abstractmethod
    def forward_features(self, pixels: Tensor) -> Tensor:
        """Return the features before pooling: a map (B, C, h, w), or patch tokens (B, T, C) in row-major order.

        Prefix tokens (class, distillation, register) are left out.
        """

    def forward_both(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features before pooling and the embedding, by one pass where the library allows it."""
        return self.forward_features(pixels), self(pixels)

    @abstractmethod
    def spec(self) -> dict[str, Any]:
        """Return a plain-typed description; :func:`~transferkit.backbones.rebuild` builds the architecture from it."""

    def describe(self, source: str, architecture: Mapping[str, Any]) -> dict[str, Any]:
        """Return the :meth:`spec` of a backbone.

        Args:
            source: the library that builds it.
            architecture: what the library builds it from, in plain types.
        """
        return {
            "source": source,
            "name": self.name,
            "architecture": copy.deepcopy(dict(architecture)),  # whoever changes a description changes no backbone
            "pooling": self.pooling,
            "preprocessing": self.preprocessing.to_dict(),
        }

    @property
    def stage_names(self) -> list[str]:
        """Names of the stages, stem first."""
        return list(self.stages)

    def stage_modules(self, stage: str) -> list[nn.Module]:
        """Return the submodules of one stage, in the order they run."""
        modules = dict(self.model.named_modules())
        return [modules[name] for name in self.stages[stage] if name in modules]  # the rest are parameters

    def stage_of(self, parameter: str) -> int:
        """Return the index of the stage that holds a parameter or buffer, by its name within ``model``."""
        for index, names in enumerate(self.stages.values()):
            if any(parameter == name or parameter.startswith(f"{name}.") for name in names):
                return index
        return 0

    def forward_stage(self, pixels: Tensor, stage: str) -> Tensor:
        """Return what a stage puts out: a map (B, C, h, w) or all tokens (B, T, C).

        Raises:
            UserError: the backbone has no stage of that name.
        """
        if stage not in self.stages:
            raise UserError(f"{self.name} has no stage {stage!r}; its stages: {', '.join(self.stages)}")
        if stage == self.stage_names[-1]:
            return self.forward_features(pixels)
        kept: list[Tensor] = []

        def keep(module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
            kept.append(inputs[0] if inputs else next(iter(options.values())))

        after = self.stage_names[self.stage_names.index(stage) + 1]
        place = self.stage_modules(after)[0]  # what it takes is what this stage puts out
        while isinstance(place, nn.ModuleList):  # it is not called, its parts are
            place = place[0]
        handle = place.register_forward_pre_hook(keep, with_kwargs=True)
        try:
            self.forward_features(pixels)
        finally:
            handle.remove()
        return kept[-1]

    def fit_to(self, image_size: tuple[int, int]) -> None:
        """Change what depends on the image size, before images of another size than the native one are embedded."""

    @property
    def wordless(self) -> str | None:
        """Why it cannot be asked by words, with the remedy; None where it can."""
        return f"{self.name} is a model of images alone; give a model of images and texts, such as {WITH_WORDS}"

    def open_text(self) -> Any:
        """Open the text tower that belongs to this image tower, see :mod:`transferkit.backbones.text_tower`.

        Raises:
            UserError: it has none, or its files are missing.
        """
        raise UserError(f"it cannot be asked by words: {self.wordless}")

    def dry_run(self, run: Callable[[Tensor], Output]) -> Output:
        """Return what ``run`` makes of one blank image (1, 3, H, W) of the size that the preprocessing gives.

        Raises:
            UserError: the network does not take it.
        """
        self.eval()
        height, width = self.preprocessing.image_size
        try:
            with torch.no_grad():
                output = run(torch.zeros(1, 3, height, width))
        except Exception as error:  # whatever a network makes of a size or of arguments that it does not take
            raise UserError(
                f"{self.name} cannot embed an image of {height} x {width} pixels ({first_line(error)}); "
                "give another size, or a model that takes pixel_values alone"
            ) from error
        self.train().eval()  # LeViT forgets what it computed from weights that may be replaced yet
        return output


def choose_pooling(name: str, pooling: str | None, poolings: tuple[str, ...]) -> str:
    """Return the pooling asked for, or the default (the first).

    Raises:
        UserError: the backbone has no such pooling.
    """
    if pooling is None:
        return poolings[0]
    if pooling not in poolings:
        offers = f"it offers {', '.join(poolings)}"
        if pooling == "projection":
            raise UserError(
                f"{name} has no pooling 'projection', the space of images and texts: {offers}; give a model of both, "
                f"such as {WITH_WORDS}"
            )
        raise UserError(f"{name} has no pooling {pooling!r}; {offers}")
    return pooling


def leaf_types(module: nn.Module, kinds: type[nn.Module] | tuple[type[nn.Module], ...]) -> Iterable[str]:
    """Return the names of the submodules of the given types, in registration order."""
    return (name for name, child in module.named_modules() if isinstance(child, kinds))
