"""Hugging Face architectures at a size that builds in milliseconds, each with its own image processor."""

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

BLOCKS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
PATCHES = {"image_size": 32, "patch_size": 8}
VIT = {**BLOCKS, **PATCHES}
MAPS = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
SWIN = {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
PYRAMID = {**MAPS, "num_attention_heads": [1, 2, 2, 2]}
HIERA = {
    "image_size": [64, 64],
    "embed_dim": 8,
    "depths": [1, 1],
    "num_heads": [1, 2],
    "patch_stride": [4, 4],
    "query_stride": [2, 2],
    "masked_unit_size": [4, 4],
    "masked_unit_attention": [True, False],
    "num_query_pool": 1,
}
FOCAL = {"image_size": 32, "embed_dim": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
NECK = [8, 8, 8, 8, 8, 8, 16]
EFFICIENT: dict[str, Any] = {"image_size": 32, "width_coefficient": 0.1, "depth_coefficient": 0.1, "hidden_dim": 128}
EFFICIENT["batch_norm_eps"] = 1e-12  # the variances of so small a model are far below the default, 1e-3
HEADS = {"num_attention_heads": [1, 2, 2], "depths": [1, 1, 1], "key_dim": [8, 8, 8]}
SAPIENS = {**BLOCKS, "patch_size": 8, "num_key_value_heads": 2, "image_size": [32, 32]}
CVT = {"embed_dim": [8, 16, 24], "num_heads": [1, 2, 2], "depth": [1, 2, 3]}
TEXT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 99}
DUAL: dict[str, Any] = {"text_config": TEXT, "vision_config": VIT}
SIGLIP: dict[str, Any] = {"text_config": {**TEXT, "projection_size": 32}, "vision_config": VIT}
CONFIGS: dict[str, PreTrainedConfig] = {
    "vit": transformers.ViTConfig(**VIT),
    "dinov2": transformers.Dinov2Config(image_size=28, patch_size=14, **BLOCKS),
    "dinov2_with_registers": transformers.Dinov2WithRegistersConfig(
        image_size=28, patch_size=14, num_register_tokens=4, **BLOCKS
    ),
    "dinov3_vit": transformers.DINOv3ViTConfig(num_register_tokens=4, **VIT),
    "dinov3_convnext": transformers.DINOv3ConvNextConfig(image_size=64, **MAPS),
    "deit": transformers.DeiTConfig(**VIT),
    "beit": transformers.BeitConfig(**VIT, use_relative_position_bias=True),
    "data2vec_vision": transformers.Data2VecVisionConfig(**VIT),
    "ijepa": transformers.IJepaConfig(**VIT),
    "vit_msn": transformers.ViTMSNConfig(**VIT),
    "pixio": transformers.PixioConfig(**VIT),
    "radio": transformers.RadioConfig(**VIT, max_img_size=64),
    "hiera": transformers.HieraConfig(**HIERA),
    "swin": transformers.SwinConfig(**SWIN),
    "swinv2": transformers.Swinv2Config(**SWIN),
    "convnext": transformers.ConvNextConfig(image_size=32, **MAPS),
    "convnextv2": transformers.ConvNextV2Config(image_size=32, **MAPS),
    "resnet": transformers.ResNetConfig(embedding_size=8, layer_type="basic", **MAPS),
    "regnet": transformers.RegNetConfig(embedding_size=8, groups_width=8, **MAPS),
    "bit": transformers.BitConfig(embedding_size=8, num_groups=4, **MAPS),
    "focalnet": transformers.FocalNetConfig(**FOCAL, focal_levels=[2, 2], focal_windows=[3, 3]),
    "efficientnet": transformers.EfficientNetConfig(**EFFICIENT),
    "mobilenet_v1": transformers.MobileNetV1Config(image_size=64, depth_multiplier=0.25),
    "mobilenet_v2": transformers.MobileNetV2Config(image_size=64, depth_multiplier=0.25),
    "mobilevit": transformers.MobileViTConfig(
        image_size=64, hidden_sizes=[16, 16, 16], neck_hidden_sizes=NECK, num_attention_heads=2
    ),
    "mobilevitv2": transformers.MobileViTV2Config(image_size=64, width_multiplier=0.25),
    "levit": transformers.LevitConfig(image_size=64, hidden_sizes=[16, 24, 32], **HEADS),
    "pvt": transformers.PvtConfig(image_size=32, **PYRAMID),
    "pvt_v2": transformers.PvtV2Config(image_size=32, **PYRAMID),
    "poolformer": transformers.PoolFormerConfig(**MAPS),
    "segformer": transformers.SegformerConfig(**PYRAMID),
    "cvt": transformers.CvtConfig(**CVT),
    "swiftformer": transformers.SwiftFormerConfig(image_size=64, depths=[1, 1, 1, 1], embed_dims=[8, 16, 24, 32]),
    "mlcd": transformers.MLCDVisionConfig(**VIT),
    "sapiens2": transformers.Sapiens2Config(**SAPIENS),
    "clip_vision": transformers.CLIPVisionConfig(**VIT),
    "siglip_vision": transformers.SiglipVisionConfig(**VIT),
    "aimv2_vision": transformers.Aimv2VisionConfig(**VIT),
}
DUALS: dict[str, PreTrainedConfig] = {
    "clip": transformers.CLIPConfig(**DUAL, projection_dim=16),
    "siglip": transformers.SiglipConfig(**SIGLIP),
    "metaclip_2": transformers.MetaClip2Config(**DUAL, projection_dim=16),
    "chinese_clip": transformers.ChineseCLIPConfig(**DUAL, projection_dim=16),
    "altclip": transformers.AltCLIPConfig(
        text_config={**TEXT, "project_dim": 24}, vision_config=VIT, projection_dim=16
    ),
    "aimv2": transformers.Aimv2Config(**DUAL, projection_dim=16),
    "tipsv2": transformers.Tipsv2Config(**DUAL),
}
# Fields of the published files that differ from the class's own.
FIELDS: dict[str, dict[str, Any]] = {
    "radio": {"do_normalize": False},
    "mobilevit": {"do_flip_channel_order": True},
    "efficientnet": {"resample": 0, "include_top": True},
}


def make(family: str) -> PreTrainedModel:
    """The family's plain transformers model, with random weights that the family's name alone decides.

    Weights are spread wide, and BatchNorm follows what it sees: as initialized, many a small model gives every image
    the same embedding.
    """
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(sum(family.encode()))
        model: PreTrainedModel = transformers.AutoModel.from_config({**CONFIGS, **DUALS}[family]).eval()
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        norms = [
            module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d | torch.nn.BatchNorm1d)
        ]
        if norms:
            momenta = [norm.momentum for norm in norms]
            for norm in norms:
                norm.momentum = None  # the average of what it sees
            model.train()(torch.randn(8, 3, *2 * [getattr(model.config, "image_size", 32)]))
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
    return model.eval()


def processor(model: PreTrainedModel, family: str) -> Any:
    """The image processor that transformers has for a model, at the model's size."""
    kinds: Any = IMAGE_PROCESSOR_MAPPING_NAMES.get(model.config.model_type.removesuffix("_vision_model"))
    name = kinds["torchvision"] if kinds else "CLIPImageProcessor" if family == "radio" else "ViTImageProcessor"
    kind = getattr(transformers, name)
    side = getattr(getattr(model.config, "vision_config", model.config), "image_size", 32)
    side = side if isinstance(side, int) else side[0]
    shorter = "shortest_edge" in (kind().size or {})
    size = {"shortest_edge": side} if shorter else {"height": side, "width": side}
    return kind(**{"size": size, "crop_size": {"height": side, "width": side}, **FIELDS.get(family, {})})


def save(family: str, folder: Path) -> PreTrainedModel:
    """:func:`make`, also saved as transformers saves it, with the family's own image processor."""
    model = make(family)
    model.save_pretrained(folder)
    processor(model, family).save_pretrained(folder)
    return model
