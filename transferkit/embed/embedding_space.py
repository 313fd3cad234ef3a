"""The space that embeddings lie in: all that their values depend on besides the images."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from typing import Any

FORMAT = 1  # raise it when the same fields come to give other numbers
UNKNOWN = "unknown"  # a field that an earlier version did not record

# Values of a backbone's architecture that its outputs do not depend on, or that the tensors' shapes tell as well.
TOLD_ELSEWHERE = {"transformers_version", "architectures", "_name_or_path", "dtype", "torch_dtype"}
TOLD_ELSEWHERE |= {"id2label", "label2id", "num_labels", "problem_type"}
TOLD_BY_TENSORS = {"num_classes", "image_size"}  # of torchvision's builders


@dataclass(frozen=True)
class EmbeddingSpace:
    """What two tables, or a table and an extractor, must share for their embeddings to be compared.

    The feature cache, interrupted runs of ``embed``, indexes, evaluated tables, cells of a benchmark and
    the classifiers of probes all compare this. Every table's metadata holds each field under its name.

    Attributes:
        weights_sha256: over the backbone's tensors.
        architecture: what equal tensors are used by: see :func:`architecture_of`.
        preprocessing: image to pixels, as plain types.
        pooling: how features become one embedding.
        layer: an earlier stage, or ``None`` for the end.
        features: ``pooled``, ``tokens`` or ``map``.
        normalize: whether embeddings have length 1.
        precision: of the forward pass: ``32``, ``bf16``, or what the Trainer calls it, such as ``bf16-mixed``.
        dtype: of the computation.
        engine: what runs the network: ``torch``.
        device: its class, such as ``cpu`` or ``cuda``. In float32 it makes no difference beyond rounding (TF32
            is switched off), so that an index made on a GPU is searched on a CPU; below that it does.
        space_format: of the arithmetic; see ``FORMAT``.
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

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> "EmbeddingSpace":
        """Read the space from the metadata of a table; what an earlier version did not record is unknown."""
        known = {field.name: metadata.get(field.name) for field in fields(cls)}
        values: dict[str, Any] = {name: UNKNOWN if value is None else value for name, value in known.items()}
        return cls(**{**values, "layer": metadata.get("layer")})  # here, None says something

    def to_metadata(self) -> dict[str, Any]:
        """Each field under its name, in plain types."""
        return asdict(self)

    @property
    def sha256(self) -> str:
        """The canonical hash: equal for equal spaces, whatever process or machine asks."""
        return sha256(json.dumps(self.compared(), sort_keys=True).encode()).hexdigest()

    def compared(self) -> dict[str, Any]:
        """The fields that decide; the device only where numbers differ by it beyond rounding."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))  # tuples and keys as they come back from a file
        if (self.precision, self.dtype) == ("32", "float32"):
            plain["device"] = UNKNOWN
        return plain

    def differences(self, other: "EmbeddingSpace") -> dict[str, tuple[Any, Any]]:
        """Name the fields in which two spaces differ, with both values; what one does not know is left out.

        Of a field with parts, such as the preprocessing, the first part that differs is named: ``preprocessing
        crop``. Parts of the preprocessing that one side lacks are unknown to it; of the architecture, where
        the libraries leave out defaults, they differ.
        """
        found: dict[str, tuple[Any, Any]] = {}
        mine, theirs = self.compared(), other.compared()
        for name, value in mine.items():
            given = theirs[name]
            if UNKNOWN in (value, given) or value == given:
                continue
            if not (isinstance(value, dict) and isinstance(given, dict)):
                found[name] = (value, given)
                continue
            parts = value.keys() & given.keys() if name == "preprocessing" else value.keys() | given.keys()
            differing = sorted(part for part in parts if value.get(part) != given.get(part))
            if differing:
                found[f"{name} {differing[0]}"] = (value.get(differing[0]), given.get(differing[0]))
        return found


def architecture_of(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Reduce a backbone's specification to what its outputs depend on.

    Two networks with equal tensors differ here if they have another activation, number of heads, epsilon of a
    norm or ``transform_input``. Where the model was found, and the names of its classes, make no difference.
    """
    source = spec.get("source")
    told = {"pooling", "preprocessing", "architecture"}  # the first two are fields of the space
    told |= {"name"} if source == "transformers" else set()  # there a place, elsewhere a network
    dropped = TOLD_BY_TENSORS if source == "torchvision" else TOLD_ELSEWHERE
    values = {key: value for key, value in spec.items() if key not in told}
    for key, value in flat(spec.get("architecture", {})).items():
        if not dropped & set(key.split(".")):
            values[key] = value
    plain: dict[str, Any] = json.loads(json.dumps(values))
    return plain


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values under dotted names, so that a difference is named by its part."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
