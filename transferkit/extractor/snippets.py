"""Python code for the model card that opens an extractor directory without transferkit.

Each snippet runs in the directory, reads ``image.jpg`` (as :func:`transferkit.images.decoding.decode` does) and defines
``embedding`` (1, D), ``logits`` (1, classes), or both. Class names are read from files at run time and never become
code.
"""

from typing import Any

import torch
from torch import Tensor
from torchvision import models

from transferkit.backbones.dual_model import Projected
from transferkit.backbones.from_timm import TimmBackbone
from transferkit.backbones.from_torchvision import INCEPTIONS, TorchvisionBackbone
from transferkit.backbones.from_transformers import TransformersBackbone
from transferkit.backbones.model_class import takes_pooler
from transferkit.extractor.core import ExtractorCore

NUMPY, PILLOW = "import numpy as np", "from PIL import Image, ImageOps"
READ = """image = ImageOps.exif_transpose(Image.open("image.jpg"))  # upright
if image.mode.startswith("I"):  # 16 bits per value: the upper 8; transparent ones white
    gray = np.asarray(image)
    image = Image.fromarray(np.where(gray == image.info.get("transparency", -1), 255, gray >> 8).astype(np.uint8))
elif image.has_transparency_data:  # on white
    image = image.convert("RGBA")
    image = Image.composite(image, Image.new("RGBA", image.size, "white"), image.getchannel("A"))
image = image.convert("RGB")"""
PROCESS = 'pixels = AutoImageProcessor.from_pretrained(".")(image, return_tensors="pt")["pixel_values"]'
VERSIONED = """state = OrderedDict(load_file("model.safetensors"))
state._metadata = model.state_dict()._metadata  # the versions of its modules
model.load_state_dict(state)"""
TO_NAME = ["import json", "from pathlib import Path"]
NAMES = 'names = json.loads(Path("transferkit.json").read_text(encoding="utf-8"))["class_names"]'
# What is printed of logits, of torch and of NumPy, by what is predicted; classes and labels by the names in `names`.
PRINTED = {
    "class": ("print(names[int(logits.argmax())])",) * 2,
    "labels": (
        "print(dict(zip(names, logits[0].sigmoid().tolist())))  # probabilities",
        "print(dict(zip(names, 1 / (1 + np.exp(-logits[0])))))  # probabilities",
    ),
    "number": ("print(float(logits[0, 0]))",) * 2,
}


def snippets(extractor: ExtractorCore, layout: str, onnx: bool) -> dict[str, str]:
    """Return the snippets that apply: title -> Python.

    Args:
        extractor: the content of the directory.
        layout: ``classifier`` if the library's own classifier holds the head, otherwise ``base``.
        onnx: whether there is a ``model.onnx``.
    """
    found = {}
    if isinstance(extractor.backbone, TorchvisionBackbone):
        found["torchvision"] = with_torchvision(extractor, extractor.backbone, layout)
    elif isinstance(extractor.backbone, TimmBackbone):
        found["timm"] = with_timm(extractor, extractor.backbone, layout)
    elif isinstance(extractor.backbone.model, Projected):
        found["transferkit"] = with_transferkit()
    elif isinstance(extractor.backbone, TransformersBackbone):
        if layout == "classifier":
            found["transformers: the classifier"] = with_their_classifier(extractor)
        found["transformers: the embedding"] = with_transformers(extractor, extractor.backbone, layout)
    if onnx:
        found["ONNX Runtime"] = with_onnxruntime(extractor)
    return found


def is_named(extractor: ExtractorCore) -> bool:
    """Return whether the logits have names to print: those of a number have none."""
    return bool(extractor.head and extractor.class_names) and extractor.record.get("target") != "number"


def printed(extractor: ExtractorCore) -> str:
    """Return code that prints what torch's ``logits`` say."""
    if not (extractor.head and extractor.class_names):
        return ""
    text = PRINTED[extractor.record.get("target", "class")][0]
    return f"{NAMES}\n{text}" if is_named(extractor) else text


def program(imports: list[str], steps: list[str]) -> str:
    """Join imports, an empty line and the steps that are not empty."""
    return "\n".join([*imports, "", *filter(None, steps)]) + "\n"


def with_their_classifier(extractor: ExtractorCore) -> str:
    """Return code that uses ``AutoModelForImageClassification``."""
    target = extractor.record.get("target", "class")
    return program(
        [NUMPY, "import torch", PILLOW, "from transformers import AutoImageProcessor, AutoModelForImageClassification"],
        [
            READ,
            PROCESS,
            'model = AutoModelForImageClassification.from_pretrained(".")',
            "with torch.inference_mode():",
            "    logits = model(pixel_values=pixels).logits  # (1, classes)",
            "names = list(model.config.id2label.values())" if target == "labels" else "",
            "print(model.config.id2label[int(logits.argmax())])" if target == "class" else PRINTED[target][0],
        ],
    )


