"""The extractor that the options of a command name, on the device to use."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from transferkit.cli.dialect import Flat
from transferkit.errors import UserError

if TYPE_CHECKING:
    from transferkit.data.image_table import ImageTable
    from transferkit.extractor import Extractor
    from transferkit.extractor.quantization import Quantization

Accelerator = Literal["auto", "cpu", "gpu", "cuda", "mps"]
Engine = Literal["torch", "openvino", "onnx", "auto"]
Precision = Literal["32", "bf16", "int8"]


@dataclass(frozen=True)
class Network(Flat):
    """The extractor of a command.

    Args:
        extractor: torchvision name, Hugging Face id or directory, exported directory, checkpoint, or run directory.
        weights: DEFAULT, none (random), or a weights file.
        pooling: how features become one embedding; by default the extractor's own.
        revision: branch, tag or commit of a Hugging Face repository; by default its newest.
        engine: what runs the network: torch; openvino or onnx (ONNX Runtime), faster on some processors, from
            pip install 'transferkit[openvino]'; auto is openvino on a CPU if it is installed, otherwise torch. By
            default torch, or what an index was built with.
        precision: bf16 computes in bfloat16, faster if the processor supports it; int8 in 8 bits on a CPU, from
            pip install 'transferkit[int8]'; embeddings are float32. By default 32, or what an index was built with.
        int8_images: for precision int8, the images that ranges of values are measured on; by default the command's
            own. Embeddings by other images cannot be compared.
    """

    extractor: str | None = "resnet18"
    weights: str = "DEFAULT"
    pooling: str | None = None
    revision: str | None = None
    engine: Engine | None = None
    precision: Precision | None = None
    int8_images: str | None = None

    def open(
        self,
        accelerator: Accelerator = "auto",
        images: "ImageTable | None" = None,
        made: "Quantization | None" = None,
    ) -> "Extractor":
        """Open the extractor on the device to use, see :func:`open_extractor` and :meth:`run`."""
        return self.run(open_extractor(self.name, self.weights, self.pooling, accelerator), images, made)

    def run(
        self, extractor: "Extractor", images: "ImageTable | None" = None, made: "Quantization | None" = None
    ) -> "Extractor":
        """Choose engine and precision for an extractor that is on the device to use, and return it.

        Args:
            extractor: the extractor.
            images: images of the command, for int8.
            made: a network in int8 that is there already.
        """
        engine, precision = engine_and_precision(self.engine, self.precision)
        if precision == "int8":
            return run_in_int8(extractor, engine, self.int8_images or images, made)
        return extractor.run_with(engine, precision)

    def read(self, preprocessing: Mapping[str, Any] | None = None) -> "Extractor":
        """Open the extractor on the CPU, see :func:`read_extractor`."""
        return read_extractor(self.name, self.weights, self.pooling, preprocessing)

    @property
    def name(self) -> str:
        """The extractor at its revision.

        Raises:
            UserError: it has no revisions.
        """
        from transferkit.backbones import with_revision

        return with_revision(self.extractor or "resnet18", self.revision)


def engine_and_precision(engine: str | None, precision: str | None) -> tuple[Engine, Precision]:
    """Return engine and precision, torch and float32 by default; they may be read from a file.

    Raises:
        UserError: unknown ones.
    """
    for name, value, known in (("engine", engine, Engine), ("precision", precision, Precision)):
        if value is not None and value not in get_args(known):
            raise UserError(f"`{name}={value}` is unknown; give one of {', '.join(get_args(known))}")
    usual = "openvino" if precision == "int8" else "torch"
    return cast(Engine, engine or usual), cast(Precision, precision or "32")


def run_in_int8(
    extractor: "Extractor", engine: Engine, images: "str | ImageTable | None", made: "Quantization | None" = None
) -> "Extractor":
    """Let an extractor compute in int8, in ranges measured on images, and return it.

    Raises:
        UserError: nothing can compute in int8; the images cannot be opened.
    """
    from transferkit.data.image_table import open_images
    from transferkit.embed.samples import quantization_of

    extractor.run_with(engine, "int8")  # refused before images are read
    if images is None or made:
        return extractor.run_with(engine, "int8", made)
    table = open_images(images) if isinstance(images, str) else images
    return extractor.run_with(engine, "int8", quantization_of(extractor, table))


def open_extractor(
    name: str,
    weights: str = "DEFAULT",
    pooling: str | None = None,
    accelerator: Accelerator = "auto",
    preprocessing: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> "Extractor":
    """Open an extractor on the device to use.

    Args:
        name: torchvision name, Hugging Face id or directory, exported directory, checkpoint, or run directory.
        weights: ``DEFAULT``, ``none`` (random, the same each time) or a path.
        pooling: ``None`` is the extractor's own.
        accelerator: ``auto`` is a GPU if there is one.
        preprocessing: fields to override; ``None`` is the extractor's own.
        seed: of random weights.

    Raises:
        UserError: no such accelerator, or the extractor cannot be opened.
    """
    from transferkit.runtime.processes import find_device

    device = find_device(accelerator)
    return read_extractor(name, weights, pooling, preprocessing, seed).to(device)


def read_extractor(
    name: str,
    weights: str = "DEFAULT",
    pooling: str | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> "Extractor":
    """Open an extractor on the CPU; random weights are the same in every command.

    Args:
        name: torchvision name, Hugging Face id or directory, exported directory, checkpoint, or run directory.
        weights: ``DEFAULT``, ``none`` (random) or a path.
        pooling: ``None`` is the extractor's own.
        preprocessing: fields to override; ``None`` is the extractor's own.
        seed: of random weights.

    Raises:
        UserError: the extractor cannot be opened, see :meth:`Extractor.from_pretrained`.
    """
    import torch

    from transferkit.extractor import Extractor
    from transferkit.training.run_directory import within_run

    place = Path(name).expanduser()
    if name and (place / "checkpoints").is_dir():
        name = str(within_run(place))
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(seed)
        return Extractor.from_pretrained(name, weights, pooling, preprocessing)
