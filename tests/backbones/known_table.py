"""The backbones that are known by name, as the libraries build them: ``python -m tests.backbones.known_table``."""

import csv
import io
from collections.abc import Callable, Iterator

import timm
import torch
from torchvision import models

from tests.backbones.published import CONFIGS, SIDES
from transferkit import backbones
from transferkit.backbones import from_torchvision
from transferkit.backbones.base import Backbone
from transferkit.backbones.catalog import describe
from transferkit.backbones.from_transformers import TransformersBackbone, make_model
from transferkit.backbones.known_models import FILE, KnownModel
from transferkit.backbones.model_class import model_class
from transferkit.images.preprocessing import Preprocessing


def without_memory(make: Callable[[], Backbone]) -> Backbone:
    """What ``make`` builds, without memory for its weights where it can be built so."""
    try:
        with torch.device("meta"):
            return make()
    except Exception:  # some read the values of tensors while they are built
        return make()


def of_torchvision(name: str) -> KnownModel:
    """One of torchvision's."""
    backbone = without_memory(lambda: backbones.build(name, "none"))
    published = models.get_model_weights(name).DEFAULT
    (side,) = published.transforms().crop_size
    return KnownModel(name, "torchvision", published.meta["num_params"], backbone.embed_dim, side, backbone.poolings)


def of_transformers(name: str) -> KnownModel:
    """One of transformers'; of a model of images and texts the image tower."""
    choice = model_class(name, CONFIGS[name], None)
    scheme = Preprocessing.vit().replace(image_size=SIDES.get(name, 224))
    dual = choice.dual is not None
    backbone = without_memory(lambda: TransformersBackbone(name, make_model(choice, name, None), scheme, dual=dual))
    parameters = sum(parameter.numel() for parameter in backbone.model.parameters())
    side = scheme.image_size[0]
    return KnownModel(name, "transformers", parameters, backbone.embed_dim, side, backbone.poolings, dual)


def rows() -> Iterator[KnownModel]:
    """All that open, in the order of libraries and names."""
    yield from map(of_torchvision, sorted(from_torchvision.names()))
    yield from map(of_transformers, sorted(CONFIGS))
    yield from (model for name in sorted(timm.list_pretrained()) if (model := describe(name)))


def main() -> None:
    """Write the table into the package."""
    text = io.StringIO(f"timm {timm.__version__}\n")
    text.seek(0, io.SEEK_END)
    table = csv.writer(text, lineterminator="\n")
    table.writerow(KnownModel._fields)
    for model in rows():
        words = "yes" if model.words else "no"
        table.writerow(model._replace(poolings=" ".join(model.poolings), words=words))  # type: ignore[arg-type]
    FILE.write_text(text.getvalue(), encoding="utf-8")


if __name__ == "__main__":
    main()
