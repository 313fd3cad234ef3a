"""Preprocessing against the two libraries whose weights it feeds: torchvision and transformers."""

import json
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import models
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F_v1
from torchvision.transforms._presets import ImageClassification, SemanticSegmentation
from transformers import (
    AutoImageProcessor,
    BeitImageProcessor,
    BitImageProcessor,
    CLIPImageProcessor,
    ConvNextImageProcessor,
    DeiTImageProcessor,
    SiglipImageProcessor,
    ViTImageProcessor,
)
from transformers.image_processing_utils import BaseImageProcessor

from tests import image_corpus
from tests.image_corpus import Case, photo
from transferkit.errors import UserError
from transferkit.images import preprocessing, resize
from transferkit.images.decoding import decode
from transferkit.images.preprocessing import Preprocessing

GOOD = image_corpus.good()
# sizes whose resized length less the crop is even, odd, 1 and 3 modulo 4
PHOTOS = [photo(*size) for size in [(150, 225), (187, 141), (61, 43), (225, 224), (9, 60)]]
IMAGENET, VIT = Preprocessing.imagenet(), Preprocessing.vit()


def tensor(pixels: np.ndarray) -> Tensor:
    """uint8 (H, W, 3) to (3, H, W)."""
    return torch.from_numpy(pixels.copy()).movedim(-1, 0).contiguous()


def processed(processor: BaseImageProcessor, image: Tensor | Image.Image) -> Tensor:
    """What a Hugging Face processor makes of one image: float32 (3, h, w)."""
    layout = "channels_first" if isinstance(image, Tensor) else None
    pixels: Tensor = processor(images=image, return_tensors="pt", input_data_format=layout)["pixel_values"][0]
    return pixels


def loaded(scheme: Preprocessing, folder: Path) -> BaseImageProcessor:
    """The processor that transformers makes of what we write."""
    (folder / "preprocessor_config.json").write_text(json.dumps(scheme.to_hf()))
    processor: BaseImageProcessor = AutoImageProcessor.from_pretrained(folder)  # type: ignore[no-untyped-call]
    return processor


def assert_equal(ours: Tensor, theirs: Tensor) -> None:
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def assert_within_a_grey_level(ours: Tensor, theirs: Tensor, std: tuple[float, ...]) -> None:
    levels = (ours - theirs).abs() * 255 * torch.tensor(std)[:, None, None]
    assert levels.max() <= 1 + 1e-3


def test_over_at_least_forty_images() -> None:
    assert len(GOOD) >= 40


@pytest.mark.parametrize("case", GOOD, ids=lambda case: case.name)
def test_the_schemes_equal_their_libraries(case: Case) -> None:
    image, preset = decode(case.data), models.ResNet18_Weights.IMAGENET1K_V1.transforms()
    assert_equal(IMAGENET(image), preset(image))
    assert_equal(VIT(image), processed(ViTImageProcessor(), image))


@pytest.mark.parametrize("case", GOOD, ids=lambda case: case.name)
def test_the_schemes_stay_within_a_grey_level_of_pillow(case: Case) -> None:
    image, preset = decode(case.data), models.ResNet18_Weights.IMAGENET1K_V1.transforms()
    picture = Image.fromarray(image.movedim(0, -1).numpy())
    assert_within_a_grey_level(IMAGENET(image), preset(picture), IMAGENET.std)
    squashed = torch.from_numpy(np.array(picture.resize((224, 224), Image.Resampling.BILINEAR)))
    assert_within_a_grey_level(VIT(image), (squashed.movedim(-1, 0) / 255 - 0.5) / 0.5, VIT.std)
    assert_within_a_grey_level(VIT(image), processed(ViTImageProcessor(), picture), VIT.std)


@pytest.mark.parametrize("case", GOOD, ids=lambda case: case.name)
def test_in_integers_pixels_stay_within_a_grey_level(case: Case) -> None:
    image = decode(case.data)
    for scheme in (Preprocessing.imagenet(), Preprocessing.vit()):
        exact, near = (scheme.resize_crop(image, exact=choice).int() for choice in (True, False))
        assert int((exact - near).abs().max()) <= 1


