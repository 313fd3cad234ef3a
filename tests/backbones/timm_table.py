"""What ``models`` says of timm's models, found by building each: ``python -m tests.backbones.timm_table`` writes it."""

import warnings
from collections.abc import Iterator
from functools import cache
from typing import Any

import timm
import torch
from torch import nn

from transferkit.backbones.from_timm import classifier_name
from transferkit.backbones.known_models import POOLINGS, TIMM
from transferkit.backbones.timm_output import known_output, poolings_of


@cache
@torch.no_grad()
def describe(architecture: str) -> tuple[int, int, tuple[str, ...], bool]:
    """Parameters without the classifier, width, poolings, and whether the classifier is one linear layer.

    Raises:
        Exception: it makes no embedding of an image, or reads the values of tensors.
    """
    with torch.device("meta"):
        model: Any = timm.create_model(architecture, num_classes=7)
        place = classifier_name(model)
        linear = place is not None and isinstance(model.get_submodule(place), nn.Linear)
        model.eval().reset_classifier(0)
        parameters = sum(tensor.numel() for tensor in model.parameters())
        size = model.pretrained_cfg["input_size"][1:]
        if known := known_output(model, tuple(size)):
            return parameters, known[1], known[2], linear
        features = model.forward_features(torch.zeros(1, 3, *size))
        prefix = int(getattr(model, "num_prefix_tokens", 0))
        return parameters, model.forward_head(features).flatten(1).shape[1], poolings_of(features, prefix), linear


def lines() -> Iterator[str]:
    """Name, parameters, width, side of the images and kind of poolings of all of timm's models with weights."""
    warnings.simplefilter("ignore")
    for name in timm.list_pretrained():
        cfg = timm.models.get_pretrained_cfg(name)
        try:
            parameters, width, poolings, linear = describe(name.partition(".")[0])
        except Exception as error:
            print(f"left out {name}: {error}", flush=True)
            continue
        poolings = (*poolings, "logits") if linear and cfg.num_classes else poolings
        kind = next(key for key, known in POOLINGS.items() if known == poolings)
        yield f"{name} {parameters} {width} {cfg.input_size[-1]} {kind}"


def main() -> None:
    """Write the table."""
    TIMM.write_text("\n".join([f"# timm {timm.__version__}", *lines()]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
