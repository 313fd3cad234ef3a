"""Every image processor of transformers: the same pixels to 1e-6, or a refusal that says why."""

import json
import logging
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

from tests.image_corpus import photo
from transferkit.errors import UserError
from transferkit.images.preprocessing import Preprocessing


def first(names: Any) -> str:
    """The class of a mapping's entry that works on tensors."""
    return names if isinstance(names, str) else str(names.get("torchvision") or next(iter(names.values())))


CLASSES = sorted({first(names) for names in IMAGE_PROCESSOR_MAPPING_NAMES.values()})
PHOTOS = [torch.from_numpy(photo(*size)).movedim(-1, 0).contiguous() for size in [(150, 225), (187, 141), (61, 43)]]
OPENS = [  # of the classes' names, without ImageProcessor
    *("Beit", "Bit", "Blip", "CLIP", "ChineseCLIP", "ConvNext", "DINOv3ViT", "DPT", "DeiT", "EfficientNet", "Flava"),
    *("Gemma3", "GotOcr2", "Levit", "Llava", "MobileNetV1", "MobileNetV2", "MobileViT", "Ovis2", "OwlViT"),
    *("PPChart2Table", "PoolFormer", "PromptDepthAnything", "Pvt", "RTDetr", "Sam2", "Sam3", "Sapiens2", "SegGpt"),
    *("Segformer", "Siglip", "SuperPoint", "Tipsv2", "Tipsv2Dpt", "ViT"),
]
REFUSED = {  # reason -> classes
    # the size depends on the image: bounds on the longer side, on the number of pixels or patches; or none at all
    "size": """Apertus1p5 CohereCompass ConditionalDetr Cosmos3Edge DeformableDetr Detr Emu3 Eomt Ernie4_5_VLMoe
    GLPN Gemma4 Gemma4Unified Glm46V Glm4v Glm5Next GlmImage Glmga GroundingDino HYV4VL HunYuanVL Idefics2 Kimi_K25
    Mask2Former MaskFormer MiniCPMOcr MiniCPMV4_6 MiniMaxM3VL NeoMME OneFormer PI0 PaddleOCRVL Pixtral Qwen2VL RfDetr
    Sam Siglip2 Tvp VideoLlama3 Yolos""",
    "do_center_crop": "TextNet Vilt",
    "crop_size": "BridgeTower",
    "do_resize": """Aria CHMv2 Inkling Inkling2 Kosmos2_5 NemotronH_Omni_Reasoning_V3 Phi4Multimodal Pix2Struct
    Step3p7 Swin2SR VitMatte VitPose""",
    "resample": "Chameleon Idefics3 MuseGlimmer SmolVLM UltraVBert",  # Lanczos
    # tiles, frames, patches or pairs instead of one image
    "it gives": """GraniteDocling Lfm2Vl LlavaNext LlavaOnevision Mllama Molmo2 PPOCRV5ServerDet
    Perceiver PerceptionLM VideoMAE Vivit ZoeDepth""",
    # pads to a square, cuts margins, or computes otherwise
    "it does more than its fields say": """Cohere2Vision DeepseekOcr2
    DeepseekVL DeepseekVLHybrid DepthPro Donut Janus Llama4 Nougat
    Owlv2 PPDocLayoutV2 PPDocLayoutV3 PPDocLayoutV4 PPFormulaNet PPLCNet PPOCRV5ServerRec PPOCRV6SmallRec SLANeXt
    UVDoc UnlimitedOcr""",
    "image_processor_type": """EfficientLoFTR Fuyu Idefics ImageGPT LayoutLMv2 LayoutLMv3 LightGlue SuperGlue
    TimmWrapper VideoLlava""",  # no single image, or what is not installed; TimmWrapper is read from config.json
}
REASONS = {f"{name}ImageProcessor": reason for reason, names in REFUSED.items() for name in names.split()}


def theirs(processor: Any, image: Tensor) -> Tensor:
    pixels: Tensor = processor(images=image, return_tensors="pt", input_data_format="channels_first")["pixel_values"]
    return pixels[0].float()


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)


def test_the_lists_hold_every_class_of_the_mapping() -> None:
    assert sorted([*(f"{name}ImageProcessor" for name in OPENS), *REASONS]) == CLASSES