@pytest.mark.parametrize("name", ["444.jpg", "progressive.jpg", "rgb-333x250.png", "rgb.bmp", "lossless.webp"])
def test_a_plain_file_needs_none_of_our_conversion(name: str) -> None:
    case = next(case for case in GOOD if case.name == name)
    picture, image = Image.open(BytesIO(case.data)), decode(case.data)
    preset = models.ResNet18_Weights.IMAGENET1K_V1.transforms()
    assert_within_a_grey_level(IMAGENET(image), preset(picture), IMAGENET.std)
    assert_equal(VIT(image), processed(ViTImageProcessor(), picture))


PRESETS: dict[str, Any] = {
    "imagenet": models.ResNet18_Weights.IMAGENET1K_V1,
    "bicubic": models.EfficientNet_B0_Weights.IMAGENET1K_V1,
    "convnext": models.ConvNeXt_Tiny_Weights.IMAGENET1K_V1,
    "swin": models.Swin_V2_T_Weights.IMAGENET1K_V1,
    "inception": models.Inception_V3_Weights.IMAGENET1K_V1,
    "vit": models.ViT_B_16_Weights.IMAGENET1K_V1,
    "no margin": models.ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1,
}


@pytest.mark.parametrize("name", PRESETS)
def test_other_torchvision_presets(name: str) -> None:
    preset = PRESETS[name].transforms()
    ours = Preprocessing.from_torchvision(preset)
    for pixels in PHOTOS:
        assert torch.equal(ours(tensor(pixels)), preset(tensor(pixels)))
    assert Preprocessing.from_torchvision(PRESETS["imagenet"].transforms()) == IMAGENET


def test_every_classifier_of_torchvision_has_a_preset_that_is_read() -> None:
    entries = [entry for name in models.list_models(module=models) for entry in models.get_model_weights(name)]
    assert len(entries) > 100
    for entry in entries:
        preset = entry.transforms()
        assert Preprocessing.from_torchvision(preset).image_size == (preset.crop_size[0],) * 2


@pytest.mark.parametrize(
    "transforms",
    [
        SemanticSegmentation(resize_size=520),
        ImageClassification(crop_size=224, interpolation=InterpolationMode.NEAREST),
        ImageClassification(crop_size=224, antialias=False),
        len,
    ],
    ids=["segmentation", "nearest", "aliased", "function"],
)
def test_other_transforms_are_refused(transforms: Any) -> None:
    with pytest.raises(UserError, match=r"^transforms: "):
        Preprocessing.from_torchvision(transforms)


def dinov2() -> BaseImageProcessor:
    """As facebook/dinov2-* configures it."""
    return BitImageProcessor(size={"shortest_edge": 256}, image_mean=list(IMAGENET.mean), image_std=list(IMAGENET.std))


