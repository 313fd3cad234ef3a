"""The model card: what it says, and that names cannot write it."""

import hashlib
import itertools
import re
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt
from scipy.stats import binomtest

from tests.extractor.examples import resnet18, transformer, with_head
from transferkit import backbones
from transferkit.extractor import Extractor
from transferkit.extractor.model_card import short, title
from transferkit.runtime.text import for_markdown

HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "a | b\n## not a heading\n",
    "[text](https://example.org) ![i](x.png)",
    "```\ncode",
    "`code` *bold* _emphasis_ ~~gone~~",
    "\x1b[31mred\x1b[0m\x00\r",
    "\u202egnp.exe",  # turns the direction of writing
    "\udcff",  # a byte that is no UTF-8, as Python reads file names
    "&amp; &#60;b&#62;",
    "--- \\",
    "naïve 日本 100%",
]


def card_of(extractor: Extractor, folder: Path) -> str:
    extractor.save_pretrained(folder)
    return (folder / "README.md").read_text(encoding="utf-8")


def cells(card: str) -> list[str]:
    """The text of every table cell, as a browser would show it."""
    tokens = MarkdownIt("commonmark").enable("table").parse(card)
    found = []
    for before, token in itertools.pairwise(tokens):
        if before.type in ("td_open", "th_open"):
            assert token.children is not None
            kinds = {child.type for child in token.children}
            assert kinds <= {"text", "text_special", "code_inline"}, f"{token.content} is {kinds}"
            found.append("".join(child.content for child in token.children))
    return found


def test_names_of_classes_mean_nothing_to_markdown_and_html(tmp_path: Path) -> None:
    extractor = resnet18()
    assert extractor.head is not None
    extractor.head = type(extractor.head)(512, len(HOSTILE))
    extractor.class_names = HOSTILE
    extractor.record["class_counts"] = dict.fromkeys(HOSTILE, 7)
    extractor.record["regime"] = extractor.record["weights"] = HOSTILE[0]
    extractor.record["metrics"] = {f"val/{HOSTILE[2]}": 0.5}
    card = card_of(extractor, tmp_path / "export")
    assert all(character.isprintable() or character == "\n" for character in card)
    found = cells(card)
    start = found.index("class")
    names, counts = found[start + 2 :: 2][: len(HOSTILE)], found[start + 3 :: 2][: len(HOSTILE)]
    assert names == ["".join(c if c.isprintable() else repr(c)[1:-1] for c in name).strip() for name in HOSTILE]
    assert set(counts) == {"7"}
    tokens = MarkdownIt("commonmark").enable("table").parse(card.split("---", 2)[2])
    assert not [token for token in tokens if token.type == "html_block"]
    headings = [tokens[number + 1].content for number, token in enumerate(tokens) if token.type == "heading_open"]
    assert headings == ["resnet18", "Training", "Metrics", "Preprocessing", "Use", "torchvision", "Files"]


def test_what_a_card_says(tmp_path: Path) -> None:
    extractor = transformer("vit", "cls")
    extractor.record |= {
        "regime": "full",
        "weights": "/home/somebody/vit (/home/somebody/weights.safetensors)",
        "class_counts": {"ant": 123, "bee": 121},
        "images": {"train": 244, "val": 153},
        "metrics": {"val/acc": 146 / 153, "val/f1_macro": 0.9, "train/loss": 0.1, "epoch_time": 3.0},
    }
    card = card_of(extractor, tmp_path / "export")
    low, high = binomtest(146, 153).proportion_ci(method="wilson")
    for line in (
        "| regime | full |",
        r"| started from | vit (weights\.safetensors) |",
        "| train images | 244 |",
        "| ant | 123 |",
        "| wasp | – |",
        f"| val/acc | 0.9542 | {low:.4f} – {high:.4f} (n = 153) |",
        r"| val/f1\_macro | 0.9000 | – |",
        "| resize | to 32 × 32, bilinear, antialiased |",
        "| mean | 0.5, 0.5, 0.5 |",
    ):
        assert line in card.splitlines()
    assert "train/loss" not in card and "epoch" not in card.split("## Metrics")[0]
    digest = hashlib.sha256((tmp_path / "export" / "model.safetensors").read_bytes()).hexdigest()
    assert f"| model.safetensors | `{digest}` |" in card
    assert extractor.weights_sha256() in card
    assert re.search(r"\| transformers \| \d+\.", card)


def test_the_front_matter_is_the_hubs(tmp_path: Path) -> None:
    bare = resnet18()
    bare.head, bare.class_names = None, []
    for extractor, library, task in (
        (transformer("vit", "cls"), "transformers", "image-classification"),
        (transformer("vit", "mean"), "transformers", "image-feature-extraction"),
        (resnet18(), "torchvision", "image-classification"),
        (bare, "torchvision", "image-feature-extraction"),
    ):
        card = card_of(extractor, tmp_path / f"{library}-{extractor.pooling}-{extractor.head is None}")
        fields = yaml.safe_load(card.split("---")[1])
        assert card.startswith("---\n")
        assert (fields["library_name"], fields["pipeline_tag"]) == (library, task)
        assert "transferkit" in fields["tags"]
    from huggingface_hub import ModelCard

    assert ModelCard(card).data.pipeline_tag == task


def test_a_card_without_a_training(tmp_path: Path) -> None:
    extractor = resnet18()
    extractor.record = {}
    card = card_of(extractor, tmp_path / "export")
    assert "No training is recorded: the weights are unchanged." in card
    assert "## Metrics" not in card
    assert "| ant | – |" in card


@pytest.mark.parametrize("count", [1000, 1001])
def test_many_classes(count: int, tmp_path: Path) -> None:
    extractor = resnet18()
    assert extractor.head is not None
    extractor.head = type(extractor.head)(512, count)
    extractor.class_names = [f"class {number}" for number in range(count)]
    card = card_of(extractor, tmp_path / "export")
    assert ("and 1 more, in `transferkit.json`." in card) is (count == 1001)


def test_names_shortened_and_escaped() -> None:
    for name, oracle in (
        ("resnet18 (DEFAULT)", "resnet18 (DEFAULT)"),
        ("/a b/c/vit (none)", "vit (none)"),
        ("resnet18 (/a/b c/w.safetensors)", "resnet18 (w.safetensors)"),
        ("google/vit-base (DEFAULT)", "google/vit-base (DEFAULT)"),
    ):
        assert short(name) == oracle
    assert for_markdown("golden_retriever") == r"golden\_retriever"
    assert for_markdown("<b>") == "&lt;b&gt;"


def test_the_card_of_a_timm_model_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """timm is what loads it, and its heading is not a path of the machine that it was made on."""
    monkeypatch.chdir(tmp_path)
    Path("backbones/lite").mkdir(parents=True)
    backbone = backbones.build("test_vit", "none")
    extractor = with_head(backbone, backbone.preprocessing)
    backbone.name = "backbones/lite"
    card = card_of(extractor, tmp_path / "export")
    assert yaml.safe_load(card.split("---")[1])["library_name"] == "timm"
    assert "\n# lite\n" in card and "timm.create_model" in card
    for name, heading in (("./lite", "lite"), ("/a/b/lite", "lite"), ("google/vit", "google/vit"), ("vit", "vit")):
        assert title(name) == heading
