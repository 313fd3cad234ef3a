"""The code blocks of written cards, run where transferkit cannot be imported, on a photograph of a file."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tests.extractor.examples import resnet18, transformer, with_head
from tests.image_corpus import encode
from transferkit import backbones
from transferkit.extractor import Extractor
from transferkit.extractor.checkpoint_reader import change_preprocessing
from transferkit.extractor.onnx import export
from transferkit.extractor.snippets import NUMPY, PILLOW, READ
from transferkit.images.decoding import decode


def at_another_size(family: str) -> Extractor:
    extractor = transformer(family, "cls")
    change_preprocessing(extractor.backbone, {"image_size": 42 if family == "dinov2" else 48})
    extractor.preprocessing = extractor.backbone.preprocessing
    return extractor


def squeezenet() -> Extractor:
    backbone = backbones.build("squeezenet1_1", "none")
    return with_head(backbone, backbone.preprocessing.replace(image_size=64))


def mobilenet() -> Extractor:
    backbone = backbones.build("mobilenet_v3_small", "none", architecture={"dropout": 0.0})
    return with_head(backbone, backbone.preprocessing.replace(image_size=(64, 96)))


def without_head(extractor: Extractor) -> Extractor:
    extractor.head, extractor.class_names = None, []
    return extractor


CASES: dict[str, Callable[[], Extractor]] = {
    "resnet18": resnet18,
    "resnet18-logits": lambda: resnet18("logits"),
    "resnet18-l2": lambda: resnet18(l2_normalize=True),
    "resnet18-bare": lambda: without_head(resnet18()),
    "squeezenet": squeezenet,
    "mobilenet": mobilenet,
    "vit-cls": lambda: transformer("vit", "cls"),
    "vit-cls+mean": lambda: transformer("vit", "cls+mean"),
    "vit-pooler": lambda: transformer("vit", "pooler"),
    "vit-l2": lambda: transformer("vit", "cls", l2_normalize=True),
    "vit-bare": lambda: without_head(transformer("vit", "mean")),
    "vit-other-size": lambda: at_another_size("vit"),
    "dinov2": lambda: transformer("dinov2", "cls"),
    "dinov2-other-size": lambda: at_another_size("dinov2"),
    "swin": lambda: transformer("swin", "mean"),
    "timm": lambda: with_head(backbone := backbones.build("test_vit", "none"), backbone.preprocessing),
    "timm-mean": lambda: with_head(backbone := backbones.build("test_vit", "none", "mean"), backbone.preprocessing),
    "timm-convnext": lambda: without_head(Extractor(backbones.build("test_convnext", "none", "mean"))),
}
WITH_ONNX = ("resnet18", "vit-l2")
FEW = ("resnet18", "resnet18-l2", "vit-cls", "vit-l2", "dinov2-other-size", "timm")  # the default tests' share

# A process of its own: no transferkit, each block in names of its own, in the directory.
HARNESS = """
import json, os, sys

class Blocked:
    def find_spec(self, name, *_):
        if name.split(".")[0] == "transferkit":
            raise ImportError("blocked")

sys.meta_path.insert(0, Blocked())
import torch
torch.set_num_threads(1)
root, found = os.getcwd(), {}
for case, title, code in json.load(open("blocks.json")):
    os.chdir(os.path.join(root, case))
    names = {}
    exec(compile(code, f"{case}: {title}", "exec"), names)
    found[f"{case}: {title}"] = {k: torch.as_tensor(names[k]) for k in ("embedding", "logits") if k in names}
torch.save(found, os.path.join(root, "found.pt"))
"""


def photograph(path: Path) -> None:
    """A JPEG whose EXIF turns it, with few fine details, so that resizing well is not a matter of luck."""
    coarse = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((160, 120), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    image.save(path, quality=95, exif=exif)


def pictures() -> dict[str, bytes]:
    """Every kind of picture whose pixels two readers could see differently: name -> the bytes of a file."""
    noise = np.random.default_rng(0)
    rgba = noise.integers(0, 256, (20, 30, 4), dtype=np.uint8)
    deep = noise.integers(0, 2**16, (20, 30), dtype=np.uint16)
    pillow, upright = Image.fromarray(rgba), Image.Exif()
    upright[0x0112] = 6  # turn by 90 degrees
    palette = pillow.convert("RGB").quantize(16)
    return {
        "rgb": encode(pillow.convert("RGB"), "PNG"),
        "rgba": encode(pillow, "PNG"),
        "rgba-webp": encode(pillow, "WEBP", lossless=True, exact=True),
        "rgba-turned": encode(pillow, "PNG", exif=upright),
        "la": encode(pillow.convert("LA"), "PNG"),
        "l": encode(pillow.convert("L"), "PNG"),
        "l-transparent": encode(pillow.convert("L"), "PNG", transparency=int(rgba[3, 3, 0])),
        "rgb-transparent": encode(pillow.convert("RGB"), "PNG", transparency=tuple(map(int, rgba[3, 3, :3]))),
        "p": encode(palette, "PNG"),
        "p-transparent": encode(palette, "PNG", transparency=3),
        "p-alphas": encode(palette, "PNG", transparency=bytes(range(0, 256, 16))),
        "gif-transparent": encode(palette, "GIF", transparency=3),
        "1": encode(pillow.convert("1"), "PNG"),
        "i16": encode(Image.fromarray(deep), "PNG"),
        "i16-tiff": encode(Image.fromarray(deep), "TIFF"),
        "i16-big": encode(Image.fromarray(deep.astype(">u2")), "TIFF"),
        "i16-transparent": encode(Image.fromarray(deep), "PNG", transparency=int(deep[5, 5])),
        "cmyk": encode(pillow.convert("CMYK"), "JPEG"),
        "cmyk-tiff": encode(pillow.convert("CMYK"), "TIFF"),
        "turned": encode(pillow.convert("RGB"), "JPEG", exif=upright),
    }


@pytest.mark.parametrize("name", pictures())
def test_the_cards_code_sees_the_pixels_that_we_see(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = pictures()[name]
    Path("image.jpg").write_bytes(data)
    names: dict[str, Any] = {}
    exec("\n".join((NUMPY, PILLOW, READ)), names)
    image = names["image"]
    assert image.mode == "RGB"
    theirs, ours = np.asarray(image), decode(data).permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(theirs, ours)
    if "turned" in name:
        assert theirs.shape == (30, 20, 3)


@pytest.mark.parametrize("family", ["resnet18", "vit"])
@pytest.mark.parametrize("name", ["rgba", "la", "p-transparent", "i16", "cmyk", "turned"])
def test_the_cards_code_gives_our_input_of_the_model(
    name: str, family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole snippet, up to ``pixels``."""
    extractor = resnet18() if family == "resnet18" else transformer("vit", "cls")
    extractor.save_pretrained(tmp_path / "export")
    monkeypatch.chdir(tmp_path / "export")
    data = pictures()[name]
    Path("image.jpg").write_bytes(data)
    names: dict[str, Any] = {}
    exec(re.findall(r"```python\n(.*?)^```", Path("README.md").read_text(), flags=re.DOTALL | re.MULTILINE)[-1], names)
    torch.testing.assert_close(names["pixels"][0], extractor.preprocessing(decode(data)), atol=1e-5, rtol=0)
    torch.testing.assert_close(names["embedding"], extractor.embed([Path("image.jpg")]), atol=1e-5, rtol=0)