PROCESSORS = {
    "vit": ViTImageProcessor(),
    "vit 384 bicubic": ViTImageProcessor(size={"height": 384, "width": 384}, resample=3),
    "oblong": ViTImageProcessor(size={"height": 96, "width": 160}),
    "nearest": ViTImageProcessor(resample=0),
    "rescaled otherwise": ViTImageProcessor(rescale_factor=1 / 127.5, image_mean=[1.0] * 3, image_std=[1.0] * 3),
    "not rescaled": ViTImageProcessor(do_rescale=False, image_mean=[99.0, 1.0, 5.0], image_std=[58.0, 7.0, 3.0]),
    "not normalised": ViTImageProcessor(do_normalize=False),
    "one mean": ViTImageProcessor(image_mean=0.4, image_std=0.2),
    "dinov2": dinov2(),
    "bit": BitImageProcessor(),
    "clip": CLIPImageProcessor(size={"shortest_edge": 336}, crop_size={"height": 224, "width": 300}),
    "convnext": ConvNextImageProcessor(),
    "convnext 224": ConvNextImageProcessor(size={"shortest_edge": 224}, crop_pct=0.875),
    "convnext 100": ConvNextImageProcessor(size={"shortest_edge": 100}, crop_pct=0.9),
    "deit": DeiTImageProcessor(),
    "beit": BeitImageProcessor(),
    "siglip": SiglipImageProcessor(),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_processors_of_hugging_face(name: str) -> None:
    processor = PROCESSORS[name]
    ours = Preprocessing.from_hf(json.loads(processor.to_json_string()))
    for pixels in PHOTOS:
        image = tensor(pixels)
        torch.testing.assert_close(ours(image), processed(processor, image), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["ViT", "DeiT", "Beit", "Bit", "CLIP", "ConvNext", "Siglip"])
@pytest.mark.parametrize("suffix", ["ImageProcessor", "FeatureExtractor", "ImageProcessorFast"])
def test_fields_left_out_are_the_classes_defaults(kind: str, suffix: str) -> None:
    processor = next(p for p in PROCESSORS.values() if type(p).__name__ == f"{kind}ImageProcessor")
    full = Preprocessing.from_hf(json.loads(type(processor)().to_json_string()))
    assert Preprocessing.from_hf({"image_processor_type": kind + suffix}) == full
    assert Preprocessing.from_hf({"feature_extractor_type": kind + suffix, "crop_pct": None}) == full


def test_old_configurations() -> None:
    old = {"do_normalize": True, "do_resize": True, "size": 224, "resample": 2, "image_mean": [0.5] * 3}
    assert Preprocessing.from_hf(old | {"feature_extractor_type": "ViTFeatureExtractor"}) == VIT
    assert Preprocessing.from_hf(old | {"image_std": [0.5] * 3}) == VIT
    clip = {"feature_extractor_type": "CLIPFeatureExtractor", "size": 300, "crop_size": 288}
    assert Preprocessing.from_hf(clip).resize == 300
    assert Preprocessing.from_hf(clip).crop == (288, 288)


@pytest.mark.parametrize(
    ("field", "config"),
    [
        ("image_processor_type", {"image_processor_type": "OwlImageProcessor"}),
        ("image_processor_type", {"do_pad": True, "pad_size": {"height": 300, "width": 300}}),  # after normalizing
        ("do_resize", {"do_resize": False}),
        ("resample", {"resample": 1}),
        ("resample", {"resample": [2]}),
        ("size", {"size": {"longest_edge": 224}}),
        ("size", {"size": {"shortest_edge": 224, "longest_edge": 300}}),
        ("size", {"size": "224"}),
        ("size", {"image_processor_type": "ConvNextImageProcessor", "size": {"height": 9, "width": 9}}),
        ("crop_size", {"do_center_crop": True, "crop_size": {"height": 224}}),
        ("do_center_crop", {"size": {"shortest_edge": 224}}),
        ("do_center_crop", {"image_processor_type": "ConvNextImageProcessor", "do_center_crop": True}),
        ("crop_pct", {"image_processor_type": "ConvNextImageProcessor", "size": 224, "crop_pct": 0}),
        ("rescale_factor", {"rescale_factor": "1/255"}),
        ("image_mean", {"image_mean": ["a", "b", "c"]}),
        ("mean", {"image_mean": [0.5, 0.5]}),
        ("std", {"image_std": [0.5, 0.5, 0]}),
        ("arithmetic", {"transferkit_arithmetic": "guesswork"}),
    ],
    ids=str,
)
def test_configurations_that_cannot_be_honored(field: str, config: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"(^|: ){field}\b") as refusal:
        Preprocessing.from_hf(config)
    assert "\n" not in str(refusal.value)


SCHEMES = {
    "vit": VIT,
    "cropped": IMAGENET.from_dict(IMAGENET.to_dict() | {"arithmetic": "transformers"}),
    "squashed, cropped": Preprocessing.from_hf(PROCESSORS["deit"].to_dict()),
    "bicubic": VIT.replace(image_size=(64, 96), interpolation="bicubic"),
    "nearest": VIT.replace(interpolation="nearest"),
}


@pytest.mark.parametrize("name", SCHEMES)
def test_transformers_loads_what_we_write(name: str, tmp_path: Path) -> None:
    processor = loaded(SCHEMES[name], tmp_path)
    for pixels in PHOTOS:
        assert_equal(SCHEMES[name](tensor(pixels)), processed(processor, tensor(pixels)))


def test_transformers_approximates_torchvisions_arithmetic(tmp_path: Path) -> None:
    processor = loaded(IMAGENET, tmp_path)
    for image in (tensor(photo(h, w)) for h, w in [(150, 225), (256, 256), (300, 302)]):
        length, shorter = sorted(IMAGENET.resized_size(*image.shape[1:]), reverse=True)
        assert shorter == 256
        assert (length - 224) % 4 != 3  # else one pixel off
        assert_within_a_grey_level(IMAGENET(image), processed(processor, image), IMAGENET.std)


@pytest.mark.parametrize("scheme", [IMAGENET, *SCHEMES.values()])
def test_round_trips(scheme: Preprocessing) -> None:
    plain = json.loads(json.dumps(scheme.to_dict()))
    assert plain == scheme.to_dict()
    assert Preprocessing.from_dict(plain) == scheme
    assert Preprocessing.from_hf(json.loads(json.dumps(scheme.to_hf()))) == scheme
    assert hash(Preprocessing.from_dict(plain)) == hash(scheme)


def test_a_dictionary_must_have_every_key_and_no_other() -> None:
    plain = VIT.to_dict()
    with pytest.raises(UserError, match=r"^colour: unknown to the preprocessing"):
        Preprocessing.from_dict(plain | {"colour": 1})
    del plain["crop"]
    with pytest.raises(UserError, match=r"^crop: missing from the preprocessing"):
        Preprocessing.from_dict(plain)


@pytest.mark.parametrize(
    ("scheme", "changes", "resize", "crop"),
    [
        (IMAGENET, {"image_size": 64}, 73, (64, 64)),
        (IMAGENET, {"image_size": 224}, 256, (224, 224)),
        (IMAGENET, {"image_size": (64, 96)}, 110, (64, 96)),
        (IMAGENET, {"resize": 300}, 300, (224, 224)),
        (IMAGENET, {"resize": 64, "crop": 64}, 64, (64, 64)),
        (IMAGENET, {"resize": [70, 80], "crop": [64, 48]}, (70, 80), (64, 48)),
        (VIT, {"image_size": 64}, (64, 64), None),
        (VIT, {"image_size": [32, 48]}, (32, 48), None),
        (VIT, {"crop": 200}, (224, 224), (200, 200)),
        (SCHEMES["squashed, cropped"], {"image_size": 112}, (128, 128), (112, 112)),
    ],
    ids=str,
)
def test_sizes_can_be_overridden(scheme: Preprocessing, changes: dict[str, Any], resize: Any, crop: Any) -> None:
    changed = scheme.replace(**changes)
    assert (changed.resize, changed.crop) == (resize, crop)
    assert changed(tensor(PHOTOS[0])).shape == (3, *changed.image_size)
    assert (changed.mean, changed.std, changed.arithmetic) == (scheme.mean, scheme.std, scheme.arithmetic)


def test_other_fields_can_be_overridden() -> None:
    changed = IMAGENET.replace(interpolation="bicubic", mean=[0, 0, 1], std=[1, 2, 3])
    assert (changed.interpolation, changed.mean, changed.std) == ("bicubic", (0.0, 0.0, 1.0), (1.0, 2.0, 3.0))
    assert IMAGENET.replace() == IMAGENET


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("image_size", {"image_size": 64, "crop": 64}),
        ("image_size", {"image_size": 0}),
        ("image_size", {"image_size": (64, 64, 3)}),
        ("image_size", {"image_size": (64.0, 64.0)}),
        ("resize", {"resize": 0}),
        ("resize", {"resize": True}),
        ("resize", {"resize": (0, 5)}),
        ("crop", {"crop": 300}),
        ("crop", {"crop": -1}),
        ("interpolation", {"interpolation": "lanczos"}),
        ("mean", {"mean": (0.5, 0.5)}),
        ("mean", {"mean": (0.5, 0.5, float("nan"))}),
        ("std", {"std": (0.5, 0.5, 0.0)}),
        ("std", {"std": (0.5, 0.5, "1")}),
    ],
    ids=str,
)
def test_senseless_values_are_named(field: str, changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"^{field}: ") as refusal:
        IMAGENET.replace(**changes)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("mode", [InterpolationMode.BILINEAR, InterpolationMode.BICUBIC], ids=str)
