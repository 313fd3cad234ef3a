"""The text tower of a model of images and texts: words in, embeddings in the space of its images out."""

import copy
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transferkit.backbones.dual_model import file_without_text
from transferkit.backbones.hub import load_model, quiet, read_local_or_hub, repository
from transferkit.backbones.model_class import ModelClass
from transferkit.errors import UserError, first_line, listed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

PADDED = ("siglip", "siglip2", "tipsv2")  # trained on texts padded to the full length, without a mask


class TextTower(nn.Module):
    """The text side of a model of images and texts, with its tokenizer.

    Args:
        whole: transformers' model of images and texts; its vision tower is dropped.
        tokenizer: the one that it was trained with.

    Attributes:
        scale: factor on the cosine of image and text in the model's logits.
        bias: what is added to them; 0 for a model that compares classes by a softmax.
        sigmoid: whether each class is judged alone, by a sigmoid, rather than by a softmax over all.
        longest: number of tokens that the model reads; longer texts are cut.
    """

    def __init__(self, whole: Any, tokenizer: "PreTrainedTokenizerBase") -> None:
        super().__init__()
        whole.vision_model = None
        whole.visual_projection = None
        self.whole, self.tokenizer = whole.eval(), tokenizer
        self.scale, self.bias = scale_and_bias(whole)
        self.sigmoid = hasattr(whole, "logit_bias")
        self.longest = longest_text(whole.config, tokenizer)
        self.padding: bool | str = "max_length" if whole.config.model_type in PADDED else True

    @torch.no_grad()
    def forward(self, texts: Sequence[str]) -> Tensor:
        """Embed texts.

        Returns:
            float32 (N, D), L2-normalized as the whole model's ``text_embeds`` are.
        """
        tokens = self.tokenize(texts)
        features: Tensor = self.whole.get_text_features(**tokens.to(self.whole.device)).pooler_output
        return F.normalize(features.float())

    def tokenize(self, texts: Sequence[str]) -> Any:
        """Return the model's inputs of texts, cut to the number of tokens that it reads; what is cut is logged."""
        given: Any = self.tokenizer  # its call has no useful annotations
        lengths = map(len, given(list(texts), verbose=False)["input_ids"])
        if long := [text for text, length in zip(texts, lengths, strict=True) if length > self.longest]:
            log.warning("cut to the %d tokens that the model reads: %s", self.longest, listed(long, most=2))
        return given(list(texts), padding=self.padding, truncation=True, max_length=self.longest, return_tensors="pt")

    def add_to(self, folder: Path, vision: dict[str, Tensor]) -> None:
        """Write the whole model's weights, with the tensors of another vision tower, and the tokenizer."""
        from safetensors.torch import save_file

        state = {key: tensor.contiguous().clone() for key, tensor in {**self.whole.state_dict(), **vision}.items()}
        save_file(state, folder / "model.safetensors", {"format": "pt"})
        with quiet():
            self.tokenizer.save_pretrained(folder)


def load_text_tower(choice: ModelClass, name: str, weights: str) -> TextTower:
    """Load the text tower that belongs to a vision tower.

    Args:
        choice: the class of the whole model.
        name: hub id or directory of the whole model, which has the tokenizer.
        weights: ``DEFAULT``, or the file that the vision tower was loaded from.

    Raises:
        UserError: there is no text tower or tokenizer.
    """
    assert choice.dual is not None
    if file := file_without_text(name, weights):
        raise UserError(f"{file} holds no text tower, so it cannot be asked by words; give the whole model")
    tokenizer = read_tokenizer(name, choice.dual_config)  # fast, and missing more often than the weights
    whole = load_model(choice.dual, name, weights, copy.deepcopy(choice.dual_config), {})  # type: ignore[arg-type]
    return TextTower(whole, tokenizer)


def read_tokenizer(name: str, config: Any) -> "PreTrainedTokenizerBase":
    """Read the tokenizer of a directory or repository.

    Raises:
        UserError: it is missing or broken, or has tokens that the model does not know.
    """
    from transformers import AutoTokenizer

    def read(local: bool) -> Any:
        try:
            found = AutoTokenizer.from_pretrained(**repository(name), local_files_only=local, trust_remote_code=False)
        except Exception as error:  # whatever missing or broken files make it raise
            raise OSError(first_line(error)) from error
        if len(found) <= len(found.all_special_tokens):  # transformers makes an empty one where there is no file
            raise OSError("there is none")
        return found

    try:
        with quiet():
            tokenizer: Any = read_local_or_hub(name, "tokenizer", read)
    except UserError as error:
        if not Path(name).is_dir():
            raise
        reason = first_line(error.__cause__ or error)
        raise UserError(f"{name} has no usable tokenizer ({reason}); put its tokenizer.json there") from error
    known = getattr(config.text_config, "vocab_size", len(tokenizer))
    if len(tokenizer) > known:
        raise UserError(f"the tokenizer of {name} has {len(tokenizer):,} tokens, its model {known:,}; give its own")
    return tokenizer  # type: ignore[no-any-return]


@torch.no_grad()
def scale_and_bias(whole: Any) -> tuple[float, float]:
    """Return what the model makes of a cosine: its logit is ``scale * cosine + bias``."""
    if hasattr(whole, "temperature"):  # TIPSv2
        return 1 / float(whole.temperature), 0.0
    logarithm = whole.logit_scale
    if hasattr(whole, "max_log_logit_scale"):  # AIMv2
        logarithm = logarithm.clamp(0.0, whole.max_log_logit_scale)
    return float(logarithm.exp()), float(getattr(whole, "logit_bias", torch.zeros(())))


def longest_text(config: Any, tokenizer: Any) -> int:
    """Return the number of tokens that the model has positions for."""
    text = config.text_config
    places = int(getattr(text, "max_position_embeddings", 512))
    if text.model_type in ("altclip_text_model", "xlm-roberta"):  # RoBERTa counts from behind the padding token
        places -= text.pad_token_id + 1
    return min(places, int(tokenizer.model_max_length))