@pytest.mark.parametrize("name", OPENS)
def test_pixels_equal_the_librarys(name: str) -> None:
    processor = getattr(transformers, f"{name}ImageProcessor")()
    for config in (json.loads(processor.to_json_string()), {"image_processor_type": f"{name}ImageProcessor"}):
        scheme = Preprocessing.from_hf(config)
        for image in PHOTOS if len(config) > 1 else PHOTOS[:1]:
            torch.testing.assert_close(scheme(image), theirs(processor, image), rtol=1e-6, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")  # of transformers' own
@pytest.mark.parametrize("name", REASONS)
def test_what_cannot_be_honored_says_so(name: str) -> None:
    with pytest.raises(UserError, match=REASONS[name]) as refusal:
        Preprocessing.from_hf({"image_processor_type": name})
    assert "\n" not in str(refusal.value)
    assert str(refusal.value).startswith("preprocessor_config.json: ")


STATISTICS = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("EfficientNet", {"size": {"height": 224, "width": 224}, "resample": 0, **STATISTICS}),  # google/efficientnet-b0
    ("EfficientNet", {"size": {"height": 64, "width": 64}, "include_top": False}),
    ("EfficientNet", {"size": {"height": 64, "width": 64}, "rescale_offset": True, "rescale_factor": 1 / 127.5}),
    ("EfficientNet", {"size": {"height": 64, "width": 64}, "rescale_offset": True, "do_normalize": False}),
    ("EfficientNet", {"size": {"height": 64, "width": 64}, "do_center_crop": True, "crop_size": 48}),
    ("ConvNext", {"size": {"shortest_edge": 224}, "crop_pct": 0.95}),
    ("ConvNext", {"size": 384}),
    ("Levit", {"size": {"shortest_edge": 192}, "crop_size": 160}),
    ("Levit", {"size": {"height": 192, "width": 160}, "do_center_crop": False}),
    ("PoolFormer", {"crop_pct": 0.95}),
    ("PoolFormer", {"size": {"height": 96, "width": 96}, "crop_size": 96}),
    ("PoolFormer", {"size": {"height": 96, "width": 128}, "do_center_crop": False}),
    ("MobileViT", {"size": {"shortest_edge": 288}}),  # apple/mobilevit-small
    ("MobileViT", {"do_flip_channel_order": False, "do_normalize": True}),
    ("DINOv3ViT", {"size": {"height": 96, "width": 64}, "resample": 3}),
    ("DINOv3ViT", {"do_center_crop": True, "crop_size": {"height": 193, "width": 192}}),
    ("ViT", {"do_center_crop": True, "crop_size": 301}),  # pads with black
    ("ViT", {"do_pad": True, "do_flip_channel_order": True}),  # the former adds nothing, the latter it does not know
    ("Pvt", {"size": 96}),
    ("Bit", {"size": {"shortest_edge": 256}, "crop_size": {"height": 257, "width": 300}}),
    ("Segformer", {"do_reduce_labels": True}),
]


@pytest.mark.parametrize(("name", "fields"), VARIANTS)
def test_fields_of_the_file(name: str, fields: dict[str, Any]) -> None:
    config = {"image_processor_type": f"{name}ImageProcessor", **fields}
    processor = getattr(transformers, f"{name}ImageProcessor").from_dict(fields)
    scheme = Preprocessing.from_hf(config)
    for image in PHOTOS:
        torch.testing.assert_close(scheme(image), theirs(processor, image), rtol=2e-6, atol=1e-6)
    again = Preprocessing.from_hf(json.loads(json.dumps(scheme.to_hf())))
    assert again(PHOTOS[0]).allclose(scheme(PHOTOS[0]), atol=1e-6)
    assert Preprocessing.from_dict(json.loads(json.dumps(scheme.to_dict()))) == scheme


def test_a_file_without_a_class_is_read_as_the_models_own_class() -> None:
    assert Preprocessing.from_hf({}, "mobilevit").channels == "bgr"
    assert Preprocessing.from_hf({}, "dinov3_vit").arithmetic == "transformers-float"
    assert Preprocessing.from_hf({}, "hamster") == Preprocessing.from_hf({}) == Preprocessing.vit()


def test_unrounded_pixels_stay_floats_and_integers_stay_near() -> None:
    scheme = Preprocessing.from_hf({"image_processor_type": "DINOv3ViTImageProcessor"})
    exact, near = scheme.resize_crop(PHOTOS[0]), scheme.resize_crop(PHOTOS[0], exact=False)
    assert (exact.dtype, near.dtype) == (torch.float32, torch.uint8)
    assert (exact - near).abs().max() <= 1
    assert scheme.normalize(near).dtype == torch.float32
