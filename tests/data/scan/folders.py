"""Folders of images to scan, and what was found in them."""

from pathlib import Path

from tests import image_corpus
from tests.image_corpus import encode, photo
from transferkit.data.scan import Report


def put(path: Path, seed: int | None = None, size: int = 40) -> Path:
    """A small PNG, different for every path, or for every seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(photo(size, size, seed=hash_of(str(path)) if seed is None else seed), "PNG"))
    return path


def hash_of(text: str) -> int:
    return int.from_bytes(text.encode()[-16:], "big")


def classes(root: Path, count: int = 2) -> Path:
    for split in ("train", "val"):
        for label in ("a", "b"):
            for number in range(count):
                put(root / split / label / f"{number}.png")
    return root


def found(report: Report) -> dict[str, list[str]]:
    """Kind -> paths."""
    return {kind: [finding.path for finding in findings] for kind, findings in report.by_kind().items()}


def data_of(name: str) -> bytes:
    return next(case.data for case in image_corpus.corpus() if case.name == name)
