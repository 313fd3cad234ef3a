"""The space of embeddings: everything their values depend on besides the images."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from typing import Any

from transferkit.data import label_columns
from transferkit.data.fingerprint import fingerprint
from transferkit.data.image_table import ImageTable
from transferkit.data.seen import FINE_TUNED, learned_classes
from transferkit.extractor import Extractor
from transferkit.extractor.forward import Forward
from transferkit.runtime.versions import versions

FORMAT = 1  # raise it when the same fields give other numbers
UNKNOWN = "unknown"  # a field that an earlier version did not record

# Values of a backbone's architecture that its outputs do not depend on, or that the shapes of its tensors imply.
NO_EFFECT = {"transformers_version", "architectures", "_name_or_path", "dtype", "torch_dtype"}
NO_EFFECT |= {"id2label", "label2id", "num_labels", "problem_type"}
IN_SHAPES = {"num_classes", "image_size"}  # of torchvision's builders


@dataclass(frozen=True)
class EmbeddingSpace:
    """What two tables, or a table and an extractor, must share so that their embeddings can be compared.

    The feature cache, interrupted runs of ``embed``, indexes, evaluated tables, cells of a benchmark and
    the classifiers of probes compare it. The metadata of a table holds each field under its name.

    Attributes:
        weights_sha256: SHA-256 over the backbone's tensors.
        architecture: how the tensors are used, see :func:`architecture_of`.
        preprocessing: from image to pixels, as plain types.
        pooling: how features become one embedding.
        layer: an earlier stage, or ``None`` for the end.
        features: ``pooled``, ``tokens`` or ``map``; ``entering`` in the cache, see ``extractor/frozen_stages.py``.
        normalize: whether embeddings have length 1.
        precision: of the forward pass: ``32``, ``bf16``, or a name of Lightning's Trainer, such as ``bf16-mixed``.
        dtype: of the computation.
        engine: what runs the network: ``torch``, ``openvino`` or ``onnx``. In float32 engines differ by rounding only:
            then their embeddings can be compared, but are not cached for one another.
        device: its type, such as ``cpu`` or ``cuda``. In float32 devices differ by rounding only (TF32 is switched
            off), so an index made on a GPU can be searched on a CPU; in lower precision they differ by more.
        space_format: version of the arithmetic, see ``FORMAT``.
        quantization: identity of a network in int8: the float network, the content of the images that ranges were
            measured on, and the version of the arithmetic; ``None`` in other precisions.
    """

    weights_sha256: str
    architecture: Any
    preprocessing: Any
    pooling: str
    layer: str | None
    features: str
    normalize: bool | str
    precision: str
    dtype: str
    engine: str
    device: str
    space_format: int | str = FORMAT
    quantization: str | None = None

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> "EmbeddingSpace":
        """Read the space from the metadata of a table; fields that an earlier version did not record are unknown."""
        known = {field.name: metadata.get(field.name) for field in fields(cls)}
        values: dict[str, Any] = {name: UNKNOWN if value is None else value for name, value in known.items()}
        return cls(**{**values, **{name: metadata.get(name) for name in ("layer", "quantization")}})  # None is a value

    def to_metadata(self) -> dict[str, Any]:
        """Return each field under its name, in plain types."""
        return asdict(self)

    @property
    def sha256(self) -> str:
        """Hex SHA-256, equal for equal spaces on any machine."""
        return sha256(json.dumps(self.compared(), sort_keys=True).encode()).hexdigest()

    def compared(self) -> dict[str, Any]:
        """Return the fields that are compared; the device only where it changes more than rounding."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))  # as it comes back from a file
        if self.is_float32:
            plain["device"] = UNKNOWN
        if self.quantization is None:  # as in earlier versions, which had no int8
            del plain["quantization"]
        return plain

    @property
    def is_float32(self) -> bool:
        """Whether it is computed in full float32, in which devices and engines differ by rounding only."""
        return (self.precision, self.dtype) == ("32", "float32")

    def differences(self, other: "EmbeddingSpace") -> dict[str, tuple[Any, Any]]:
        """Return the fields in which two spaces differ, with both values; unknown fields are left out.

        Of a field with parts, such as the preprocessing, the first part that differs is named: ``preprocessing
        crop``. A part of the preprocessing that one side lacks is unknown; a part of the architecture that one side
        lacks is a difference, since the libraries leave out defaults.
        """
        found: dict[str, tuple[Any, Any]] = {}
        mine, theirs = self.compared(), other.compared()
        for name in mine | theirs:
            value, given = mine.get(name), theirs.get(name)
            if UNKNOWN in (value, given) or value == given:
                continue
            if name == "engine" and self.is_float32 and other.is_float32:
                continue
            if not (isinstance(value, dict) and isinstance(given, dict)):
                found[name] = (value, given)
                continue
            parts = value.keys() & given.keys() if name == "preprocessing" else value.keys() | given.keys()
            differing = sorted(part for part in parts if value.get(part) != given.get(part))
            if differing:
                found[f"{name} {differing[0]}"] = (value.get(differing[0]), given.get(differing[0]))
        return found


