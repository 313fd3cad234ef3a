"""Folders and repositories in the layout of another library: what they are, and what opens instead."""

import fnmatch
import json
from collections.abc import Iterable
from pathlib import Path

# Files that are in no model of transformers or timm -> what they are in, and the remedy; the surest first.
LAYOUTS = (
    (
        "model_index.json",
        "a pipeline of diffusers",
        "give a model of images, such as google/vit-base-patch16-224-in21k",
    ),
    (
        "adapter_config.json",
        "an adapter without the model that it changes",
        "merge it into that model (peft's merge_and_unload), save the result with save_pretrained and give its folder",
    ),
    (
        "open_clip_config.json",
        "a model of OpenCLIP",
        "give one of transformers, such as laion/CLIP-ViT-B-32-laion2B-s34B-b79K, or of timm, such as "
        "vit_base_patch16_clip_224.laion2b",
    ),
    (
        "modules.json",
        "a model of sentence-transformers",
        "give the folder of its image model, or openai/clip-vit-base-patch32",
    ),
    ("*.onnx", "a model in ONNX alone", "give the model that it was exported from"),
    ("*.gguf", "a model in GGUF alone", "give the model that it was converted from"),
    ("tf_model.h5", "a model of TensorFlow alone", "give one with model.safetensors"),
    ("flax_model.msgpack", "a model of Flax alone", "give one with model.safetensors"),
    ("*.tflite", "a model of TensorFlow Lite", "give the model that it was converted from"),
    ("*.pt2", "a program of torch.export", "give the model that it was exported from"),
    ("*.h5", "a model of Keras", "give a model of torchvision, transformers or timm"),
)


def other_layout(files: Iterable[str]) -> str | None:
    """Return what the names of files show a model to be, with the remedy; None if they do not show it.

    >>> other_layout(["onnx/model.onnx", "README.md"])
    'a model in ONNX alone; give the model that it was exported from'

    Args:
        files: paths relative to the folder or repository, of one that could not be opened.
    """
    names = {Path(file).name for file in files}
    for pattern, what, remedy in LAYOUTS:
        if fnmatch.filter(names, pattern):
            return f"{what}; {remedy}"
    return None


def layout_of(folder: Path) -> str | None:
    """Return :func:`other_layout` of a folder, with the name of an adapter's model or the place of an image model."""
    found = other_layout(str(file.relative_to(folder)) for pattern in ("*", "*/*") for file in folder.glob(pattern))
    inner = [config.parent for config in folder.glob("*/config.json") if "CLIP" in config.parent.name]
    if found and (folder / "modules.json").is_file() and len(inner) == 1:
        return found.replace("the folder of its image model, or openai/clip-vit-base-patch32", str(inner[0]))
    try:
        base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        return found
    return found.replace("the model that it changes", f"its model ({base})") if found and base else found
