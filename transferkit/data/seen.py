"""Which images a network was fitted on: hashes of their paths, stored with it as one short text."""

import logging
from base64 import b64decode, b64encode
from collections.abc import Collection, Iterable, Mapping
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from transferkit.errors import UserError

log = logging.getLogger(__name__)
FINE_TUNED = "fine_tuned"  # in the metadata of embeddings, of a backbone that was trained on labels
UNLABELED = ("frozen", "distill")  # regimes in which a backbone learns nothing of labels
BACKBONE = "backbone_fitted_on"  # in a record: the images that the backbone itself was trained on


def remember_paths(paths: Iterable[str], *earlier: str) -> str:
    """Return hashes of paths, and of those remembered earlier, as text: eleven characters per path.

    Args:
        paths: relative to the folder of the data.
        earlier: what this function returned for other paths.
    """
    every = np.concatenate([hashes(paths), *map(read_hashes, earlier)])
    return b64encode(np.unique(every).tobytes()).decode()


def backbone_seen(record: Mapping[str, Any]) -> str:
    """Return what the record of an extractor remembers of the images that its backbone was trained on."""
    trained = record.get("regime", "frozen") != "frozen"
    return str(record.get(BACKBONE) or (record.get("fitted_on", "") if trained else ""))


def learned_classes(record: Mapping[str, Any]) -> bool:
    """Return whether a backbone was trained on labels, by the record of its extractor: images of one are then alike.

    A student has learned the embeddings of its teacher, not labels.
    """
    return record.get("regime", "frozen") not in UNLABELED or bool(record.get(BACKBONE))


def fine_tuned(metadata: Mapping[str, Any]) -> bool:
    """Return whether the metadata of embeddings say that their backbone was trained on labels."""
    return metadata.get(FINE_TUNED) is True


def seen_by_backbone(held_out: Mapping[str, Collection[str]], remembered: str) -> list[str]:
    """Return a line per split with images that the backbone was trained on: what is measured on them says too much.

    It is no more than a line, since images of other data may have the same paths.

    Args:
        held_out: split -> paths.
        remembered: what :func:`backbone_seen` returned.
    """
    counts = {split: count_seen(paths, remembered) for split, paths in held_out.items()}
    return [
        f"{seen} of the {len(held_out[split])} images of {split} have paths that the backbone was trained on; "
        "if they are the same images, give the splits of that fit as `splits`"
        for split, seen in counts.items()
        if seen
    ]


def count_seen(paths: Iterable[str], remembered: str) -> int:
    """Return how many of the paths are among those that :func:`remember_paths` was given.

    Raises:
        ValueError: ``remembered`` is not a text of that function.
    """
    return len(np.intersect1d(hashes(paths), read_hashes(remembered)))


def check_unseen(held_out: Mapping[str, Collection[str]], remembered: str, by_backbone: str = "") -> None:
    """Raise if images to select or report on are among those that a trained head was fitted on.

    If the backbone alone was trained on some, it is said.

    Args:
        held_out: split -> paths.
        remembered: text of :func:`remember_paths` that is stored with the head.
        by_backbone: that of the backbone.

    Raises:
        UserError: some are; with their number and split.
    """
    for split, paths in held_out.items():
        if seen := count_seen(paths, remembered):
            raise UserError(
                f"{seen} of the {len(paths)} images of {split} were used to fit the head to start from; give the "
                'splits that it was fitted with as `splits`, or start from a new head with `head="none"`'
            )
    for line in seen_by_backbone(held_out, by_backbone):
        log.warning(line)


def hashes(paths: Iterable[str]) -> NDArray[np.int64]:
    """Return the first 8 bytes of each path's BLAKE2b hash."""
    return np.array(
        [int.from_bytes(blake2b(path.encode(), digest_size=8).digest(), "little", signed=True) for path in paths],
        dtype="<i8",
    )


def read_hashes(remembered: str) -> NDArray[np.int64]:
    """Return the hashes in a text."""
    return np.frombuffer(b64decode(remembered, validate=True), dtype="<i8")
