"""What published weights give on the photographs of hymenoptera: python -m tests.bench.bench_weights

EfficientNet-Lite0 in timm's layout: a linear probe, its own ImageNet classes (ant, bee), and which stages a partial fit
changes. DINOv2 ViT-S/14: the class token, to the bit as transformers computes it. Needs the folder that
``tests/bench/inputs.py`` describes, and timm; ends with status 1 where a line is not what is wanted.
"""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoImageProcessor, AutoModel

from tests.bench.inputs import SHARED, workplace
from tests.tiny import fit
from transferkit.data.image_table import open_images
from transferkit.embed import cached_features
from transferkit.extractor import Extractor
from transferkit.images.decoding import read_image
from transferkit.probe import probe_embeddings
from transferkit.training.trainer import quiet_libraries

PHOTOS = SHARED / "data" / "hymenoptera"
LITE, DINO = SHARED / "checkpoints" / "efficientnet-lite0", SHARED / "checkpoints" / "dinov2-small-saliency"
IMAGENET = {"bees": 309, "ants": 310}  # places of the classes among ImageNet's 1,000


def lines() -> Iterator[tuple[str, str, bool]]:
    """What was measured, the outcome, and whether it is as wanted."""
    photos = open_images(PHOTOS)
    probed = probe_embeddings(cached_features(Extractor.from_pretrained(LITE), photos), shots=(1,), few_shot_seeds=(0,))
    accuracy = probed.report["linear"]["top1"]
    yield "linear probe of EfficientNet-Lite0, at least 0.92", f"{accuracy:.3f}", accuracy >= 0.92
    val = photos.select(row for row, split in enumerate(photos.splits) if split == "val")
    logits = cached_features(Extractor.from_pretrained(LITE, pooling="logits"), val)
    right = [IMAGENET[str(label)] for label in logits.labels]
    share = float((logits.embedding.argmax(1) == torch.tensor(right)).double().mean())
    yield "photographs whose class is the first of 1,000, at least 0.7", f"{share:.3f}", share >= 0.7
    model = {"backbone": str(LITE), "regime": "partial", "unfreeze_last": 1, "preprocessing": {"image_size": 96}}
    with tempfile.TemporaryDirectory() as run:
        module, _, _ = fit(Path(run), PHOTOS, model, epochs=1, batch_size=32)
    before = Extractor.from_pretrained(LITE).backbone.state_dict()
    after = module.backbone.state_dict()
    names = [key for key, tensor in before.items() if not torch.equal(tensor, after[key])]
    stages = sorted({module.backbone.stage_of(name.removeprefix("model.")) for name in names})
    last = len(module.backbone.stages) - 1
    yield f"stages that unfreeze_last 1 changes, of {last + 1}", str(stages), stages == [last]
    yield "class token of DINOv2, to the bit as transformers'", *same_bits(photos.paths[:8])


@torch.inference_mode()
def same_bits(paths: list[str]) -> tuple[str, bool]:
    """Compare the backbone with the library's own forward pass, on pixels that differ from its own by 1e-5 at most."""
    images = [read_image(PHOTOS / path) for path in paths]
    processor, model = AutoImageProcessor.from_pretrained(DINO), AutoModel.from_pretrained(DINO, dtype=torch.float32)
    theirs = torch.cat([processor(image, return_tensors="pt")["pixel_values"] for image in images])
    extractor = Extractor.from_pretrained(DINO)
    pixels = torch.stack([extractor.preprocessing(image) for image in images])
    same = torch.equal(extractor.backbone(pixels), model.eval()(pixel_values=pixels).last_hidden_state[:, 0])
    difference = float((pixels - theirs).abs().max())
    return f"{'the same bits' if same else 'other bits'}, pixels within {difference:.0e}", same and difference <= 1e-5


def main() -> int:
    """Print each line; return 1 if one is not as wanted."""
    quiet_libraries()
    with workplace():
        found = [(what, outcome, good) for what, outcome, good in lines()]
    for what, outcome, good in found:
        print(f"{'yes' if good else 'NO ':3} {what}: {outcome}")
    return 0 if all(good for *_, good in found) else 1


if __name__ == "__main__":
    sys.exit(main())