def with_transferkit() -> str:
    """:class:`transferkit.Extractor`, where the library has no class for a vision tower with its projection."""
    return program(
        ["from transferkit import Extractor"],
        ['extractor = Extractor.from_pretrained(".")', 'embedding = extractor.embed(["image.jpg"])'],
    )


def with_timm(extractor: ExtractorCore, backbone: TimmBackbone, layout: str) -> str:
    """``timm.create_model`` on the directory, with timm's own transform."""
    apart = extractor.head is not None and layout == "base"
    classifier = extractor.head is not None and layout == "classifier"
    patches = f"features[:, {backbone.prefix}:].mean(1)"
    pooled = {"cls": "features[:, 0]", "cls+mean": f"torch.cat((features[:, 0], {patches}), 1)"}
    whole = backbone.pooling in ("pooler", "logits")
    return program(
        [
            *(TO_NAME if is_named(extractor) else []),
            *(NUMPY, "import timm", "import torch", PILLOW),
            *(["from safetensors.torch import load_file"] if apart else []),
        ],
        [
            READ,
            'model = timm.create_model("local-dir:.", pretrained=True).eval()',
            "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))",
            "pixels = transform(image)[None]",
            "with torch.inference_mode():",
            "    logits = model(pixels)  # (1, classes)\n    model.reset_classifier(0)" if classifier else "",
            "" if whole else "    features = model.forward_features(pixels)",
            f"    embedding = {'model(pixels)' if whole else pooled.get(backbone.pooling, mean_of(backbone))}",
            head_apart(extractor) if apart else "",
            printed(extractor) if classifier else "",
        ],
    )


@torch.no_grad()
def mean_of(backbone: TimmBackbone) -> str:
    """The mean of timm's features as an expression: over a map, its channels where they are, or the patch tokens."""
    features: Tensor = backbone.dry_run(backbone.forward_features)
    if features.ndim == 3:
        return f"features[:, {backbone.prefix}:].mean(1)"
    return f"features.mean({(1, 2) if backbone.channels_last else (2, 3)})"


def with_transformers(extractor: ExtractorCore, backbone: TransformersBackbone, layout: str) -> str:
    """Return code that uses ``AutoModel`` and the pooling, with the head if transformers has no classifier for it."""
    apart = extractor.head is not None and layout == "base"
    bare = takes_pooler(type(backbone.model)) and backbone.pooling != "pooler"
    native = getattr(backbone.model.config, "image_size", None)
    native = (native, native) if isinstance(native, int) else tuple(native or ())
    interpolates = backbone.takes_interpolation and native != extractor.preprocessing.image_size
    return program(
        [
            *(TO_NAME if apart and is_named(extractor) else []),
            NUMPY,
            "import torch",
            PILLOW,
            *(["from safetensors.torch import load_file"] if apart else []),
            "from transformers import AutoImageProcessor, AutoModel",
        ],
        [
            READ,
            PROCESS,
            f'model = AutoModel.from_pretrained("."{", add_pooling_layer=False" if bare else ""})',
            "with torch.inference_mode():",
            f"    output = model(pixel_values=pixels{', interpolate_pos_encoding=True' if interpolates else ''})",
            f"    embedding = {pooled(backbone)}  # (1, {extractor.embed_dim})",
            head_apart(extractor) if apart else "",
        ],
    )


def pooled(backbone: TransformersBackbone) -> str:
    """Return the embedding as an expression of transformers' ``output``."""
    if backbone.pooling == "pooler":
        return f"output.{'summary' if backbone.model.config.model_type == 'radio' else 'pooler_output'}.flatten(1)"
    token = "output.last_hidden_state[:, 0]"
    patches = ".mean((2, 3))" if backbone.gives_map else f"[:, {backbone.prefix}:].mean(1)"
    mean = f"output.last_hidden_state{patches}"
    return {"cls": token, "mean": mean, "cls+mean": f"torch.cat(({token}, {mean}), 1)"}[backbone.pooling]


def head_apart(extractor: ExtractorCore) -> str:
    """Return code that applies the head from its own file."""
    embedding = "torch.nn.functional.normalize(embedding)" if extractor.l2_normalize else "embedding"
    theirs = isinstance(extractor.backbone, TransformersBackbone)  # its class would be there, without the head
    load = 'head = load_file("head.safetensors")'
    load += "  # AutoModelForImageClassification would make a random one" if theirs else ""
    logits = f'logits = {embedding} @ head["weight"].T + head["bias"]  # (1, classes)'
    return "\n".join(filter(None, [load, logits, printed(extractor)]))


