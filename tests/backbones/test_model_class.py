"""Which class opens, as what: vision towers, a masked autoencoder, models that normalize inside; and what does not."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from tests.backbones.families import BLOCKS, PATCHES, processor, save
from tests.backbones.families import VIT as VIT_SIZES
from tests.image_corpus import photo
from transferkit import backbones
from transferkit.errors import UserError
from transferkit.extractor import Extractor

GIVEN = {"image_size": 32, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}


def images(size: int = 32) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("family", ["clip", "siglip", "metaclip_2", "chinese_clip", "altclip", "aimv2", "tipsv2"])
def test_a_model_of_images_and_texts_opens_as_its_vision_tower(family: str, tmp_path: Path) -> None:
    save(family, tmp_path / "saved")
    plain: Any = transformers.AutoModel.from_pretrained(tmp_path / "saved").eval()
    output = plain.vision_model(pixel_values=images())
    tower = backbones.build(str(tmp_path / "saved"))
    assert (tower.pooling, tower.poolings) == ("pooler", ("pooler", "projection", "mean"))
    torch.testing.assert_close(tower(images()), output.pooler_output, atol=1e-5, rtol=1e-5)
    shared = plain.get_image_features(images())
    shared = getattr(shared, "pooler_output", shared)
    projected = backbones.build(str(tmp_path / "saved"), pooling="projection")
    torch.testing.assert_close(projected(images()), shared / shared.norm(dim=-1, keepdim=True), atol=1e-5, rtol=1e-5)
    torch.save(plain.state_dict(), tmp_path / "whole.pt")
    for pooling, oracle in ((None, tower), ("projection", projected)):
        given = backbones.build(str(tmp_path / "saved"), str(tmp_path / "whole.pt"), pooling)
        assert torch.equal(given(images()), oracle(images()))
    with pytest.raises(UserError, match="has no pooling 'cls'; it offers pooler, projection, mean"):
        backbones.build(str(tmp_path / "saved"), pooling="cls")


@torch.no_grad()
def test_a_masked_autoencoder_opens_as_its_encoder_with_nothing_masked(tmp_path: Path) -> None:
    config = transformers.ViTMAEConfig(**VIT_SIZES, decoder_hidden_size=16, decoder_num_hidden_layers=1)
    config.decoder_num_attention_heads = 2
    plain = transformers.ViTMAEForPreTraining(config).eval()
    plain.save_pretrained(tmp_path)
    backbone = backbones.build(str(tmp_path), preprocessing=GIVEN)
    plain.vit.config.mask_ratio = 0.0
    hidden = plain.vit(pixel_values=images(), noise=torch.arange(16.0).expand(2, 16)).last_hidden_state
    torch.testing.assert_close(backbone(images()), hidden[:, 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(backbone.forward_features(images()), hidden[:, 1:], atol=1e-5, rtol=1e-5)


def test_radio_normalizes_inside_and_so_never_twice(tmp_path: Path) -> None:
    save("radio", tmp_path / "radio")
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((tmp_path / "radio" / name).read_bytes())
    transformers.CLIPImageProcessor(size={"height": 32, "width": 32}, crop_size=32).save_pretrained(tmp_path)
    for source, weights in ((tmp_path, "DEFAULT"), (tmp_path / "radio", "DEFAULT"), (tmp_path, "none")):
        scheme = backbones.build(str(source), weights).preprocessing
        assert (scheme.mean, scheme.std) == ((0.0,) * 3, (1.0,) * 3)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (transformers.BertConfig(**BLOCKS), "a bert model: it takes input_ids, not images"),
        (transformers.LlavaConfig(), "a llava model of images and text without a vision tower of its own"),
        (transformers.YolosConfig(**BLOCKS, image_size=[32, 32]), "mixes detection tokens"),
        (transformers.VideoMAEConfig(**BLOCKS, **PATCHES), "takes videos; the nearest is facebook/vit-mae-base"),
        (transformers.Siglip2Config(), "takes grids of patches .* the nearest is google/siglip2-base-patch16-224"),
        (transformers.SamConfig(), "takes images with prompts; the nearest is"),
        (transformers.DetrConfig(), "a detr model, which detects objects; the nearest is microsoft/resnet-50"),
        (transformers.BitConfig(embedding_size=8), "cannot be built from its configuration"),
    ],
)
def test_models_that_are_no_image_backbones_get_one_line(
    tmp_path: Path, config: transformers.PreTrainedConfig, message: str
) -> None:
    config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        backbones.build(str(tmp_path), "none")
    assert "\n" not in str(caught.value)


@torch.no_grad()
@pytest.mark.parametrize("family", ["dinov3_vit", "mobilevit", "vit", "convnext"])
def test_an_image_from_file_to_embedding_as_in_transformers(family: str, tmp_path: Path) -> None:
    """Pixels that are not rounded, channels in another order: through both of our forward passes."""
    plain = save(family, tmp_path)
    theirs = processor(plain, family)
    photos = [torch.from_numpy(photo(height, 90)).movedim(-1, 0).contiguous() for height in (60, 120, 77)]
    pixels = [theirs(images=each, return_tensors="pt", input_data_format="channels_first") for each in photos]
    extractor = Extractor.from_pretrained(tmp_path)
    output = plain(pixel_values=torch.cat([each["pixel_values"] for each in pixels]))
    oracle = output.last_hidden_state[:, 0] if extractor.pooling == "cls" else output.pooler_output
    for batch_size in (32, 2):  # a pass of its own is built for several batches
        embedding = extractor.embed(photos, batch_size)
        torch.testing.assert_close(embedding, oracle.flatten(1), atol=1e-4, rtol=1e-4)
