"""Words of models of images and texts, compared with transformers' own models and tokenizers."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer

from tests.backbones.families import save
from tests.backbones.words import FAMILIES, save_dual, tokenizer
from tests.conftest import hub_snapshot
from transferkit import Extractor, backbones
from transferkit.backbones.text_tower import PADDED
from transferkit.errors import UserError
from transferkit.extractor.core import head_logits
from transferkit.extractor.word_head import reads_unit_rows, word_head

FAST = ["clip", "siglip"]
SLOW = [pytest.param(family, marks=pytest.mark.slow) for family in FAMILIES if family not in FAST]
TEXTS = ["red apple", "lime", "a sentence of far more letters than the model reads"]


def images() -> list[torch.Tensor]:
    noise = torch.Generator().manual_seed(0)
    return list(torch.randint(256, (3, 3, 40, 36), dtype=torch.uint8, generator=noise))


def theirs(folder: Path, extractor: Extractor) -> Any:
    """The library's own output for the images and the texts."""
    model = AutoModel.from_pretrained(folder).eval()
    padding = "max_length" if model.config.model_type in PADDED else True
    tokens = AutoTokenizer.from_pretrained(folder)(
        TEXTS, padding=padding, truncation=True, max_length=24, return_tensors="pt"
    )
    scheme = extractor.preprocessing
    pixels = scheme.normalize(torch.stack([scheme.resize_crop(image) for image in images()]))
    with torch.no_grad():
        return model(pixel_values=pixels, **tokens)


@pytest.mark.parametrize("family", FAST + SLOW)
def test_logits_are_those_of_the_library_also_after_export(family: str, tmp_path: Path) -> None:
    save_dual(family, tmp_path / "dual")
    extractor = Extractor.from_pretrained(tmp_path / "dual", pooling="projection")
    oracle = theirs(tmp_path / "dual", extractor)
    assert oracle.logits_per_image.std(1).min() > 1e-4  # else every text would be as good
    torch.testing.assert_close(extractor.embed_text(TEXTS), F.normalize(oracle.text_embeds), atol=1e-5, rtol=0)
    embedding = extractor.embed(images())
    logits = head_logits(word_head(extractor, TEXTS, ("{}",)), embedding, reads_unit_rows(extractor))
    torch.testing.assert_close(logits, oracle.logits_per_image, atol=1e-4, rtol=0)

    extractor.save_pretrained(tmp_path / "exported")
    assert ".embed_text(" in (tmp_path / "exported" / "README.md").read_text(encoding="utf-8")
    again = Extractor.from_pretrained(tmp_path / "exported")
    torch.testing.assert_close(again.embed_text(TEXTS), extractor.embed_text(TEXTS), atol=1e-6, rtol=0)
    torch.testing.assert_close(again.embed(images()), embedding, atol=1e-6, rtol=0)
    reopened = theirs(tmp_path / "exported", again)
    torch.testing.assert_close(reopened.logits_per_image, oracle.logits_per_image, atol=1e-4, rtol=0)


def test_siglip_needs_no_projection(tmp_path: Path) -> None:
    save_dual("siglip", tmp_path)
    pooled, projected = (Extractor.from_pretrained(tmp_path, pooling=pooling) for pooling in ("pooler", "projection"))
    heads = [word_head(extractor, TEXTS) for extractor in (pooled, projected)]
    rows = [extractor.embed(images()) for extractor in (pooled, projected)]
    assert reads_unit_rows(pooled) and not reads_unit_rows(projected)
    one, other = (head_logits(head, x, unit) for head, x, unit in zip(heads, rows, (True, False), strict=True))
    torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_the_order_and_number_of_texts_do_not_matter(tmp_path: Path) -> None:
    save_dual("clip", tmp_path)
    extractor = Extractor.from_pretrained(tmp_path, pooling="projection")
    alone = torch.cat([extractor.embed_text([text]) for text in TEXTS])
    torch.testing.assert_close(extractor.embed_text(TEXTS[::-1], batch_size=2).flip(0), alone, atol=1e-5, rtol=0)
    assert extractor.embed_text([]).shape == (0, 16)


def test_what_is_cut_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_dual("clip", tmp_path)
    extractor = Extractor.from_pretrained(tmp_path, pooling="projection")
    with caplog.at_level(logging.WARNING, "transferkit"):
        extractor.embed_text(TEXTS)
    said = [record.getMessage() for record in caplog.records]
    assert said == [f"cut to the 24 tokens that the model reads: {TEXTS[2]!r}"]


def test_a_model_of_images_alone_has_no_words(tmp_path: Path) -> None:
    save("vit", tmp_path)
    for extractor in (Extractor.from_pretrained(tmp_path), Extractor.from_pretrained("resnet18", weights="none")):
        with pytest.raises(
            UserError, match=r"cannot be asked by words: .* is a model of images alone; give a model of im"
        ):
            extractor.embed_text(["lime"])
        weights = "DEFAULT" if extractor.pooling == "cls" else "none"
        with pytest.raises(UserError, match=r"has no pooling 'projection'.*give a model of both"):
            Extractor.from_pretrained(extractor.backbone.name, weights, "projection")


