"""The layout of timm's repositories: ``timm.create_model("local-dir:DIR", pretrained=True)`` loads it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from transferkit.backbones.from_timm import TimmBackbone
from transferkit.extractor.core import ExtractorCore
from transferkit.images.preprocessing import Preprocessing


def timm_layout(extractor: ExtractorCore, backbone: TimmBackbone) -> tuple[dict[str, Any], dict[str, Tensor], bool]:
    """Return what timm's layout holds.

    Returns:
        Content of ``config.json``, the tensors of ``model.safetensors``, and whether they hold the head as timm's
        own classifier.
    """
    head = extractor.head
    state = unshared(backbone.model.state_dict())
    arguments = dict(backbone.architecture)
    name = str(arguments.pop("model_name")).partition(".")[0]
    own_classes = int(arguments.pop("num_classes", 1000))
    classes = own_classes if backbone.pooling == "logits" else 0
    can_hold = backbone.pooling == "pooler" and "logits" in backbone.poolings and not extractor.l2_normalize
    holds = head is not None and can_hold
    if head is not None and holds:
        state |= {
            f"{backbone.classifier}.weight": head.weight.detach(),
            f"{backbone.classifier}.bias": head.bias.detach(),
        }
        classes = head.out_features
    library: Any = backbone.model
    cfg = pretrained_cfg(extractor.preprocessing) | {"num_classes": classes, "classifier": backbone.classifier}
    if library.pretrained_cfg.get("fixed_input_size"):  # timm builds it for the size that is in the file
        cfg["fixed_input_size"] = True
    config = {
        "architecture": name,
        "num_classes": classes,
        "num_features": backbone.embed_dim,
        "pretrained_cfg": cfg,
        **({"model_args": arguments} if arguments else {}),
        **({"label_names": list(extractor.class_names)} if holds and extractor.class_names else {}),
    }
    return config, state, holds


def unshared(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous tensors with memory of their own, as safetensors wants them: CoaT's blocks share layers."""
    found: dict[str, Tensor] = {}
    taken: set[int] = set()
    for key, tensor in state.items():
        place = tensor.untyped_storage().data_ptr()
        found[key] = tensor.clone(memory_format=torch.contiguous_format) if place in taken else tensor.contiguous()
        taken.add(place)
    return found


def pretrained_cfg(scheme: Preprocessing) -> dict[str, Any]:
    """Return timm's fields of a preprocessing; a ``resize`` that timm cannot say becomes its nearest."""
    height, width = scheme.image_size
    resize = scheme.resize if isinstance(scheme.resize, int) else scheme.resize[0]
    modes = {"contain": "border", "cover": "center"}
    squash = scheme.fit == "exact" and not isinstance(scheme.resize, int)
    return {
        "input_size": [3, height, width],
        "interpolation": scheme.interpolation,
        "mean": list(scheme.mean),
        "std": list(scheme.std),
        "crop_pct": 1.0 if resize == height else height / (resize + 0.5),  # timm takes floor(height / crop_pct)
        "crop_mode": "squash" if squash else modes.get(scheme.fit, "center"),
    }
