"""`embed` against other tools that embed the same photographs by the same weights, and one image classified when warm.

Each tool runs as its documentation shows, on a CPU in float32, with a loading process per core where it takes any. A
tool that is not installed is left out with a note.
"""

import contextlib
import importlib.util
import io
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import transformers
from PIL import Image
from torch import Tensor, nn
from torchvision.models import ResNet18_Weights

from tests.backbones.words import tokenizer
from tests.bench.inputs import BATCH, Network, photographs, resnet, vit_small, workplace
from tests.bench.row_embed import embed
from tests.bench.timing import Row, measured
from transferkit.data.datamodule import ImageDataModule
from transferkit.extractor import Extractor
from transferkit.extractor.forward import Precision
from transferkit.runtime.cores import cores
from transferkit.training.module import TransferModule
from transferkit.training.run import Run
from transferkit.training.trainer import make_trainer, quietly, seed_everything
from transferkit.training.trainer_options import computes_in_bf16

COUNT = 64
TARGET = 2.0  # theirs at most half as fast
Embedder = Callable[[], Tensor]


def pipeline(network: Network, files: list[str], place: Path) -> Embedder:
    """transformers' `pipeline("image-feature-extraction")`, whose class token is the embedding."""
    source = network.options["backbone"]
    run: Any = transformers.pipeline("image-feature-extraction", model=source, device="cpu")
    return lambda: torch.cat([each[:, 0] for each in run(files, batch_size=BATCH, return_tensors=True)])


def sentences(network: Network, files: list[str], place: Path) -> Embedder:
    """sentence-transformers' encoder of images."""
    from sentence_transformers import SentenceTransformer  # type: ignore[import-not-found]
    from sentence_transformers.sentence_transformer.modules import CLIPModel  # type: ignore[import-not-found]

    model = SentenceTransformer(modules=[CLIPModel(network.options["backbone"])], device="cpu")

    def run() -> Tensor:
        images = [Image.open(file).convert("RGB") for file in files]
        found: Tensor = model.encode(images, batch_size=BATCH, convert_to_tensor=True, show_progress_bar=False)
        return found

    return run


def in_order(found: Tensor, names: Iterable[str | Path], files: list[str]) -> Tensor:
    """Return the rows of files, of those that a tool gives in an order of its own."""
    place = {str(name): row for row, name in enumerate(names)}
    return found[[place[file] for file in files]]


def timm_inference(network: Network, files: list[str], place: Path) -> Embedder:
    """The loop of timm's `inference.py` over timm's dataset and loader."""
    import timm.data

    folder, model = Path(files[0]).parents[2], network.module
    config = {"input_size": (3, 224, 224), "interpolation": "bilinear", "crop_pct": 224 / 256}

    def run() -> Tensor:
        data = timm.data.create_dataset("", str(folder), search_split=False)
        loader = timm.data.create_loader(
            data, batch_size=BATCH, use_prefetcher=False, num_workers=cores(), device=torch.device("cpu"), **config
        )
        with torch.inference_mode():
            found = torch.cat([model(pixels) for pixels, _ in loader])
        return in_order(found, data.filenames(absolute=True), files)  # it sorts by the numbers in names

    return run


def fastai_preds(network: Network, files: list[str], place: Path) -> Embedder:
    """fastai's `get_preds` of the network without a head."""
    from fastai.vision.all import (  # type: ignore[import-not-found]
        CropPad,
        ImageDataLoaders,
        Learner,
        MSELossFlat,
        Normalize,
        Resize,
        imagenet_stats,
    )  # fmt: skip

    folder = Path(files[0]).parents[2]
    loaders = ImageDataLoaders.from_folder(
        folder, train="train", valid="val", item_tfms=[Resize(256), CropPad(224)], bs=BATCH, num_workers=cores(),
        batch_tfms=Normalize.from_stats(*imagenet_stats), device=torch.device("cpu"),
    )  # fmt: skip
    learner = Learner(loaders, network.module, loss_func=MSELossFlat(), path=place)

    def run() -> Tensor:
        with learner.no_bar(), learner.no_logging():
            found: Tensor = learner.get_preds(dl=loaders.test_dl([Path(file) for file in files]))[0]
        return found

    return run


def lightly_embed(network: Network, files: list[str], place: Path) -> Embedder:
    """LightlyTrain's `embed`, from a checkpoint that holds the network; its telemetry is switched off."""
    import lightly_train  # type: ignore[import-not-found]
    from lightly_train import _checkpoint as parts  # type: ignore[import-not-found]
    from lightly_train._models.embedding_model import EmbeddingModel  # type: ignore[import-not-found]
    from lightly_train._models.package_helpers import get_wrapped_model  # type: ignore[import-not-found]
    from lightly_train._transforms.transform import NormalizeArgs  # type: ignore[import-not-found]

    wrapped = get_wrapped_model("torchvision/resnet18", num_input_channels=3, load_weights=False)
    model = wrapped.get_model()
    model.load_state_dict(network.module.state_dict(), strict=False)
    models = parts.CheckpointLightlyTrainModels(model, wrapped, EmbeddingModel(wrapped))
    record = parts.CheckpointLightlyTrain.from_now(models, NormalizeArgs())
    torch.save(parts.Checkpoint(model.state_dict(), record).to_dict(), place / "lightly.ckpt")
    folder = Path(files[0]).parents[2]

    def run() -> Tensor:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            lightly_train.embed(
                out=place / "lightly.pt", data=folder, checkpoint=place / "lightly.ckpt", batch_size=BATCH,
                accelerator="cpu", overwrite=True,
            )  # fmt: skip
        saved = torch.load(place / "lightly.pt", weights_only=True)
        return in_order(saved["embeddings"], (folder / name for name in saved["filenames"]), files)

    return run