@pytest.mark.parametrize("large", [0, 2**24], ids=["a channel at a time", "at once"])
def test_any_size_equals_torchvisions_transforms(
    mode: InterpolationMode, large: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resize, "LARGE_PIXELS", large)
    rng = np.random.default_rng(0)
    for _ in range(60):
        height, width, tall, wide = (int(side) for side in rng.integers(1, 160, 4))
        crop = int(rng.integers(1, tall + 1)), int(rng.integers(1, wide + 1))
        image = torch.from_numpy(rng.integers(0, 256, (3, height, width), dtype=np.uint8))
        ours = Preprocessing((tall, wide), crop, mode.value, IMAGENET.mean, IMAGENET.std, "torchvision")
        resized = F_v1.resize(image, [tall, wide], interpolation=mode, antialias=True)
        assert torch.equal(ours.resize_crop(image), F_v1.center_crop(resized, list(crop)))


def test_geometry_is_torchvisions() -> None:
    for pixels in PHOTOS:
        height, width = pixels.shape[:2]
        resized = F_v1.resize(tensor(pixels), [256], antialias=True)
        assert IMAGENET.resized_size(height, width) == resized.shape[-2:]
        top, left = IMAGENET.crop_offset(*resized.shape[-2:])
        assert torch.equal(IMAGENET.resize_crop(tensor(pixels)), resized[:, top : top + 224, left : left + 224])
    assert VIT.resized_size(3, 400) == (224, 224)
    assert VIT.crop_offset(224, 224) == (0, 0)


