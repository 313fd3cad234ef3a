"""Hugging Face architectures at a size that builds in milliseconds."""

from pathlib import Path

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel

BLOCKS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
PATCHES = {"image_size": 32, "patch_size": 8}
MAPS = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
SWIN = {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
PYRAMID = {**MAPS, "num_attention_heads": [1, 2, 2, 2]}
CONFIGS: dict[str, PreTrainedConfig] = {
    "vit": transformers.ViTConfig(**BLOCKS, **PATCHES),
    "dinov2": transformers.Dinov2Config(image_size=28, patch_size=14, **BLOCKS),
    "dinov2_with_registers": transformers.Dinov2WithRegistersConfig(
        image_size=28, patch_size=14, num_register_tokens=4, **BLOCKS
    ),
    "dinov3_vit": transformers.DINOv3ViTConfig(num_register_tokens=4, **BLOCKS, **PATCHES),
    "dinov3_convnext": transformers.DINOv3ConvNextConfig(**MAPS),
    "deit": transformers.DeiTConfig(**BLOCKS, **PATCHES),
    "beit": transformers.BeitConfig(**BLOCKS, **PATCHES),
    "convnext": transformers.ConvNextConfig(image_size=32, **MAPS),
    "swin": transformers.SwinConfig(image_size=32, patch_size=2, **SWIN),
    "resnet": transformers.ResNetConfig(embedding_size=8, layer_type="basic", **MAPS),
    "clip_vision": transformers.CLIPVisionConfig(**BLOCKS, **PATCHES),
    "siglip_vision": transformers.SiglipVisionConfig(**BLOCKS, **PATCHES),
    "aimv2_vision": transformers.Aimv2VisionConfig(**BLOCKS, **PATCHES),
    "pvt": transformers.PvtConfig(image_size=32, **PYRAMID),
    "poolformer": transformers.PoolFormerConfig(**MAPS),
    "segformer": transformers.SegformerConfig(**PYRAMID),
}


def make(family: str) -> PreTrainedModel:
    """The family's plain transformers model, with random weights that the family's name alone decides.

    Weights are spread wide: as initialised, many a small model gives every image the same embedding.
    """
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(sum(family.encode()))
        model: PreTrainedModel = transformers.AutoModel.from_config(CONFIGS[family]).eval()
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def save(family: str, folder: Path) -> PreTrainedModel:
    """:func:`make`, also saved as transformers saves it, with the preprocessing of a ViT of its size."""
    model = make(family)
    model.save_pretrained(folder)
    size = getattr(model.config, "image_size", 32)
    transformers.ViTImageProcessor(size={"height": size, "width": size}).save_pretrained(folder)
    return model
