"""The table of docs/backbones.md, measured: ``python -m tests.backbones.family_table`` writes it."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
import transformers
from torch import nn

from tests.backbones.families import CONFIGS, DUALS, save
from transferkit import backbones, check_backbone
from transferkit.backbones.base import Backbone
from transferkit.extractor import Extractor
from transferkit.extractor.pretrained import read_json

DOCS = Path(__file__).parents[2] / "docs" / "backbones.md"
START, END = "<!-- table: python -m tests.backbones.family_table -->\n", "<!-- end of the table -->"
TIMM = ["test_vit", "test_convnext", "test_efficientnet", "test_byobnet", "test_resnet", "levit_128s"]
TIMM += ["swin_tiny_patch4_window7_224", "deit_tiny_distilled_patch16_224", "eva02_tiny_patch14_224"]
TORCHVISION = ["resnet18", "mobilenet_v3_small", "swin_t", "vit_b_32", "convnext_tiny", "densenet121"]
HEADER = "| family | library | pixels | embedding (default first) | stages | partial, decay | export |\n|" + "---|" * 7


def opened() -> Iterator[tuple[str, str, Backbone]]:
    """Family, library and backbone of every row."""
    with tempfile.TemporaryDirectory() as folder:
        for family in (*CONFIGS, *DUALS):
            save(family, Path(folder, family))
            backbone = backbones.build(str(Path(folder, family)))
            yield f"{family}{' (vision tower)' if family in DUALS else ''}", "transformers", backbone
        for name in TIMM:
            yield name, "timm", backbones.build(name, "none")
        for name in TORCHVISION:
            small = {} if name.startswith("vit") else {"resize": [64, 64], "crop": [64, 64]}
            yield name, "torchvision", backbones.build(name, "none", preprocessing=small)


def row(family: str, library: str, backbone: Backbone) -> str:
    """One line of the table, from what ``check_backbone`` found."""
    torch.manual_seed(0)
    results = check_backbone(backbone)
    parity = "as the library's own" if results["preprocessing"] == "passed" else "see the weights"
    stages = f"{len(backbone.stages)}: {backbone.stage_names[0]} … {backbone.stage_names[-1]}"
    learns = (
        "yes" if {results["stages"], results["parameter groups"]} == {"passed"} and len(backbone.stages) > 1 else "no"
    )
    extractor = Extractor(backbone, head=nn.Linear(backbone.embed_dim, 2), class_names=["a", "b"])
    with tempfile.TemporaryDirectory() as folder:
        extractor.save_pretrained(Path(folder, "export"))
        layout = read_json(Path(folder, "export", "transferkit.json"))["layout"]
    export = "the library's classifier" if layout == "classifier" else "base model, head apart"
    poolings = ", ".join(f"`{pooling}`" for pooling in backbone.poolings)
    return f"| {family} | {library} | {parity} | {poolings} | {stages} | {learns} | {export} |"


def table() -> str:
    """The whole table."""
    return "\n".join([HEADER, *(row(*each) for each in opened())]) + "\n"


def main() -> None:
    """Write the table into the documentation."""
    transformers.logging.set_verbosity_error()
    before, rest = DOCS.read_text(encoding="utf-8").split(START)
    after = rest.partition(END)[2]
    DOCS.write_text(f"{before}{START}{table()}{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