@pytest.mark.parametrize("shape", [(3, 1, 60_000), (3, 60_000, 1)], ids=str)
@pytest.mark.parametrize("scheme", [IMAGENET, SCHEMES["cropped"]], ids=lambda scheme: scheme.arithmetic)
def test_a_very_long_picture_is_its_centre(shape: tuple[int, ...], scheme: Preprocessing) -> None:
    image = torch.randint(0, 256, shape, dtype=torch.uint8)
    kept = preprocessing.MAX_RESIZED_PIXELS // 256**2
    start = (60_000 - kept) // 2
    centre = image[:, :, start : start + kept] if shape[1] == 1 else image[:, start : start + kept]
    assert torch.equal(scheme.resize_crop(image), scheme.resize_crop(centre.contiguous()))


def test_normalisation_keeps_leading_dimensions() -> None:
    pixels = torch.randint(0, 256, (2, 5, 3, 4, 6), dtype=torch.uint8)
    kept = pixels.clone()
    expected = (pixels.numpy() / 255 - np.array(IMAGENET.mean)[:, None, None]) / np.array(IMAGENET.std)[:, None, None]
    torch.testing.assert_close(IMAGENET.normalize(pixels), torch.from_numpy(expected).float(), rtol=0, atol=1e-6)
    assert torch.equal(pixels, kept)


@pytest.mark.parametrize("shape", [(4, 9, 9), (3, 9), (1, 3, 9, 9), (3, 0, 9)], ids=str)
def test_only_pictures_are_resized(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected uint8 \(3, H, W\), got torch.uint8"):
        VIT.resize_crop(torch.zeros(shape, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"got torch.float32 \(3, 9, 9\)"):
        VIT.normalize(torch.zeros(3, 9, 9))


def test_nothing_warns() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for scheme in (IMAGENET, *SCHEMES.values()):
            scheme(tensor(PHOTOS[0]))


def test_a_preprocessing_in_words() -> None:
    assert IMAGENET.in_words() == (
        "resized to 256, cropped to 224 x 224, bilinear, mean 0.485/0.456/0.406, std 0.229/0.224/0.225"
    )
    assert VIT.in_words() == "resized to 224 x 224, bilinear, mean 0.5/0.5/0.5, std 0.5/0.5/0.5"
