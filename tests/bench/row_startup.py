"""Time of fresh processes: `--help`, `import transferkit`, one image embedded or classified, against bare scripts."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

import torch

from tests.bench.inputs import Network, photographs, resnet, vit_small, workplace
from tests.bench.timing import Row, measured
from transferkit.data.datamodule import ImageDataModule
from transferkit.training.module import TransferModule
from transferkit.training.trainer import make_trainer, seed_everything

# What a user of the library writes for one image; the last line prints the numbers.
TORCHVISION = """
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torchvision.models import ResNet18_Weights, resnet18
model = resnet18(num_classes=10)
model.load_state_dict(load_file({weights!r}))
model.fc = nn.Identity()
model.eval()
pixels = ResNet18_Weights.DEFAULT.transforms()(Image.open({image!r}).convert("RGB"))[None]
with torch.inference_mode():
    embedding = model(pixels)
"""
TRANSFORMERS = """
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel
model = AutoModel.from_pretrained({backbone!r}).eval()
pixels = AutoImageProcessor.from_pretrained({backbone!r})(Image.open({image!r}).convert("RGB"), return_tensors="pt")
with torch.inference_mode():
    embedding = model(**pixels).last_hidden_state[:, 0]
"""
CLASSIFY = """
checkpoint = torch.load({checkpoint!r}, weights_only=False)["state_dict"]
model.load_state_dict({{name.removeprefix("backbone.model."): value for name, value in checkpoint.items()
                       if name.startswith("backbone.model.")}})
with torch.inference_mode():
    embedding = model(pixels)
    print(*(embedding @ checkpoint["head.weight"].T + checkpoint["head.bias"]).softmax(1)[0].tolist())
"""
PRINT = "print(*embedding[0].tolist())"
EMBED = """
import transferkit
extractor = transferkit.Extractor.from_pretrained({backbone!r}, {weights!r})
print(*extractor.embed([{image!r}])[0].tolist())
"""
PREDICT = """
import transferkit
print(*transferkit.Run({run!r}).predict({image!r}).probabilities.values())
"""


def rows(full: bool) -> Iterator[Row]:
    """Time separate processes, with the files in the system's cache."""

    def help_text() -> str:
        return python("-m", "transferkit", "--help")

    def lightning() -> str:
        return python("-c", "import lightning.pytorch")

    assert "embed" in help_text()
    lightning()
    yield measured("transferkit --help", "import lightning.pytorch", "cheaper", 0.1, help_text, lightning)
    yield measured(
        "import transferkit", "import torch", "cheaper", 1.1, script("import transferkit"), script("import torch")
    )
    for make, bare in ((resnet, TORCHVISION), (vit_small, TRANSFORMERS)):
        with workplace() as place:
            yield from embed_one(make(place), bare, place)
    with workplace() as place:
        yield from predict_one(resnet(place), place)


def embed_one(network: Network, bare: str, place: Path) -> Iterator[Row]:
    """Embed one image from Python and by the command."""
    image, options = str(next(photographs(place, 8).rglob("*.jpg"))), {"weights": "DEFAULT", **network.options}
    theirs = script(bare + PRINT, image=image, **options)
    ours = script(EMBED, image=image, **options)
    check(ours(), theirs())
    yield measured(f"embed one image, {network.name}, Python", "the bare library", "cheaper", 1.1, ours, theirs)

    def command() -> str:
        with tempfile.TemporaryDirectory(dir=place) as folder:
            given = ["--extractor", options["backbone"], "--weights", options["weights"]]
            with patch.dict(os.environ, TRANSFERKIT_CACHE=folder):  # or all but the first would find it there
                return python("-m", "transferkit", "embed", image, *given, "--out", f"{folder}/embeddings.parquet")

    yield measured(f"embed one image, {network.name}, command", "the bare library", "cheaper", 1.1, command, theirs)


def predict_one(network: Network, place: Path) -> Iterator[Row]:
    """Classify one image by a run of a frozen fit, from Python and by the command, which has Lightning's options."""
    folder = photographs(place, 32)
    seed_everything(0)
    run = place / "run"
    module = TransferModule(**network.options)
    make_trainer(run, max_epochs=1, enable_progress_bar=False, accelerator="cpu").fit(
        module, datamodule=ImageDataModule(str(folder))
    )
    image, checkpoint = str(next(folder.rglob("*.jpg"))), str(run / "checkpoints" / "best.ckpt")
    theirs = script(TORCHVISION + CLASSIFY, image=image, checkpoint=checkpoint, **network.options)
    ours = script(PREDICT, image=image, run=str(run))
    check(ours(), theirs())
    yield measured(f"predict one image, {network.name}, Python", "the bare library", "cheaper", 1.1, ours, theirs)

    def command() -> str:
        return python("-m", "transferkit", "predict", image, "--ckpt_path", checkpoint)

    yield measured(f"predict one image, {network.name}, command", "the bare library", "cheaper", 1.1, command, theirs)


def check(ours: str, theirs: str) -> None:
    """Assert that both printed the same numbers, but for PIL's rounding in the resize of the bare script."""
    found, right = (torch.tensor([float(number) for number in text.split()]) for text in (ours, theirs))
    cosine = float(torch.cosine_similarity(found, right, dim=0))
    assert cosine > 0.999, f"cosine {cosine}"


def script(text: str, **values: str) -> Callable[[], str]:
    """Return what runs a script in a new process and returns what it printed."""
    code = text.format(**values)
    return lambda: python("-c", code)


def python(*arguments: str) -> str:
    """Run Python and return what it printed; with bytecode kept, as pip does for every package that it installs."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return subprocess.run(
        [sys.executable, *arguments], check=True, capture_output=True, text=True, env=environment
    ).stdout