def space_of(extractor: Extractor, forward: Forward | None = None, precision: str | None = None) -> EmbeddingSpace:
    """Return the space of an extractor's embeddings.

    Args:
        extractor: the extractor, on the device to use.
        forward: what is kept of each image; by default the extractor's embedding.
        precision: without ``forward``, the precision of the computation by its name in Lightning's Trainer; by default
            the extractor's.
    """
    precision = precision or extractor.precision
    pooled: dict[str, Any] = {"pooling": extractor.pooling, "layer": None, "features": "pooled", "normalize": False}
    kept = forward.describe() if forward else {**pooled, "dtype": dtype_of(precision)}
    in_int8 = extractor.quantized() if precision == "int8" else None
    quantization = forward.quantization if forward else in_int8
    return EmbeddingSpace(
        weights_sha256=extractor.weights_sha256(),
        architecture=architecture_of(extractor.spec()),
        preprocessing=extractor.preprocessing.to_dict(),
        pooling=kept["pooling"],
        layer=kept["layer"],
        features=kept["features"],
        normalize=kept["normalize"],
        precision=forward.precision if forward else "32" if precision.startswith("32") else precision,
        dtype=kept["dtype"],
        engine=forward.engine if forward else extractor.engine,
        device=extractor.device.type,
        quantization=quantization.identity if quantization else None,
    )


def dtype_of(precision: str) -> str:
    """Return the dtype that a precision of Lightning's Trainer computes in: ``bfloat16`` for ``bf16-mixed``."""
    names = {"bf16": "bfloat16", "16": "float16", "32": "float32", "64": "float64"}
    return names.get(precision.split("-")[0], precision)


def describe(
    extractor: Extractor,
    table: ImageTable,
    augmentation: str = "none",
    forward: Forward | None = None,
    precision: str | None = None,
    stamps: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Return the metadata of an extractor's embeddings of a table: everything their values depend on.

    Args:
        extractor: the extractor.
        table: images in path order.
        augmentation: name of the random view, or ``none``.
        forward: what is kept of each image; by default the extractor's embedding.
        precision: see :func:`space_of`.
        stamps: stamps of the images, if they are known already.
    """
    space = space_of(extractor, forward, precision)
    shape = list(forward.shape) if forward else [extractor.embed_dim]
    return {
        **label_columns.version_of(table.kind),
        "extractor": extractor.name,
        **space.to_metadata(),
        "space": space.sha256,
        **({FINE_TUNED: True} if learned_classes(extractor.record) else {}),
        "embed_dim": math.prod(shape),
        "shape": shape,
        "augmentation": augmentation,
        "versions": versions(),
        "data_fingerprint": table.fingerprint() if stamps is None else fingerprint(table.paths, stamps),
    }


def architecture_of(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Reduce a backbone's specification to what its outputs depend on.

    Two networks with equal tensors differ here if their activation, number of heads, epsilon of a norm or
    ``transform_input`` differ. Where the model was found and the names of its classes make no difference.
    """
    source = spec.get("source")
    separate = {"pooling", "preprocessing", "architecture", "weights"}  # the first two are fields of the space
    separate |= {"name"} if source == "transformers" else set()  # there a place, elsewhere a network
    dropped = IN_SHAPES if source == "torchvision" else NO_EFFECT
    values = {key: value for key, value in spec.items() if key not in separate}
    for key, value in flat(spec.get("architecture", {})).items():
        if not dropped & set(key.split(".")):
            values[key] = value
    plain: dict[str, Any] = json.loads(json.dumps(values))
    return plain


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested values to dotted names, so that a difference is named by its part."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
