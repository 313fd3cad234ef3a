"""The vision tower of a model of images and texts (Radford et al. 2021 for CLIP, arXiv:2103.00020)."""

import copy
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from transferkit.backbones.families import PROJECTION
from transferkit.backbones.hub import load_model
from transferkit.backbones.loading import TEXT, load_state, own_names
from transferkit.backbones.model_class import ModelClass
from transferkit.backbones.weights import read_state_dict
from transferkit.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

log = logging.getLogger(__name__)


class Projected(nn.Module):
    """The vision tower with its projection into the space that images and texts share.

    Its tensors have the names that they have in the whole model.

    Args:
        vision_model: the vision tower.
        visual_projection: linear layer on its pooled output; None where that is in the shared space already (SigLIP).
        dual_config: configuration of the whole model.
    """

    def __init__(
        self, vision_model: "PreTrainedModel", visual_projection: nn.Module | None, dual_config: "PreTrainedConfig"
    ) -> None:
        super().__init__()
        self.vision_model = vision_model
        self.visual_projection = visual_projection
        self.dual_config = copy.deepcopy(dual_config)
        self.dual_config.vision_config = vision_model.config

    @classmethod
    def of(cls, whole: Any) -> "Projected":
        """Take it out of the whole model."""
        return cls(whole.vision_model, getattr(whole, "visual_projection", None), whole.config)

    @property
    def config(self) -> "PreTrainedConfig":
        """Configuration of the vision tower."""
        return self.vision_model.config

    @property
    def device(self) -> Any:
        """Where the weights are."""
        return self.vision_model.device

    def forward(self, pixel_values: Tensor, **options: Any) -> Any:
        """Return the vision tower's output with ``image_embeds`` (B, D), L2-normalized as the whole model's are."""
        output: Any = self.vision_model(pixel_values=pixel_values, **options)
        pooled = output.pooler_output
        output["image_embeds"] = F.normalize(self.visual_projection(pooled) if self.visual_projection else pooled)
        return output

    def set_attn_implementation(self, name: str) -> None:
        """Choose how the vision tower computes attention, as transformers' models do."""
        self.vision_model.set_attn_implementation(name)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the whole model's configuration and the tensors that there are."""
        self.dual_config.save_pretrained(folder)
        state = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        save_file(state, Path(folder, "model.safetensors"), {"format": "pt"})


def load_tower(choice: ModelClass, name: str, weights: str, pooling: str | None) -> "PreTrainedModel | Projected":
    """Load the vision tower straight from the files of the whole model, or from a file of its own.

    Raises:
        UserError: see :func:`~transferkit.backbones.hub.load_model`.
    """
    if pooling == PROJECTION:
        return load_projected(choice, name, weights)
    if weights != "DEFAULT" and holds_text(weights):
        return whole_model(choice, name, weights).vision_model
    try:
        return load_model(choice.kind, name, weights, choice.config, choice.options)
    except UserError:
        if weights != "DEFAULT":
            raise
    return load_projected(choice, name, weights).vision_model  # names of tensors that the class alone does not find


def load_projected(choice: ModelClass, name: str, weights: str) -> Projected:
    """Load the vision tower and its projection; the rest of the whole model is read and dropped.

    Raises:
        UserError: see :func:`~transferkit.backbones.hub.load_model`.
    """
    assert choice.dual is not None and choice.dual_config is not None
    if file := file_without_text(name, weights):  # as save_pretrained writes it
        whole: Any = choice.dual(choice.dual_config)
        part = Projected.of(whole)
        load_state(part, own_names(read_state_dict(file), part.state_dict(), file), file)
        return part
    return whole_model(choice, name, weights)


def whole_model(choice: ModelClass, name: str, weights: str) -> Projected:
    """Load the whole model, and keep its vision tower and projection.

    Raises:
        UserError: see :func:`~transferkit.backbones.hub.load_model`.
    """
    assert choice.dual is not None and choice.dual_config is not None
    return Projected.of(load_model(choice.dual, name, weights, choice.dual_config, {}))


def file_without_text(name: str, weights: str) -> Path | None:
    """Return the weights file of a model, if it is on disk and holds no text tower."""
    file = Path(name, "model.safetensors") if weights == "DEFAULT" else Path(weights)
    return file if file.is_file() and not holds_text(file) else None


def holds_text(path: str | Path) -> bool:
    """Return whether a weights file holds more than a vision tower and its projection, by the names of its tensors."""
    if Path(path).suffix != ".safetensors":
        return any(is_text(key) for key in read_state_dict(path))
    with safe_open(path, "pt") as file:
        return any(is_text(key) for key in file.keys())  # noqa: SIM118  # not a mapping


def is_text(key: str) -> bool:
    """Return whether a tensor belongs to the text side of a model of images and texts."""
    return any(part in TEXT and part != "visual_projection" for part in key.split("."))
