"""The model card: what an extractor was trained on, its metrics, and code that opens it."""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from transferkit.backbones.from_timm import TimmBackbone
from transferkit.backbones.from_torchvision import TorchvisionBackbone
from transferkit.extractor.checkpoint_reader import DISTILLED
from transferkit.extractor.core import ExtractorCore
from transferkit.extractor.int8_export import Loss
from transferkit.extractor.snippets import snippets
from transferkit.runtime.files import file_sha256
from transferkit.runtime.json_files import finite
from transferkit.runtime.text import for_markdown
from transferkit.runtime.versions import versions
from transferkit.similarity.intervals import wilson

CARD = "README.md"
PROPORTIONS = ("acc", "acc_top5")
MONITORS = {"labels": "val/map", "number": "val/r2"}
MOST_CLASSES = 1000  # listed; the rest is counted


def write(extractor: ExtractorCore, layout: str, folder: Path, loss: Loss | None = None) -> None:
    """Write ``README.md`` into a directory that holds everything else.

    Args:
        extractor: the content of the directory.
        layout: ``classifier`` if the library's own classifier holds the head, otherwise ``base``.
        folder: the directory.
        loss: of its files in int8, if there are any.
    """
    hashes = {path.name: file_sha256(path) for path in sorted(folder.iterdir()) if is_model(path.name)}
    words = (folder / "tokenizer_config.json").is_file()
    (folder / CARD).write_text(card(extractor, layout, hashes, words, loss), encoding="utf-8")


def is_model(name: str) -> bool:
    """Return whether a file of that name holds weights."""
    return name.endswith((".safetensors", ".onnx", ".onnx.data", ".xml", ".bin"))


def card(
    extractor: ExtractorCore, layout: str, hashes: dict[str, str], words: bool = False, loss: Loss | None = None
) -> str:
    """Return the model card as Markdown.

    Args:
        extractor: the content of the directory.
        layout: ``classifier`` or ``base``.
        hashes: name -> SHA-256 of the files that hold weights.
        words: whether the text tower is among the content.
        loss: of the files in int8, if there are any.
    """
    code = snippets(extractor, layout, "model.onnx" in hashes)
    parts = [
        front_matter(extractor, layout),
        f"# {for_markdown(title(extractor.name))}",
        introduction(extractor),
        "## Training",
        *training(extractor),
        *metrics(extractor.record),
        *calibration(extractor),
        *precision(loss),
        "## Preprocessing",
        *preprocessing(extractor),
        "## Use",
        "Each of these runs in this directory, on an image `image.jpg`.",
        *(f"### {title}\n\n```python\n{text}```" for title, text in code.items()),
        'With transferkit: `transferkit.Extractor.from_pretrained(".").embed(["image.jpg"])`',
        *(['Its texts lie in the same space: `.embed_text(["a red mushroom"])`'] if words else []),
        "## Files",
        table(("file", "SHA-256"), ((name, f"`{value}`") for name, value in hashes.items())),
        f"SHA-256 over the backbone's tensors: `{extractor.weights_sha256()}`",
        table(("written with", "version"), versions().items()),
    ]
    return "\n\n".join(parts) + "\n"


def front_matter(extractor: ExtractorCore, layout: str) -> str:
    """Return the metadata that the Hugging Face Hub reads, as YAML with JSON values.

    It is a classifier only if the library opens it as one: transformers would make a random head for the base layout.
    """
    known = ((TorchvisionBackbone, "torchvision"), (TimmBackbone, "timm"))
    library = next((name for kind, name in known if isinstance(extractor.backbone, kind)), "transformers")
    fields = {
        "library_name": library,
        "pipeline_tag": "image-classification" if layout == "classifier" else "image-feature-extraction",
        "tags": ["transferkit", "transfer-learning", "image-embeddings"],
    }
    return "\n".join(["---", *(f"{key}: {json.dumps(value)}" for key, value in fields.items()), "---"])


def introduction(extractor: ExtractorCore) -> str:
    """Describe input and output."""
    height, width = extractor.preprocessing.image_size
    text = (
        f"An image ({height} × {width} pixels after preprocessing) becomes an embedding of {extractor.embed_dim} "
        f"numbers, pooling `{extractor.pooling}`."
    )
    if not extractor.head:
        return text
    read = "L2-normalized embedding" if extractor.l2_normalize else "embedding"
    outputs = extractor.head.out_features
    gives = {
        "labels": f"the logits of {outputs} labels, any number per image; their probability is the sigmoid",
        "number": "a number, in the unit of the training targets",
    }.get(extractor.record.get("target", "class"), f"the logits of {outputs} classes")
    return f"{text} A linear head on the {read} gives {gives}."


