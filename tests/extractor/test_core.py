"""An open extractor: embeddings, logits, and what it says of itself."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.extractor.examples import resnet18, transformer
from transferkit.errors import UserError
from transferkit.extractor import Extractor


def test_embed_takes_files_and_tensors_in_any_batch_size(photos: list[Tensor], tmp_path: Path) -> None:
    extractor = transformer("vit", "cls")
    paths = []
    for number, photo in enumerate(photos):
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(photo.permute(1, 2, 0).numpy()).save(paths[-1])
    embedding = extractor.embed(photos)
    assert embedding.dtype == torch.float32
    assert embedding.shape == (4, extractor.embed_dim)
    torch.testing.assert_close(extractor.embed([str(paths[0]), *paths[1:]]), embedding, atol=0, rtol=0)
    torch.testing.assert_close(extractor.embed(photos, batch_size=3), embedding, atol=1e-5, rtol=0)
    assert extractor.embed([]).shape == (0, extractor.embed_dim)
    assert not embedding.requires_grad


@pytest.mark.parametrize("l2_normalize", [False, True])
def test_classify_gives_the_logits_of_the_head(photos: list[Tensor], l2_normalize: bool) -> None:
    extractor = transformer("vit", "cls", l2_normalize)
    assert extractor.head
    embedding = 7 * extractor.embed(photos)
    read = embedding / embedding.norm(dim=1, keepdim=True) if l2_normalize else embedding
    oracle = read @ extractor.head.weight.T + extractor.head.bias
    logits = extractor.classify(embedding)
    assert logits.shape == (len(photos), 3) and not logits.requires_grad
    torch.testing.assert_close(logits, oracle.detach(), atol=1e-5, rtol=1e-5)
    with pytest.raises(UserError, match="someone/model has no head"):
        Extractor(extractor.backbone).classify(embedding)


def test_images_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    extractor = transformer("vit", "cls")
    (tmp_path / "no.jpg").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"no\.jpg cannot be read as an image: "):
        extractor.embed([tmp_path / "no.jpg"])
    with pytest.raises(UserError, match=r"embed takes a list of images, not '.*'; for a folder use"):
        extractor.embed(str(tmp_path))


def test_weights_sha256_is_of_the_backbone_alone() -> None:
    extractor, other = transformer("vit", "cls"), transformer("vit", "cls")
    assert extractor.weights_sha256() == other.weights_sha256(), "heads differ"
    with torch.no_grad():
        next(other.backbone.parameters()).view(-1)[0] += 1e-6
    assert extractor.weights_sha256() != other.weights_sha256()


def test_an_extractor_is_in_eval_mode_and_moves() -> None:
    extractor = resnet18()
    assert not any(module.training for module in extractor.backbone.modules())
    assert extractor.to("cpu") is extractor
    assert extractor.device == torch.device("cpu")
    assert (extractor.name, extractor.pooling, extractor.embed_dim) == ("resnet18", "avg", 512)
