"""What the libraries themselves make of an image: the right answers of ``check_backbone``."""

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from transferkit.backbones import Backbone
from transferkit.backbones.dual_model import Projected
from transferkit.backbones.from_timm import TimmBackbone
from transferkit.backbones.from_torchvision import TorchvisionBackbone, make_model
from transferkit.backbones.from_transformers import TransformersBackbone
from transferkit.backbones.model_class import takes_pooler
from transferkit.extractor.pretrained import read_json


class Skipped(Exception):
    """A check does not apply to a backbone; the text says why."""


def library_preprocessing(backbone: Backbone) -> Callable[[Tensor], Tensor]:
    """Return the library's own preprocessing: uint8 (3, H, W) -> float32 (3, h, w).

    Raises:
        Skipped: the library has none for this backbone.
    """
    if isinstance(backbone, TransformersBackbone):
        if not any(
            Path(backbone.name, file).is_file() for file in ("preprocessor_config.json", "processor_config.json")
        ):
            raise Skipped("there is no directory with an image processor")
        from transformers import AutoImageProcessor

        processor: Any = AutoImageProcessor.from_pretrained(backbone.name)  # type: ignore[no-untyped-call]

        def processed(image: Tensor) -> Tensor:
            output: Tensor = processor(images=image, return_tensors="pt", input_data_format="channels_first")[
                "pixel_values"
            ][0]
            return output

        return processed
    if isinstance(backbone, TimmBackbone):
        data: Any = importlib.import_module("timm.data")
        transform = data.create_transform(**data.resolve_model_data_config(backbone.model))
        resize_and_crop, normalize = transform.transforms[:-2], transform.transforms[-1]

        def transformed(image: Tensor) -> Tensor:
            for step in resize_and_crop:
                image = step(image)
            output: Tensor = normalize(image / 255)
            return output

        return transformed
    raise Skipped("the library has no preprocessing without weights")


def library_embedding(backbone: Backbone, pixels: Tensor) -> Tensor:
    """Return what the library itself calls the embedding of an image, from its own forward pass: (B, D).

    Raises:
        Skipped: it has none for this backbone.
    """
    if isinstance(backbone, TimmBackbone):
        timms: Any = backbone.model
        pooled: Tensor = timms.forward_head(timms.forward_features(pixels), pre_logits=True)
        return pooled.flatten(1)
    if isinstance(backbone, TorchvisionBackbone):
        whole = make_model(backbone.name, backbone.architecture).eval()
        whole.load_state_dict(backbone.model.state_dict(), strict=False)
        read = read_by([whole.get_submodule(backbone.last_layer)], lambda: whole(pixels))
        return read.mean((2, 3)) if read.ndim == 4 else read.flatten(1)
    if isinstance(backbone, TransformersBackbone):
        return of_transformers(backbone, pixels)
    raise Skipped("it is not of a library")


def of_transformers(backbone: TransformersBackbone, pixels: Tensor) -> Tensor:
    """Return the shared space of a model of images and texts, or a pooled output, or what the classifier reads.

    Raises:
        Skipped: transformers has none of them, or its classifier reads what has weights of its own.
    """
    import transformers

    model: Any = backbone.model
    if isinstance(model, Projected):
        auto: Any = transformers.AutoModel
        whole = auto.from_config(model.dual_config).eval()
        whole.load_state_dict(model.state_dict(), strict=False)
        shared = whole.get_image_features(pixels)
        return F.normalize(shared if isinstance(shared, Tensor) else shared.pooler_output)
    output = model(pixel_values=pixels)
    pooled = output.get("pooler_output", output.get("summary"))
    if pooled is not None and not takes_pooler(type(model)):
        return pooled.flatten(1)  # type: ignore[no-any-return]
    kinds: Any = transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
    if type(model.config) not in kinds:
        raise Skipped("transformers has neither a pooled output nor a classifier for it")
    kind: Any = kinds[type(model.config)]
    classifier = (kind[0] if isinstance(kind, list | tuple) else kind)(model.config).eval()
    lost = classifier.base_model.load_state_dict(model.state_dict(), strict=False).missing_keys
    own = [module for part in classifier.children() if part is not classifier.base_model for module in part.modules()]
    heads = [module for module in own if isinstance(module, nn.Linear)]
    if lost or any(has_weights(module) for module in own if not isinstance(module, nn.Linear)):
        raise Skipped("transformers' classifier reads what has weights of its own, which the base model has not")
    return read_by(heads, lambda: classifier(pixel_values=pixels)).flatten(1)


def has_weights(module: nn.Module) -> bool:
    """Return whether a module has parameters besides those of the modules in it."""
    return next(module.parameters(recurse=False), None) is not None


def read_by(layers: Sequence[nn.Module], run: Callable[[], object]) -> Tensor:
    """Return the input of the first of some layers that runs."""
    read: list[Tensor] = []
    handles = [layer.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0])) for layer in layers]
    run()
    for handle in handles:
        handle.remove()
    return read[0]


def in_library(backbone: Backbone, path: Path, layout: str) -> Callable[[Tensor], Tensor] | None:
    """Return what the library makes of an export: the logits, or the embedding where it has no classifier for them."""
    if isinstance(backbone, TimmBackbone):
        import timm

        model: Any = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
        whole: Callable[[Tensor], Tensor] = model
        return whole if layout == "classifier" or backbone.pooling in ("pooler", "logits") else None
    if isinstance(backbone, TorchvisionBackbone):
        from safetensors.torch import load_file
        from torchvision import models

        arguments = read_json(path / "config.json")["arguments"]
        model = models.get_model(backbone.name, weights=None, **arguments).eval()
        if layout == "base":
            return None
        model.load_state_dict(load_file(path / "model.safetensors"))
        classifier: Callable[[Tensor], Tensor] = model
        return classifier
    if not isinstance(backbone, TransformersBackbone) or isinstance(backbone.model, Projected):
        return None
    from transformers import AutoModelForImageClassification

    if layout == "classifier":
        model = AutoModelForImageClassification.from_pretrained(path).eval()
        return lambda pixels: model(pixel_values=pixels).logits
    own: Any = type(backbone.model).from_pretrained(path)
    again = TransformersBackbone(backbone.name, own.eval(), backbone.preprocessing, backbone.pooling)
    return again
