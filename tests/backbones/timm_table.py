"""What ``models`` says of timm's models, found by building each: ``python -m tests.backbones.timm_table`` writes it."""

import warnings
from collections.abc import Iterator

import timm
import torch

from transferkit.backbones.from_timm import TimmBackbone
from transferkit.backbones.known_models import POOLINGS, TIMM
from transferkit.errors import UserError
from transferkit.images.preprocessing import Preprocessing


def line(name: str) -> str | None:
    """Name, parameters without the classifier, width, side of the images and kind of poolings; None if refused."""
    cfg = timm.models.get_pretrained_cfg(name).to_dict()
    side = cfg["input_size"][-1]
    try:
        with torch.device("meta"):
            model = timm.create_model(name)
    except Exception:  # it reads the values of tensors when it is built
        model = timm.create_model(name)
    try:
        scheme = Preprocessing.from_timm(cfg)
        if getattr(model, "set_input_size", None) and side != model.pretrained_cfg["input_size"][-1]:
            model.set_input_size(img_size=scheme.image_size)
        backbone = TimmBackbone(name, model, scheme)
    except UserError as error:
        print(f"left out: {error}")
        return None
    kind = next(key for key, poolings in POOLINGS.items() if poolings == backbone.poolings)
    parameters = sum(tensor.numel() for tensor in backbone.model.parameters())
    return f"{name} {parameters} {backbone.embed_dim} {side} {kind}"


def lines() -> Iterator[str]:
    """All of timm's models with weights."""
    warnings.simplefilter("ignore")
    for name in timm.list_pretrained():
        if found := line(name):
            yield found


def main() -> None:
    """Write the table."""
    TIMM.write_text("\n".join([f"# timm {timm.__version__}", *lines()]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
