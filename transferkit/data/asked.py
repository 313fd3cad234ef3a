"""What results answer, kept with them, so that other results do not replace them unasked."""

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from transferkit.data.embeddings import Embeddings, Facts
from transferkit.data.image_table import ImageTable
from transferkit.errors import UserError
from transferkit.runtime.json_files import read_json

ASKED = "asked"
SHORT = 60
"""Length of a value up to which a message shows it; hashes are longer."""


def asked_of(
    metadata: Mapping[str, Any], table: Embeddings | ImageTable | Facts, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what results depend on, in plain types: extractor, images, labels and splits, and options.

    Args:
        metadata: of the embeddings, see :func:`~transferkit.embed.describe`.
        table: the embeddings, what is known of them, or their images.
        options: name -> value of those that change the results.
    """
    images = metadata.get("data_fingerprint")
    if images is None and isinstance(table, Embeddings):  # a table that something else wrote
        images = sha256(table.embedding.flatten().numpy().data).hexdigest()
    rows = json.dumps([list(table.labels), list(table.splits), list(table.groups or [])], default=str)
    asked = {
        "extractor": metadata.get("extractor"),
        "weights, preprocessing or pooling": metadata.get("space"),
        "images": images,
        "labels or splits": sha256(rows.encode()).hexdigest(),
        **options,
    }
    plain: dict[str, Any] = json.loads(json.dumps(asked))
    return plain


def check_earlier(file: Path, asked: Mapping[str, Any], overwrite: bool) -> None:
    """Refuse to replace results that answer something else; the same asked again is written again.

    Args:
        file: the record of the results, JSON, with what they answer under the key ``asked``.
        asked: what :func:`asked_of` returned.
        overwrite: whether any earlier results may be replaced.

    Raises:
        UserError: the file holds other results.
    """
    if overwrite or not file.is_file():
        return
    try:
        before = read_json(file).get(ASKED) or {}
    except (OSError, ValueError):
        before = {}
    check_same(file, before, asked)


def check_same(place: Path, before: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Refuse to replace results of another question: the one rule for whatever takes long to compute.

    Args:
        place: of the results.
        before: what they answer; empty if they do not say.
        asked: what is to be answered now.

    Raises:
        UserError: the two differ.
    """
    names = [name for name in {**asked, **before} if asked.get(name) != before.get(name)]
    if names:
        differ = ", ".join(difference(name, before.get(name), asked.get(name)) for name in names)
        what = f"results that differ in {differ}" if before else "results that do not record what they answer"
        raise UserError(f"{place} holds {what}; choose another `out` or add `overwrite=True`")


def difference(name: str, old: Any, new: Any) -> str:
    """Return a name, with both values if they are short."""
    texts = [str(old), str(new)]
    return f"{name} ({texts[0]}, now {texts[1]})" if max(map(len, texts)) <= SHORT else name