def training(extractor: ExtractorCore) -> list[str]:
    """Describe regime, origin, numbers of images, and the classes."""
    record = extractor.record
    counts, images = record.get("class_counts", {}), record.get("images", {})
    rows = [("regime", record.get("regime")), ("started from", short(record.get("weights", "")))]
    if "epoch" in record:
        rows.append(("checkpoint", f"{record.get('checkpoint', '')}, epoch {record['epoch']}"))
    rows.append(("teacher", short(record.get("teacher", ""))))
    rows += [(f"{split} images", f"{count:,}") for split, count in images.items()]
    known = [(name, for_markdown(value)) for name, value in rows if value]
    names = extractor.class_names[:MOST_CLASSES]
    parts = [table(("", ""), known)] if known else []
    if not record.get("regime"):
        parts.insert(0, "No training is recorded: the weights are unchanged.")
    if thresholds := record.get("thresholds"):
        rows_of = ((for_markdown(name), counts.get(name), f"{thresholds[name]:.4g}") for name in names)
        parts.append(table(("label", "training images", "threshold of its probability"), rows_of))
        parts.append("An image has a label from its threshold on, at which F1 was highest on the validation images.")
    elif names and record.get("target") != "number":
        parts.append(table(("class", "training images"), ((for_markdown(name), counts.get(name)) for name in names)))
    if more := len(extractor.class_names) - len(names):
        parts.append(f"and {more:,} more, in `transferkit.json`.")
    return parts


def metrics(record: dict[str, Any]) -> list[str]:
    """List the metrics, proportions with their 95 % interval."""
    values = {name: value for name, value in record.get("metrics", {}).items() if name.startswith(("val/", "test/"))}
    values = {name: value for name, value in finite(values).items() if not name.endswith("/epoch")}
    values = {name: value for name, value in values.items() if value is not None}  # undefined, such as R² of one image
    if not values:
        return []
    rows = [(for_markdown(name), f"{value:.4f}", interval(name, value, record)) for name, value in values.items()]
    note = "The interval is Wilson's, over these images: it does not cover images from other sources."
    if record.get("checkpoint", "").startswith("best"):
        distilled = record.get("regime") == DISTILLED
        chosen = "val/cosine" if distilled else MONITORS.get(record.get("target", "class"), "val/acc")
        note = f"The epoch was chosen by `{chosen}`, so the values under `val/` are slightly optimistic. {note}"
    return ["## Metrics", table(("metric", "value", "95 % interval"), rows), note]


def calibration(extractor: ExtractorCore) -> list[str]:
    """Say what to divide the logits by, and where the thresholds are, if the classifier is calibrated."""
    if (known := extractor.calibration) is None:
        return []
    return [
        "## Calibration",
        f"Divide the logits by {known.temperature:.4g} before the softmax: the temperature that minimizes the "
        f"cross-entropy on {len(known):,} validation images. `calibration.json` holds thresholds for sets of classes, "
        "for abstaining, and for images unlike the training images.",
    ]


def precision(loss: Loss | None) -> list[str]:
    """State precision and loss of the files for engines, if they are in int8."""
    if loss is None:
        return []
    rows: list[tuple[str, Any]] = [
        ("ranges measured on", f"{loss.calibration_images:,} images"),
        ("compared with float32 on", for_markdown(loss.measured_on)),
        ("cosine to float32, mean", f"{loss.cosine_mean:.4f}"),
        ("cosine to float32, least", f"{loss.cosine_least:.4f}"),
    ]
    if loss.accuracy_float is not None and loss.accuracy_int8 is not None:
        rows += [
            (f"accuracy of {loss.classifier}, float32", f"{loss.accuracy_float:.4f}"),
            (f"accuracy of {loss.classifier}, int8", f"{loss.accuracy_int8:.4f}"),
            ("lost", f"{loss.drop:.2f} points"),
        ]
    rows.append(("kept in float", ", ".join(loss.kept_in_float) or "no block"))
    text = "The files for ONNX Runtime and OpenVINO compute in int8; `model.safetensors` is float32."
    return ["## Precision", text, table(("", ""), rows)]


def interval(name: str, value: float, record: dict[str, Any]) -> str | None:
    """Return Wilson's interval of a proportion if the number of images is known."""
    split, _, metric = name.partition("/")
    total = record.get("images", {}).get(split, 0)
    if metric not in PROPORTIONS or total < 1 or not 0 <= value <= 1:
        return None
    low, high = wilson(round(value * total), total)
    return f"{low:.4f} – {high:.4f} (n = {total:,})"


def preprocessing(extractor: ExtractorCore) -> list[str]:
    """List the steps and constants, and how closely the image processor matches."""
    it = extractor.preprocessing
    resize = f"shorter side to {it.resize}" if isinstance(it.resize, int) else f"to {it.resize[0]} × {it.resize[1]}"
    antialiased = "" if it.interpolation == "nearest" else ", antialiased"
    rows = [
        ("image", "upright by its EXIF orientation, transparency on white, 16 bits to their upper 8, RGB"),
        ("resize", f"{resize}, {it.interpolation}{antialiased}"),
        ("center crop", f"{it.crop[0]} × {it.crop[1]}" if it.crop else None),
        ("scale", "0 … 255 to 0 … 1"),
        ("mean", ", ".join(map(str, it.mean))),
        ("standard deviation", ", ".join(map(str, it.std))),
    ]
    near = "gives the same pixels" if it.arithmetic == "transformers" else "is within one gray level"
    return [table(("step", "value"), rows), f"transformers' `AutoImageProcessor` {near}."]


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a Markdown table, with None as a dash."""
    lines = [columns, ["---"] * len(columns), *(["–" if cell is None else str(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def title(name: str) -> str:
    """Return a name for a heading; of a local path only the last part."""
    is_local = name.startswith((".", "~", "/")) or Path(name).is_dir()
    return short(Path(name).name if is_local else name)


def short(name: str) -> str:
    """Return a name; of an absolute path, alone or in brackets, only the last part."""
    return re.sub(r"(^|\()/[^()]*/", r"\1", name)
