"""The extractor: opened by name or from disk, and saved for other tools."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from transferkit import backbones
from transferkit.backbones.spelling import plain_name
from transferkit.errors import UserError
from transferkit.extractor import checkpoint_reader, explanation, pretrained
from transferkit.extractor.core import RECORD, ExtractorCore


class Extractor(ExtractorCore):
    """A backbone with its preprocessing and pooling, and a linear head with class names if it has been trained.

    ``Extractor.from_pretrained("resnet18").embed(["ant.jpg"])`` is a float32 (1, 512) tensor. For the arguments of
    the constructor see :class:`~transferkit.extractor.core.ExtractorCore`.
    """

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        weights: str = "DEFAULT",
        pooling: str | None = None,
        preprocessing: Mapping[str, Any] | None = None,
        architecture: Mapping[str, Any] | None = None,
        revision: str | None = None,
    ) -> "Extractor":
        """Open an extractor by name or from disk.

        Args:
            source: torchvision name (``resnet18``), Hugging Face id or local directory, a directory
                written by :meth:`save_pretrained`, or a transferkit checkpoint (``.ckpt``).
            weights: ``DEFAULT``, ``none`` (random) or a path; a checkpoint or export has its own.
            pooling: ``None`` is the source's own.
            preprocessing: fields of :class:`Preprocessing` to override, such as ``{"image_size": 160}``; a
                directory without ``preprocessor_config.json`` needs size, mean and std.
            architecture: changes to the architecture, for random weights only.
            revision: branch, tag or commit of a hub repository; ``owner/model@REVISION`` says the same.

        Raises:
            UserError: the name is unknown, files cannot be used, or a download needs a network.
        """
        source = plain_name(str(source))
        path = Path(source)
        if architecture and (path.suffix == ".ckpt" or (path / RECORD).is_file()):
            raise UserError(f"{path} has its own architecture; leave out `architecture`")
        if revision and (path.suffix == ".ckpt" or path.exists()):
            raise UserError(f"{path} is on this machine, without revisions; leave out `revision`")
        if path.suffix == ".ckpt":
            return cls(**checkpoint_reader.read(path, weights, pooling, preprocessing or {}, cls.from_pretrained))
        if (path / RECORD).is_file():
            return cls(**pretrained.read(path, weights, pooling, preprocessing or {}))
        return cls(backbones.build(source, weights, pooling, dict(architecture or {}), preprocessing, revision))

    def explain(self, images: Iterable[Any], class_name: str | None = None) -> Iterator[explanation.Explanation]:
        """Yield what the network looked at, per image; see :func:`~transferkit.extractor.explanation.explain`."""
        return explanation.explain(self, images, class_name)

    def save_pretrained(self, path: str | Path, overwrite: bool = False) -> None:
        """Write a directory that transformers or torchvision, and transferkit, load.

        Files: ``config.json``, ``model.safetensors``, ``preprocessor_config.json``, ``transferkit.json``,
        ``README.md`` (the model card), and ``head.safetensors`` if the library's own classifier cannot hold the head.

        Args:
            path: the directory.
            overwrite: replace an earlier export.

        Raises:
            UserError: the directory exists and ``overwrite`` is false, it holds something else than an
                export, or it cannot be written.
        """
        pretrained.write(self, Path(path), overwrite)