def test_what_cannot_be_asked_says_why(tmp_path: Path) -> None:
    model = save_dual("clip", tmp_path / "dual")
    whole = Extractor.from_pretrained(tmp_path / "dual", pooling="projection")
    for texts, message in (("lime", "takes a list"), (["lime", " "], "text 2 of 2 is empty")):
        with pytest.raises(UserError, match=message):
            whole.embed_text(texts)
    with pytest.raises(UserError, match=r'pooling pooler of .* give `pooling="projection"`'):
        Extractor.from_pretrained(tmp_path / "dual").embed_text(["lime"])
    with pytest.raises(UserError, match=r"random weights of .* know no words"):
        Extractor.from_pretrained(tmp_path / "dual", weights="none", pooling="projection").embed_text(["lime"])
    with pytest.raises(UserError, match="has no pooling 'cls'; it offers pooler, projection, mean"):
        Extractor.from_pretrained(tmp_path / "dual", pooling="cls")
    state = model.state_dict()
    vision = {key: value.clone() for key, value in state.items() if key.startswith("vis")}
    save_file(vision, tmp_path / "vision.safetensors")
    seeing = Extractor.from_pretrained(tmp_path / "dual", str(tmp_path / "vision.safetensors"), "projection")
    with pytest.raises(UserError, match=r"vision\.safetensors holds no text tower"):
        seeing.embed_text(["lime"])


def test_weights_from_a_file_bring_their_own_words(tmp_path: Path) -> None:
    """Not those of the directory: the two towers belong together."""
    save_dual("clip", tmp_path / "dual")
    state = load_file(tmp_path / "dual" / "model.safetensors")
    state["text_projection.weight"] = -state["text_projection.weight"]
    save_file(state, tmp_path / "other.safetensors")
    own = Extractor.from_pretrained(tmp_path / "dual", pooling="projection")
    other = Extractor.from_pretrained(tmp_path / "dual", str(tmp_path / "other.safetensors"), "projection")
    torch.testing.assert_close(other.embed_text(TEXTS), -own.embed_text(TEXTS), atol=1e-6, rtol=0)


def test_a_checkpoint_or_an_open_extractor_reads_its_texts_from_where_it_came_from(tmp_path: Path) -> None:
    save_dual("clip", tmp_path / "dual")
    extractor = Extractor.from_pretrained(tmp_path / "dual", pooling="projection")
    again = Extractor(backbones.rebuild(extractor.backbone.spec()))  # as a checkpoint's
    torch.testing.assert_close(again.embed_text(TEXTS), extractor.embed_text(TEXTS), atol=1e-6, rtol=0)
    (tmp_path / "dual").rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"are read from .*dual, which no longer exists; restore it"):
        Extractor(backbones.rebuild(extractor.backbone.spec())).embed_text(TEXTS)


@pytest.mark.parametrize("content", [None, "{"])
def test_a_missing_or_broken_tokenizer(content: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_dual("clip", tmp_path / "dual")
    for path in (tmp_path / "dual").glob("tokenizer*"):
        path.unlink()
        if content and path.name == "tokenizer.json":
            path.write_text(content)
    extractor = Extractor.from_pretrained(tmp_path / "dual", pooling="projection")
    with pytest.raises(UserError, match=r"has no (usable )?tokenizer.*tokenizer.json there") as caught:
        extractor.embed_text(["lime"])
    assert "\n" not in str(caught.value)
    with caplog.at_level(logging.WARNING, "transferkit"):
        extractor.save_pretrained(tmp_path / "exported")  # images still work
    assert "the export cannot be asked by words: " in caplog.text
    torch.testing.assert_close(
        Extractor.from_pretrained(tmp_path / "exported").embed(images()), extractor.embed(images()), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("family", ["clip", pytest.param("siglip", marks=pytest.mark.slow)])
def test_a_tokenizer_that_is_not_in_the_cache_yet_is_downloaded(family: str) -> None:
    """The images of a model need none, so it may be missing there: an empty one of transformers' is not taken."""
    name = f"someone/tiny-{family}"
    save_dual(family, hub_snapshot(name))
    for path in hub_snapshot(name).glob("tokenizer*"):
        path.unlink()
    extractor = Extractor.from_pretrained(name, pooling="projection")
    with pytest.raises(UserError, match=rf"{name} \(tokenizer\): not in the local cache, and .* cannot be reached"):
        extractor.embed_text(["lime"])


def test_a_tokenizer_of_another_model(tmp_path: Path) -> None:
    save_dual("clip", tmp_path)
    for path in tmp_path.glob("tokenizer*"):
        path.unlink()
    tokenizer("siglip").save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"the tokenizer of .* has 302 tokens, its model 82"):
        Extractor.from_pretrained(tmp_path, pooling="projection").embed_text(["lime"])
