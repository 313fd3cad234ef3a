"""What embeds images for predictions: engine and precision, and for int8 the images that ranges are measured on."""

from dataclasses import dataclass, replace

from transferkit.data.image_table import ImageTable, open_images
from transferkit.embed.samples import quantization_of
from transferkit.extractor import Extractor
from transferkit.extractor.engine import Choice
from transferkit.extractor.forward import Precision
from transferkit.extractor.quantization import Quantization

OPTIONS = ("engine", "precision", "int8_images")  # of the command, by their names below


@dataclass(frozen=True)
class Predicting:
    """What embeds images for predictions.

    Args:
        engine: see :mod:`transferkit.extractor.engine`; by default torch, for int8 openvino.
        precision: ``32``, ``bf16`` or ``int8``.
        int8_images: folder or manifest of images that ranges are measured on; by default the images to predict.
        quantization: how the network becomes one in int8, by these images.
    """

    engine: Choice | None = None
    precision: Precision = "32"
    int8_images: str | None = None
    quantization: Quantization | None = None

    @property
    def is_usual(self) -> bool:
        """Whether PyTorch computes in float32."""
        return self.precision == "32" and self.engine in (None, "torch")

    @property
    def is_wanted(self) -> bool:
        """Whether something else was asked for by name."""
        return not self.is_usual and self.engine != "auto"

    def run(self, extractor: Extractor) -> Extractor:
        """Let an extractor embed with this, and return it.

        Raises:
            UserError: nothing can compute in int8.
        """
        usual: Choice = "openvino" if self.precision == "int8" else "torch"
        return extractor.run_with(self.engine or usual, self.precision, self.quantization)

    def chosen(self, extractor: Extractor, table: ImageTable) -> "Predicting":
        """Let an extractor embed a table with this; return it with the engine and the images that are used.

        Raises:
            UserError: nothing can compute in int8; its images cannot be opened.
        """
        self.run(extractor)
        found = replace(self, engine=extractor.engine)
        if self.precision == "int8":
            images = open_images(self.int8_images) if self.int8_images else table
            found = replace(found, quantization=quantization_of(extractor, images))
            found.run(extractor)
        return found