def with_torchvision(extractor: ExtractorCore, backbone: TorchvisionBackbone, layout: str) -> str:
    """Return code that uses ``torchvision.models`` with a strictly loaded state dict."""
    options: dict[str, Any] = {"init_weights": True, "aux_logits": False} if backbone.name in INCEPTIONS else {}
    options |= backbone.architecture
    if extractor.head and layout == "classifier":
        options["num_classes"] = extractor.head.out_features
    arguments = ", ".join(f"{name}={value!r}" for name, value in options.items())
    without = f'model.set_submodule("{backbone.last_layer}", torch.nn.Identity())'
    load = 'model.load_state_dict(load_file("model.safetensors"))'
    versioned = isinstance(backbone.model, models.MNASNet)  # needs a version to load, which safetensors do not store
    load = VERSIONED if versioned else load
    name = printed(extractor)
    grad, logits = "with torch.inference_mode():", "    logits = model(pixels)  # (1, classes)"
    embed = f"    embedding = model(pixels).flatten(1)  # (1, {extractor.embed_dim})"
    if layout == "classifier":
        steps = [load, grad, logits, f"    {without}", embed, name]
    else:
        bare = without if backbone.pooling == "avg" else ""
        steps = [bare, load, grad, embed, head_apart(extractor) if extractor.head else ""]
    its_own = extractor.preprocessing.arithmetic == "torchvision"
    return program(
        [
            *(TO_NAME if is_named(extractor) else []),
            *(["from collections import OrderedDict"] if versioned else []),
            NUMPY,
            "import torch",
            PILLOW,
            "from safetensors.torch import load_file",
            f"from torchvision import models{', transforms' if its_own else ''}",
            *([] if its_own else ["from transformers import AutoImageProcessor"]),
        ],
        [
            READ,
            torchvision_transforms(extractor) if its_own else PROCESS,
            f"model = models.{backbone.name}({arguments}).eval()",
            *steps,
        ],
    )


def torchvision_transforms(extractor: ExtractorCore) -> str:
    """Return the preprocessing as torchvision's transforms."""
    it = extractor.preprocessing
    mode = it.interpolation.replace("nearest", "nearest_exact").upper()
    return f"""transform = transforms.Compose(
    [
        transforms.PILToTensor(),
        transforms.Resize({it.resize}, transforms.InterpolationMode.{mode}),
        transforms.CenterCrop({it.image_size}),
        transforms.ConvertImageDtype(torch.float32),
        transforms.Normalize({it.mean}, {it.std}),
    ]
)
pixels = transform(image)[None]  # (1, 3, {it.image_size[0]}, {it.image_size[1]})"""


def with_onnxruntime(extractor: ExtractorCore) -> str:
    """Return code that uses ONNX Runtime, NumPy and Pillow; class names are read from the file's metadata."""
    it = extractor.preprocessing
    height, width = it.image_size
    size = f"[int({it.resize} * side / min(image.size)) for side in image.size]"
    if not isinstance(it.resize, int):
        size = str((it.resize[1], it.resize[0]))
        if it.fit != "exact":  # an image keeps its aspect ratio
            ratio = (
                f"{'min' if it.fit == 'cover' else 'max'}(image.width / {it.resize[1]}, image.height / {it.resize[0]})"
            )
            size = f"[round(side / {ratio}) for side in image.size]"
    order = "[..., ::-1]" if it.channels == "bgr" else ""
    offset = "round((side - part) / 2)" if it.arithmetic == "torchvision" else "(side - part) // 2"
    crop = f"""left, top = ({offset} for side, part in zip(image.size, ({width}, {height})))
image = image.crop((left, top, left + {width}, top + {height}))"""
    outputs = "embedding, logits" if extractor.head else "(embedding,)"
    named = is_named(extractor)
    text = PRINTED[extractor.record.get("target", "class")][1] if extractor.head and extractor.class_names else ""
    return program(
        [*(["import json"] if named else []), NUMPY, "import onnxruntime", PILLOW],
        [
            READ,
            f"image = image.resize({size}, Image.Resampling.{it.interpolation.upper()})",
            crop if it.crop else "",
            f"mean = np.array({list(it.mean)}, np.float32)",
            f"std = np.array({list(it.std)}, np.float32)",
            f"pixels = (np.asarray(image, np.float32){order} / 255 - mean) / std",
            f"pixels = pixels.transpose(2, 0, 1)[None]  # (1, 3, {height}, {width})",
            'session = onnxruntime.InferenceSession("model.onnx")',
            f'{outputs} = session.run(None, {{"pixel_values": pixels}})',
            'names = json.loads(session.get_modelmeta().custom_metadata_map["class_names"])' if named else "",
            text,
        ],
    )