def clip(place: Path) -> Network:
    """Return a CLIP with random weights whose image tower is a ViT-S/16, and whose embedding is projected."""
    torch.manual_seed(0)
    tokens = tokenizer("clip")
    ids = {name: getattr(tokens, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = {**ids, "vocab_size": len(tokens), "hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 128}
    vision = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536, "patch_size": 16}
    config = transformers.CLIPConfig(
        text_config={**text, "num_hidden_layers": 2}, vision_config=vision, projection_dim=384
    )
    model = transformers.CLIPModel(config)
    model.save_pretrained(place / "clip")
    transformers.CLIPProcessor(transformers.CLIPImageProcessor(), tokens).save_pretrained(place / "clip")
    return Network("CLIP ViT-S/16", nn.Identity(), model, {"backbone": str(place / "clip"), "pooling": "projection"})


PEERS: dict[str, tuple[str, Callable[[Path], Network], Callable[[Network, list[str], Path], Embedder]]] = {
    "transformers' pipeline": ("transformers", vit_small, pipeline),
    "sentence-transformers": ("sentence_transformers", clip, sentences),
    "timm's inference": ("timm", resnet, timm_inference),
    "fastai's get_preds": ("fastai", resnet, fastai_preds),
    "LightlyTrain's embed": ("lightly_train", resnet, lightly_embed),
}
OWN = ("fastai's get_preds", "LightlyTrain's embed")  # prepare images in ways of their own: cosines are only told


def rows(full: bool) -> Iterator[Row]:
    """Yield a row per peer in float32, one in bfloat16 where the processor has it, and one of a single prediction."""
    quiet = {"LIGHTLY_TRAIN_EVENTS_DISABLED": "1", "HF_HUB_OFFLINE": "1"}
    for name, (package, make, peer) in PEERS.items():
        if importlib.util.find_spec(package) is None:
            note = f"{package} is not installed"
            yield Row(f"embed, {name}", name, "faster", TARGET, [], [], note=note)
            continue
        with workplace() as place, patch.dict(os.environ, quiet):
            yield from against(name, make(place), peer, photographs(place, None if full else COUNT), place)
    with workplace() as place:
        yield predict_warm(resnet(place), place)


def against(
    name: str, network: Network, peer: Callable[[Network, list[str], Path], Embedder], folder: Path, place: Path
) -> Iterator[Row]:
    """Compare with one peer, after a check that the embeddings of each image are alike."""
    files = sorted(map(str, folder.rglob("*.jpg")))
    extractor, theirs = opened(network), peer(network, files, place)
    mine, found = embed(extractor, folder, place), theirs().float().cpu()
    assert found.shape == mine.shape, f"{name} gives {tuple(found.shape)}, not {tuple(mine.shape)}"
    cosine = float(torch.cosine_similarity(mine, found).min())
    assert cosine > 0.99 or name in OWN, f"embeddings differ: cosine {cosine}"
    precisions: tuple[Precision, ...] = ("32", "bf16") if computes_in_bf16() else ("32",)
    for precision in precisions:
        what = f"embed {network.name}" + (", bf16" if precision == "bf16" else "")
        note = f"{len(files)} images, theirs in float32; smallest cosine {cosine:.4f}"
        yield measured(
            what, name, "faster", TARGET,
            lambda precision=precision: embed(extractor, folder, place, precision), theirs, note=note,  # type: ignore[misc]
        )  # fmt: skip


def opened(network: Network) -> Extractor:
    """Return the extractor of a network, with its pooling."""
    return Extractor.from_pretrained(
        network.options["backbone"], network.options.get("weights", "DEFAULT"), network.options.get("pooling")
    )


def predict_warm(network: Network, place: Path) -> Row:
    """Classify one file by an open run, against PIL, the weights' transforms and the plain module."""
    folder, run = photographs(place, 32), place / "run"
    seed_everything(0)
    module, data = TransferModule(**network.options), ImageDataModule(str(folder))
    with quietly():
        make_trainer(run, max_epochs=1, enable_progress_bar=False, accelerator="cpu").fit(module, datamodule=data)
    image, opened_run, scheme = str(next(folder.rglob("*.jpg"))), Run(run), ResNet18_Weights.DEFAULT.transforms()
    head = opened_run.extractor.head
    assert head is not None

    def ours() -> list[float]:
        for _ in range(10):
            found = opened_run.predict(image)
        return list(found.probabilities.values())

    @torch.inference_mode()
    def theirs() -> list[float]:
        for _ in range(10):
            pixels = scheme(Image.open(image).convert("RGB"))[None]
            found: list[float] = head(network.plain(pixels)).softmax(1)[0].tolist()
        return found

    difference = max(abs(a - b) for a, b in zip(ours(), theirs(), strict=True))
    assert difference < 0.02, f"probabilities differ by {difference}"
    note = "10 times one image; the cold ones are in row_startup.py"
    return measured("predict one image, warm", "PIL, transforms, module", "cheaper", 1.1, ours, theirs, note=note)
