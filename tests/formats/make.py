"""Write the files of this folder, with whatever version is installed: ``python make.py FOLDER``.

The version that wrote them, the commit before the modules moved into folders, is the one that counts: a later
version only reads them.
"""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision import models
from transformers import ViTConfig, ViTImageProcessor, ViTModel

COLORS = {"apples": (190, 50, 40), "limes": (70, 180, 60)}
SMALL = '{"resize": [32, 32], "crop": [32, 32]}'


def transferkit(*arguments: object) -> None:
    """Run a command."""
    subprocess.run([sys.executable, "-m", "transferkit", *map(str, arguments)], check=True)


def draw(root: Path) -> None:
    """Write two classes of noise in a color: train and val of two images per class, 12 x 10 pixels."""
    noise = np.random.default_rng(0)
    for split in ("train", "val"):
        for label, color in COLORS.items():
            (root / split / label).mkdir(parents=True)
            for number in range(2):
                pixels = np.clip(noise.normal(color, 25, (10, 12, 3)), 0, 255).astype(np.uint8)  # (H, W, 3)
                Image.fromarray(pixels).save(root / split / label / f"{number}.png")


def make_vit(folder: Path) -> None:
    """Write a ViT of 16 pixels and 16 numbers in the layout of Hugging Face."""
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=8
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)


def make_resnet(file: Path) -> None:
    """Write a ResNet18 whose weights repeat every 61 numbers, so that its 45 MB compress to almost nothing."""
    torch.manual_seed(0)
    cycle = torch.randn(61)
    state = models.resnet18().state_dict()
    for name, tensor in state.items():
        if tensor.ndim > 1:
            repeated = cycle.repeat(tensor.numel() // 61 + 1)[: tensor.numel()].view(tensor.shape)
            state[name] = repeated * (2 / tensor[0].numel()) ** 0.5
    save_file(state, file)


def pack(folder: Path, file: Path) -> None:
    """Compress a folder, without the names and times of this machine."""

    def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = entry.mtime = 0
        entry.uname = entry.gname = ""
        return entry

    with tarfile.open(file, "w:xz") as archive:
        archive.add(folder, folder.name, filter=plain)


def main(out: Path) -> None:
    """Write everything into an empty folder."""
    out.mkdir(parents=True)
    os.chdir(out)
    os.environ["TRANSFERKIT_CACHE"] = str(out / "cache")
    draw(Path("images"))
    make_vit(Path("vit"))
    make_resnet(Path("resnet18.safetensors"))
    common = ("--data.root", "images", "--trainer.max_epochs", 2, "--trainer.accelerator", "cpu")
    transferkit("fit", *common, "--model.backbone", "vit", "--name", "vit")
    transferkit(
        "fit", *common, "--model.weights", "resnet18.safetensors", "--model.preprocessing", SMALL, "--name", "resnet18"
    )
    for run in ("runs/vit/0", "runs/resnet18/0"):
        transferkit("test", "--ckpt_path", f"{run}/checkpoints/best.ckpt", "--trainer.accelerator", "cpu")
        transferkit("export", f"{run}/checkpoints/best.ckpt", "--out", f"{run.split('/')[1]}-export")
    shutil.rmtree("cache")
    for name in ("vit", "resnet18"):
        transferkit("embed", "images", "--extractor", f"{name}-export", "--out", f"{name}.parquet")
    transferkit("index", "images", "--extractor", "resnet18-export", "--out", "index")
    pack(Path("resnet18-export"), Path("resnet18-export.tar.xz"))


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