@pytest.fixture(scope="module", params=[FEW, pytest.param(tuple(CASES), marks=pytest.mark.slow)], ids=["few", "all"])
def cases(request: pytest.FixtureRequest) -> tuple[str, ...]:
    chosen: tuple[str, ...] = request.param
    return chosen


@pytest.fixture(scope="module")
def outcome(
    cases: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Case and title -> what the snippet found, and what the extractor finds."""
    root = tmp_path_factory.mktemp("cards")
    torch.manual_seed(0)
    blocks, oracle = [], {}
    for case in cases:
        extractor = CASES[case]()
        export(extractor, root / case, onnx=case in WITH_ONNX)
        photograph(root / case / "image.jpg")
        embedding = extractor.embed([root / case / "image.jpg"])
        oracle[case] = {"embedding": embedding}
        if extractor.head:
            oracle[case]["logits"] = extractor.classify(embedding)
        card = (root / case / "README.md").read_text(encoding="utf-8")
        found = re.findall(r"^### ([^\n]*)\n\n```python\n(.*?)^```", card, flags=re.DOTALL | re.MULTILINE)
        assert len(found) == card.count("```python"), "a block that this test does not run"
        blocks += [(case, title, code) for title, code in found]
    (root / "blocks.json").write_text(json.dumps(blocks))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", HARNESS], cwd=root, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = torch.load(root / "found.pt")
    return {name: (values, oracle[name.partition(":")[0]]) for name, values in found.items()}


@pytest.mark.slow
def test_every_snippet_gives_the_extractors_own_numbers(
    cases: tuple[str, ...], outcome: dict[str, tuple[dict[str, Tensor], dict[str, Tensor]]]
) -> None:
    classifiers = {"vit-cls", "vit-other-size", "swin"}  # of the library's own
    assert len(outcome) == len(cases) + sum(case in (*WITH_ONNX, *classifiers) for case in cases)
    for name, (found, oracle) in outcome.items():
        assert found, name
        # Pillow's resize is within a grey level of torch's
        tolerance = 2e-2 if name.endswith(("ONNX Runtime", ": timm")) else 1e-5
        for kind, value in found.items():
            torch.testing.assert_close(value, oracle[kind], atol=tolerance, rtol=0, msg=f"{name} {kind}")
    for case in cases:  # one snippet or another gives each output
        kinds = {kind for name, (found, _) in outcome.items() if name.startswith(f"{case}:") for kind in found}
        assert kinds == set(next(oracle for name, (_, oracle) in outcome.items() if name.startswith(f"{case}:")))


@pytest.mark.slow
@pytest.mark.parametrize("target", ["labels", "number"])
@pytest.mark.parametrize("family", ["resnet18", "vit"])
def test_the_cards_code_prints_labels_and_numbers(
    family: str, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of every library, ONNX Runtime included: the probability of each label, or the number in its unit."""
    extractor = resnet18() if family == "resnet18" else transformer("vit", "cls")
    extractor.record |= {"target": target}
    if target == "number":
        extractor.head, extractor.class_names = nn.Linear(extractor.embed_dim, 1), ["target"]
    names = extractor.class_names
    export(extractor, tmp_path / "export", onnx=True)
    monkeypatch.chdir(tmp_path / "export")
    photograph(Path("image.jpg"))
    logits = extractor.classify(extractor.embed(["image.jpg"]))[0].detach()
    blocks = re.findall(r"```python\n(.*?)^```", Path("README.md").read_text(), flags=re.DOTALL | re.MULTILINE)
    said = []
    for block in blocks:
        capsys.readouterr()
        exec(block, {})
        said += [capsys.readouterr().out.strip()] if "print(" in block else []
    assert len(said) >= 2
    for text in said:
        numbers = re.findall(r"-?\d+\.\d+(?:e-?\d+)?", text)
        expected = logits.sigmoid() if target == "labels" else logits
        torch.testing.assert_close(torch.tensor([float(each) for each in numbers]), expected, atol=2e-2, rtol=0)
        assert all(name in text for name in names) or target == "number"
