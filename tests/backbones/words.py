"""Models of images and texts at a size that builds in milliseconds, each with a tokenizer of its own class."""

import string
from pathlib import Path
from typing import Any

import torch
import transformers

from tests.backbones.families import TEXT, VIT, processor

CHARACTERS = [*string.ascii_lowercase, *string.digits, ".", ",", "'", "-"]
PIECES = ["<s>", "<pad>", "</s>", "<unk>", "▁", *CHARACTERS, "<mask>"]
BYTES = [f"<0x{number:02X}>" for number in range(256)]
GEMMA = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *BYTES, "▁", *CHARACTERS]


def number(tokens: list[str]) -> dict[str, int]:
    return {token: index for index, token in enumerate(tokens)}


def tokenizer(family: str) -> Any:
    """A tokenizer of the class that the family's checkpoints name, which knows single characters alone."""
    if family in ("clip", "aimv2"):
        letters = [*CHARACTERS, *(f"{letter}</w>" for letter in CHARACTERS), "<|startoftext|>", "<|endoftext|>"]
        return transformers.CLIPTokenizer(vocab=number(letters), merges=[], model_max_length=24)
    if family in ("metaclip_2", "altclip"):
        return transformers.XLMRobertaTokenizer(vocab=[(piece, -1.0) for piece in PIECES], model_max_length=24)
    if family == "chinese_clip":
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *CHARACTERS, *(f"##{letter}" for letter in CHARACTERS)]
        return transformers.BertTokenizer(vocab=number(words), model_max_length=24)
    if family == "tipsv2":
        return transformers.Tipsv2Tokenizer(vocab=number(GEMMA), merges=[], model_max_length=24)
    return transformers.Siglip2Tokenizer(vocab=number(GEMMA), merges=[], model_max_length=24)


def config(family: str, tokens: Any) -> Any:
    ids = {name: getattr(tokens, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = {**TEXT, **ids, "vocab_size": len(tokens), "max_position_embeddings": 32}
    if family == "siglip":
        return transformers.SiglipConfig(text_config={**text, "projection_size": 32}, vision_config=VIT)
    if family == "tipsv2":
        return transformers.Tipsv2Config(text_config=text, vision_config=VIT)
    kind = {
        "clip": transformers.CLIPConfig,
        "aimv2": transformers.Aimv2Config,
        "metaclip_2": transformers.MetaClip2Config,
        "chinese_clip": transformers.ChineseCLIPConfig,
        "altclip": transformers.AltCLIPConfig,
    }[family]
    more = {"project_dim": 24} if family == "altclip" else {}
    return kind(text_config={**text, **more}, vision_config=VIT, projection_dim=16)


FAMILIES = ("clip", "siglip", "metaclip_2", "chinese_clip", "altclip", "aimv2", "tipsv2")


def save_dual(family: str, folder: Path) -> Any:
    """Save a model of images and texts with random weights, its image processor and its tokenizer; return the model."""
    tokens = tokenizer(family)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(sum(family.encode()))
        model: Any = transformers.AutoModel.from_config(config(family, tokens)).eval()
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        if hasattr(model, "logit_bias"):
            model.logit_bias.fill_(-3.0)
        for name in ("logit_scale", "temperature"):
            if hasattr(model, name):
                getattr(model, name).fill_(2.0)
    model.save_pretrained(folder)
    processor(model, family).save_pretrained(folder)
    tokens.save_pretrained(folder)
    return model
