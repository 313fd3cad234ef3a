"""Which class of transformers is the backbone of a configuration, and what cannot be one."""

import copy
import inspect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from transferkit.backbones.families import KNOWN
from transferkit.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

# What image models are called for, and the nearest that opens.
NEAREST = {
    "yolos": "mixes detection tokens with the patches; the nearest is facebook/deit-small-patch16-224",
    "siglip2": "takes grids of patches besides pixels; the nearest is google/siglip2-base-patch16-224, of fixed size",
    "siglip2_vision_model": "takes grids of patches besides pixels; the nearest is google/siglip2-base-patch16-224",
    "videomae": "takes videos; the nearest is facebook/vit-mae-base",
    "vivit": "takes videos; the nearest is google/vit-base-patch16-224",
    "timesformer": "takes videos; the nearest is google/vit-base-patch16-224",
    "vjepa2": "takes videos; the nearest is facebook/ijepa_vith14_1k",
    "sam": "takes images with prompts; the nearest is facebook/vit-mae-base",
    "sam2": "takes images with prompts; the nearest is facebook/hiera-base-224-hf",
    **dict.fromkeys(
        ("sam2_video", "sam3", "sam3_video", "sam_hq", "edgetam", "edgetam_video"),
        "takes images with prompts; the nearest is facebook/hiera-base-224-hf",
    ),
    "imagegpt": "takes color clusters, not pixels; the nearest is google/vit-base-patch16-224",
    "perceiver": "takes any kind of input; the nearest is google/vit-base-patch16-224",
}


@dataclass(frozen=True)
class ModelClass:
    """What to build for a configuration.

    Args:
        kind: transformers' class.
        config: the configuration that it is built from.
        options: further arguments of the class.
        dual: class of the model of images and texts that it is the vision tower of, if it is one.
        dual_config: configuration of that model.
    """

    kind: "type[PreTrainedModel]"
    config: "PreTrainedConfig"
    options: dict[str, Any] = field(default_factory=dict)
    dual: "type[PreTrainedModel] | None" = None
    dual_config: "PreTrainedConfig | None" = None


def model_class(name: str, config: "PreTrainedConfig", pooling: str | None) -> ModelClass:
    """Choose transformers' base model class for a configuration and a pooling.

    Raises:
        UserError: it has none, or one that does not take pixels alone or whose tokens are not patches.
    """
    import transformers

    what = f"{name} is a {config.model_type} model"
    if config.model_type in NEAREST:
        raise UserError(f"{what}: it {NEAREST[config.model_type]}")
    if config.model_type == "timm_wrapper":
        raise UserError(f"{name} is a repository of timm's; give hf-hub:{name}")
    kind: Any = base_class(config)
    if kind is None:
        raise UserError(f"{what}, which transformers cannot open as a backbone; give an image model")
    if hasattr(config, "vision_config"):
        vision: Any = getattr(transformers, kind.__name__.replace("Model", "VisionModel"), None)
        if vision is None or getattr(vision, "main_input_name", None) != "pixel_values":
            raise UserError(f"{what} of images and text without a vision tower of its own; give a CLIP or SigLIP model")
        return ModelClass(vision, config.vision_config, dual=kind, dual_config=config)
    if kind.main_input_name != "pixel_values":
        raise UserError(f"{what}: it takes {kind.main_input_name}, not images; give an image model")
    if hasattr(config, "num_queries"):
        raise UserError(f"{what}, which detects objects; the nearest is microsoft/resnet-50")
    if config.model_type == "vit_mae":
        kind, config = transformers.ViTModel, encoder_of_mae(config)
    pools = pooling == "pooler" or (pooling is None and classifier_reads_pooler(kind, config))
    return ModelClass(kind, config, {"add_pooling_layer": pools} if takes_pooler(kind) else {})


def base_class(config: "PreTrainedConfig") -> Any:
    """Return transformers' base model class of a configuration; None where it has none."""
    import transformers
    from transformers import MODEL_MAPPING

    if type(config) in MODEL_MAPPING:
        found: Any = MODEL_MAPPING[type(config)]
        return found[0] if isinstance(found, list | tuple) else found
    name = type(config).__name__.replace("Config", "Model")  # vision towers that have no entry of their own
    kind = getattr(transformers, name, None)
    return kind if getattr(kind, "config_class", None) is type(config) else None


def encoder_of_mae(config: "PreTrainedConfig") -> "PreTrainedConfig":
    """Return the configuration of the ViT that a masked autoencoder's encoder is, with nothing masked."""
    from transformers import ViTConfig

    known = set(ViTConfig().to_dict()) - {"model_type", "architectures", "transformers_version"}
    return ViTConfig(**{key: value for key, value in config.to_dict().items() if key in known})


def takes_pooler(kind: type[nn.Module]) -> bool:
    """Return whether a model class builds its pooling layer only when asked."""
    return "add_pooling_layer" in inspect.signature(kind.__init__).parameters


def classifier_reads_pooler(kind: type[nn.Module], config: "PreTrainedConfig") -> bool:
    """Return whether transformers' own classifier reads a pooling layer with weights, which is then the default.

    BEiT, Data2Vec and Hiera do; ViT's reads the class token and leaves its pooling layer out.
    """
    from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING

    if not takes_pooler(kind) or type(config) not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        return False
    if config.model_type in KNOWN:
        return KNOWN[config.model_type].poolings[0] == "pooler"
    found: Any = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING[type(config)]
    small = copy.deepcopy(config)
    if hasattr(small, "num_hidden_layers"):  # the other layers are the same
        small.num_hidden_layers = 1
    with torch.device("meta"):
        model: Any = (found[0] if isinstance(found, list | tuple) else found)(small)
    pooler = getattr(model.base_model, "pooler", None)
    return pooler is not None and next(pooler.parameters(), None) is not None


def normalizes_itself(config: "PreTrainedConfig") -> bool:
    """Return whether a model subtracts mean and divides by std itself, as RADIO does."""
    return hasattr(config, "norm_mean") and hasattr(config, "norm_std")
