"""Configurations of well-known repositories of transformers, as they are published, and the side of their images."""

from typing import Any

import transformers
from transformers import PreTrainedConfig

SMALL: dict[str, Any] = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536}
BASE: dict[str, Any] = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
LARGE: dict[str, Any] = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}
HUGE: dict[str, Any] = {
    "hidden_size": 1280,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "intermediate_size": 5120,
    "patch_size": 14,
}
SO400M = {"hidden_size": 1152, "num_hidden_layers": 27, "num_attention_heads": 16, "intermediate_size": 4304}
SO400M |= {"patch_size": 14, "image_size": 384}
SWIN_BASE: dict[str, Any] = {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32]}


def dinov2(kind: Any = transformers.Dinov2Config, **fields: Any) -> PreTrainedConfig:
    fields.pop("intermediate_size", None)  # four times the width
    config: PreTrainedConfig = kind(patch_size=14, image_size=518, **fields)
    return config


def registers(**fields: Any) -> PreTrainedConfig:
    return dinov2(transformers.Dinov2WithRegistersConfig, num_register_tokens=4, **fields)


def dinov3(**fields: Any) -> PreTrainedConfig:
    return transformers.DINOv3ViTConfig(num_register_tokens=4, **{**BASE, **fields})


def clip(projection: int = 512, **fields: Any) -> PreTrainedConfig:
    return transformers.CLIPConfig(vision_config=fields, projection_dim=projection)


def siglip(**fields: Any) -> PreTrainedConfig:
    return transformers.SiglipConfig(vision_config=fields)


ViT = transformers.ViTConfig
CONFIGS: dict[str, PreTrainedConfig] = {
    "OFA-Sys/chinese-clip-vit-base-patch16": transformers.ChineseCLIPConfig(vision_config={"patch_size": 16}),
    "apple/aimv2-large-patch14-224-lit": transformers.Aimv2Config(),
    "facebook/convnext-tiny-224": transformers.ConvNextConfig(),
    "facebook/convnextv2-tiny-22k-224": transformers.ConvNextV2Config(),
    "facebook/deit-base-patch16-224": ViT(),
    "facebook/deit-small-patch16-224": ViT(**SMALL),
    "facebook/dino-vitb16": ViT(),
    "facebook/dino-vits16": ViT(**SMALL),
    "facebook/dinov2-base": dinov2(),
    "facebook/dinov2-giant": dinov2(
        hidden_size=1536, num_hidden_layers=40, num_attention_heads=24, use_swiglu_ffn=True
    ),
    "facebook/dinov2-large": dinov2(**LARGE),
    "facebook/dinov2-small": dinov2(**SMALL),
    "facebook/dinov2-with-registers-base": registers(),
    "facebook/dinov2-with-registers-large": registers(**LARGE),
    "facebook/dinov2-with-registers-small": registers(**SMALL),
    "facebook/dinov3-convnext-tiny-pretrain-lvd1689m": transformers.DINOv3ConvNextConfig(),
    "facebook/dinov3-vitb16-pretrain-lvd1689m": dinov3(),
    "facebook/dinov3-vith16plus-pretrain-lvd1689m": dinov3(
        hidden_size=1280, num_hidden_layers=32, num_attention_heads=20, intermediate_size=5120, use_gated_mlp=True
    ),
    "facebook/dinov3-vitl16-pretrain-lvd1689m": dinov3(**LARGE),
    "facebook/dinov3-vits16-pretrain-lvd1689m": dinov3(**SMALL),
    "facebook/hiera-base-224-hf": transformers.HieraConfig(),
    "facebook/ijepa_vith14_1k": transformers.IJepaConfig(**HUGE),
    "facebook/metaclip-b32-400m": clip(),
    "facebook/vit-mae-base": transformers.ViTMAEConfig(),
    "google/siglip-base-patch16-224": siglip(),
    "google/siglip-so400m-patch14-384": siglip(**SO400M),
    "google/siglip2-base-patch16-224": siglip(),
    "google/siglip2-large-patch16-256": siglip(**LARGE, image_size=256),
    "google/siglip2-so400m-patch14-384": siglip(**SO400M),
    "google/vit-base-patch16-224": ViT(),
    "google/vit-base-patch16-224-in21k": ViT(),
    "google/vit-huge-patch14-224-in21k": ViT(**HUGE),
    "google/vit-large-patch16-224-in21k": ViT(**LARGE),
    "laion/CLIP-ViT-B-32-laion2B-s34B-b79K": clip(),
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": clip(1024, **HUGE),
    "microsoft/beit-base-patch16-224-pt22k-ft22k": transformers.BeitConfig(use_relative_position_bias=True),
    "microsoft/resnet-50": transformers.ResNetConfig(),
    "microsoft/swin-base-patch4-window7-224": transformers.SwinConfig(**SWIN_BASE),
    "microsoft/swin-tiny-patch4-window7-224": transformers.SwinConfig(),
    "microsoft/swinv2-tiny-patch4-window8-256": transformers.Swinv2Config(image_size=256, window_size=8),
    "openai/clip-vit-base-patch16": clip(patch_size=16),
    "openai/clip-vit-base-patch32": clip(),
    "openai/clip-vit-large-patch14": clip(768, **LARGE, patch_size=14),
}
SIDES = {"google/siglip2-large-patch16-256": 256, "microsoft/swinv2-tiny-patch4-window8-256": 256}
SIDES |= dict.fromkeys(("google/siglip-so400m-patch14-384", "google/siglip2-so400m-patch14-384"), 384)
