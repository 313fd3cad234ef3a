"""The model card: what an extractor was trained on, how good it is, and how to open it elsewhere."""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from transferkit.backbones.from_torchvision import TorchvisionBackbone
from transferkit.extractor.core import ExtractorCore
from transferkit.extractor.snippets import snippets
from transferkit.runtime.files import file_sha256
from transferkit.runtime.text import for_markdown
from transferkit.runtime.versions import versions
from transferkit.similarity.intervals import wilson

CARD = "README.md"
PROPORTIONS = ("acc", "acc_top5")
MOST_CLASSES = 1000  # listed; the rest is counted


def write(extractor: ExtractorCore, layout: str, folder: Path) -> None:
    """Write ``README.md`` into a directory that holds everything else.

    Args:
        extractor: what the directory holds.
        layout: ``classifier`` where the library's own classifier holds the head, else ``base``.
        folder: the directory.
    """
    hashes = {path.name: file_sha256(path) for path in sorted(folder.iterdir()) if is_model(path.name)}
    (folder / CARD).write_text(card(extractor, layout, hashes), encoding="utf-8")


def is_model(name: str) -> bool:
    """Whether a file of that name holds weights."""
    return name.endswith((".safetensors", ".onnx", ".onnx.data"))


def card(extractor: ExtractorCore, layout: str, hashes: dict[str, str]) -> str:
    """The model card as Markdown.

    Args:
        extractor: what the directory holds.
        layout: ``classifier`` or ``base``.
        hashes: name -> SHA-256 of the files that hold weights.
    """
    code = snippets(extractor, layout, "model.onnx" in hashes)
    parts = [
        front_matter(extractor, layout),
        f"# {for_markdown(short(extractor.name))}",
        introduction(extractor),
        "## Training",
        *training(extractor),
        *metrics(extractor.record),
        "## Preprocessing",
        *preprocessing(extractor),
        "## Use",
        "Each of these runs in this directory, on a picture `image.jpg`.",
        *(f"### {title}\n\n```python\n{text}```" for title, text in code.items()),
        "With transferkit: `transferkit embed IMAGES --extractor . --out embeddings.parquet`",
        "## Files",
        table(("file", "SHA-256"), ((name, f"`{value}`") for name, value in hashes.items())),
        f"SHA-256 over the backbone's tensors: `{extractor.weights_sha256()}`",
        table(("written with", "version"), versions().items()),
    ]
    return "\n\n".join(parts) + "\n"


def front_matter(extractor: ExtractorCore, layout: str) -> str:
    """The metadata that the Hugging Face hub reads; JSON values, which YAML takes.

    A classifier only where the library opens it as one: transformers would invent a head for the base layout.
    """
    library = "torchvision" if isinstance(extractor.backbone, TorchvisionBackbone) else "transformers"
    fields = {
        "library_name": library,
        "pipeline_tag": "image-classification" if layout == "classifier" else "image-feature-extraction",
        "tags": ["transferkit", "transfer-learning", "image-embeddings"],
    }
    return "\n".join(["---", *(f"{key}: {json.dumps(value)}" for key, value in fields.items()), "---"])


def introduction(extractor: ExtractorCore) -> str:
    """What goes in and what comes out."""
    height, width = extractor.preprocessing.image_size
    text = (
        f"An image ({height} × {width} pixels after preprocessing) becomes an embedding of {extractor.embed_dim} "
        f"numbers, pooling `{extractor.pooling}`."
    )
    if not extractor.head:
        return text
    normalised = "L2-normalised embedding" if extractor.l2_normalize else "embedding"
    return f"{text} A linear head on the {normalised} tells {extractor.head.out_features} classes apart."


def training(extractor: ExtractorCore) -> list[str]:
    """Regime, origin, numbers of images, and the classes."""
    record = extractor.record
    counts, images = record.get("class_counts", {}), record.get("images", {})
    rows = [("regime", record.get("regime")), ("started from", short(record.get("weights", "")))]
    if "epoch" in record:
        rows.append(("checkpoint", f"{record.get('checkpoint', '')}, epoch {record['epoch']}"))
    rows += [(f"{split} images", f"{count:,}") for split, count in images.items()]
    known = [(name, for_markdown(value)) for name, value in rows if value]
    names = extractor.class_names[:MOST_CLASSES]
    parts = [table(("", ""), known)] if known else []
    if not record.get("regime"):
        parts.insert(0, "No training is recorded: the weights are as they came.")
    if names:
        parts.append(table(("class", "training images"), ((for_markdown(name), counts.get(name)) for name in names)))
    if more := len(extractor.class_names) - len(names):
        parts.append(f"and {more:,} more, in `transferkit.json`.")
    return parts


def metrics(record: dict[str, Any]) -> list[str]:
    """What was measured, proportions with their 95 % interval."""
    values = {name: value for name, value in record.get("metrics", {}).items() if name.startswith(("val/", "test/"))}
    values = {name: value for name, value in values.items() if not name.endswith("/epoch")}
    if not values:
        return []
    rows = [(for_markdown(name), f"{value:.4f}", interval(name, value, record)) for name, value in values.items()]
    note = "The interval is Wilson's, over the images: it says nothing of images from elsewhere."
    if record.get("checkpoint", "").startswith("best"):
        note = f"The epoch was chosen by `val/acc`, so the figures under `val/` flatter a little. {note}"
    return ["## Metrics", table(("metric", "value", "95 % interval"), rows), note]


def interval(name: str, value: float, record: dict[str, Any]) -> str | None:
    """Wilson's interval of a proportion, where it is known of how many images."""
    split, _, metric = name.partition("/")
    total = record.get("images", {}).get(split, 0)
    if metric not in PROPORTIONS or total < 1 or not 0 <= value <= 1:
        return None
    low, high = wilson(round(value * total), total)
    return f"{low:.4f} – {high:.4f} (n = {total:,})"


def preprocessing(extractor: ExtractorCore) -> list[str]:
    """The constants, and how near the image processor comes."""
    it = extractor.preprocessing
    resize = f"shorter side to {it.resize}" if isinstance(it.resize, int) else f"to {it.resize[0]} × {it.resize[1]}"
    antialiased = "" if it.interpolation == "nearest" else ", antialiased"
    rows = [
        ("image", "upright by its EXIF orientation, transparency on white, 16 bits to their upper 8, RGB"),
        ("resize", f"{resize}, {it.interpolation}{antialiased}"),
        ("centre crop", f"{it.crop[0]} × {it.crop[1]}" if it.crop else None),
        ("scale", "0 … 255 to 0 … 1"),
        ("mean", ", ".join(map(str, it.mean))),
        ("standard deviation", ", ".join(map(str, it.std))),
    ]
    near = "gives the same pixels" if it.arithmetic == "transformers" else "comes within one grey level"
    return [table(("step", "value"), rows), f"transformers' `AutoImageProcessor` {near}."]


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; None as a dash."""
    lines = [columns, ["---"] * len(columns), *(["–" if cell is None else str(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def short(name: str) -> str:
    """A name; of an absolute path, alone or in brackets, the last part: the rest is about one machine."""
    return re.sub(r"(^|\()/[^()]*/", r"\1", name)
