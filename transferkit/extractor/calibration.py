"""What a classifier's val images say about its predictions: probabilities that come true, and when not to answer."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from transferkit.errors import UserError, first_line
from transferkit.runtime.files import atomic_path
from transferkit.runtime.json_files import read_json, write_json
from transferkit.similarity.conformal import aps_scores, conformal_quantile, lac_scores
from transferkit.similarity.cosine import drawn_rows, unit_rows
from transferkit.similarity.out_of_distribution import (
    Gaussians,
    fit_gaussians,
    mahalanobis_distance,
    neighbor_distance,
)
from transferkit.similarity.selective import answer_threshold
from transferkit.similarity.temperature import TEMPERATURES, fit_temperature

if TYPE_CHECKING:
    from transferkit.backbones import Backbone

FORMAT = 1
JSON, TENSORS = "calibration.json", "calibration.safetensors"
NEIGHBOR = 5
"""The nearest training image whose distance counts."""
MOST_VAL, MOST_REFERENCES = 5_000, 2_000
"""Images of val that are looked at and training images that are kept, drawn by chance of more."""
COVERAGES, RISKS, FALSE_ALARMS = (0.8, 0.9, 0.95, 0.99), (0.01, 0.02, 0.05, 0.1), (0.01, 0.05, 0.1)
"""For which the JSON file states thresholds."""
Sets = Literal["lac", "aps"]
Distance = Literal["knn", "mahalanobis"]
SCORES = {"lac": lac_scores, "aps": aps_scores}
DISTANCES: tuple[Distance, ...] = ("knn", "mahalanobis")


@dataclass(frozen=True, eq=False)
class Calibration:
    """Temperature, conformal scores and distances of val images; references among the training images.

    Make one with :meth:`fit`. Without training images it has no distances.

    Attributes:
        class_names: K names.
        temperature: logits are divided by it.
        tensors: of the val images ``lac`` and ``aps`` (the scores of their own class), ``confidence``, ``correct``,
            ``knn`` and ``mahalanobis``, each `(n,)`; ``references`` `(R, D)` of unit length, ``whitening`` and
            ``centers``, see :class:`~transferkit.similarity.out_of_distribution.Gaussians`.
        layer: stage of the backbone whose embeddings the distances are between; None is the last.
        classifier: hash of the classifier that it belongs to, see
            :meth:`~transferkit.extractor.core.ExtractorCore.classifier_sha256`.
    """

    class_names: Sequence[str]
    temperature: float
    tensors: Mapping[str, Tensor]
    layer: str | None = None
    classifier: str = ""

    def __repr__(self) -> str:
        """Return the classes and the temperature."""
        return f"Calibration({len(self.class_names)} classes, temperature {self.temperature:.4g})"

    @classmethod
    def fit(
        cls,
        logits: Tensor,
        target: Tensor,
        class_names: Sequence[str],
        embedding: Tensor | None = None,
        train: Tensor | None = None,
        train_target: Tensor | None = None,
        layer: str | None = None,
        classifier: str = "",
    ) -> "Calibration":
        """Calibrate on val images, which the classifier was not fitted on.

        Where all of them are right, they do not determine a temperature, and it is 1.

        Args:
            logits: `(n, K)` of val images.
            target: `(n,)` int64, their class numbers.
            class_names: K names.
            embedding: `(n, D)` of the same images, for the distances.
            train: `(N, D)` embeddings of training images, at most 2,000 of which are kept.
            train_target: `(N,)` int64, their class numbers; -1 if unknown.
            layer: stage of the backbone that these embeddings are of; see :func:`inner_stage`.
            classifier: hash of the classifier.

        Raises:
            UserError: there is no image, or a number that is not finite.
        """
        if not len(logits) or not logits.isfinite().all():
            raise UserError("calibration needs images of val, with finite logits; add some to val, or fit again")
        found = fit_temperature(logits, target)
        temperature = found if found > 1.001 * TEMPERATURES[0] else 1.0
        probability = calibrated(logits, temperature)
        own = target[:, None]
        confidence, preds = probability.max(1)
        tensors = {name: score(probability).gather(1, own).squeeze(1) for name, score in SCORES.items()}
        tensors |= {"confidence": confidence, "correct": preds == target}
        plain = cls(list(class_names), temperature, tensors, layer, classifier)
        if embedding is None or train is None or not len(train):
            return plain
        labels = torch.zeros(len(train), dtype=torch.long) if train_target is None else train_target
        kept = drawn_rows(len(train), MOST_REFERENCES, 0)
        unit = unit_rows(train[kept], "train")
        known = replace(plain, tensors=tensors | {"references": unit, **fit_gaussians(unit, labels[kept])._asdict()})
        distances: dict[str, Tensor] = {kind: known.distance(embedding, kind) for kind in DISTANCES}
        return replace(known, tensors={**known.tensors, **distances})

    def __len__(self) -> int:
        return len(self.tensors["confidence"])

    @property
    def knows_train(self) -> bool:
        """Whether there are references, so that distances can be computed."""
        return "references" in self.tensors

    def probability(self, logits: Tensor) -> Tensor:
        """Return calibrated probabilities (Guo et al. 2017, arXiv:1706.04599, section 4.2).

        Args:
            logits: `(N, K)`; the logarithm of uncalibrated probabilities does as well.

        Returns:
            `(N, K)` float64, the most probable class unchanged.
        """
        return calibrated(logits, self.temperature)

    def prediction_sets(self, probability: Tensor, coverage: float = 0.9, sets: Sets = "lac") -> Tensor:
        """Return the classes of each image: the true one is among them with at least this probability.

        Args:
            probability: `(N, K)` of :meth:`probability`.
            coverage: in (0, 1), over images like those of val.
            sets: ``lac``, the smallest on average (empty where no class fits); or ``aps``, never empty.

        Returns:
            `(N, K)` bool.
        """
        scores: Tensor = SCORES[sets](probability)
        return scores <= self.set_threshold(coverage, sets)

    def set_threshold(self, coverage: float = 0.9, sets: Sets = "lac") -> float:
        """Return the score up to which a class is in an image's set; infinity if val is too small for the coverage."""
        return conformal_quantile(self.tensors[sets], coverage)

    def answer_threshold(self, risk: float = 0.05, level: float = 0.95) -> float:
        """Return the calibrated probability above which at most this share of answers is wrong.

        Args:
            risk: in (0, 1), over answered images like those of val.
            level: probability of the guarantee, over draws of val.

        Returns:
            -inf to answer always, inf to never answer.
        """
        return answer_threshold(self.tensors["confidence"], self.tensors["correct"].bool(), risk, level=level)

    def distance(self, embedding: Tensor, kind: Distance = "mahalanobis") -> Tensor:
        """Return how far images are from the training images, on embeddings of unit length.

        Args:
            embedding: `(N, D)` of :attr:`layer`.
            kind: ``knn`` is the distance to the fifth nearest one, ``mahalanobis`` that to the nearest class mean.

        Returns:
            `(N,)` float64.

        Raises:
            UserError: calibrated without training images, or an embedding is not finite.
        """
        if not self.knows_train:
            raise UserError("this calibration knows no training images; test on data with the splits train and val")
        if not len(embedding):
            return torch.empty(0, dtype=torch.float64)
        unit = unit_rows(embedding)
        if kind == "knn":
            return neighbor_distance(unit, self.tensors["references"], NEIGHBOR)
        return mahalanobis_distance(unit, Gaussians(self.tensors["whitening"], self.tensors["centers"]))

    def distance_threshold(self, kind: Distance = "mahalanobis", false_alarm: float = 0.05) -> float:
        """Return the distance that an image like those of val exceeds with at most this probability.

        It is the conformal quantile of the val images (Bates et al. 2023, arXiv:2104.08279).

        Args:
            kind: of the distance.
            false_alarm: in (0, 1).

        Returns:
            Infinity if val has too few images for so rare alarms.
        """
        return conformal_quantile(self.tensors[kind], 1 - false_alarm)

    def summary(self) -> dict[str, Any]:
        """Return what ``calibration.json`` holds: plain types, a threshold that does not exist as None."""
        content: dict[str, Any] = {
            "format": FORMAT,
            "classifier": self.classifier,
            "class_names": list(self.class_names),
            "temperature": self.temperature,
            "val_images": len(self),
            "layer": self.layer,
            "lac": {str(c): finite(self.set_threshold(c, "lac")) for c in COVERAGES},
            "aps": {str(c): finite(self.set_threshold(c, "aps")) for c in COVERAGES},
            "answer_above": {str(risk): finite(self.answer_threshold(risk)) for risk in RISKS},
        }
        if self.knows_train:
            far = {kind: {str(f): finite(self.distance_threshold(kind, f)) for f in FALSE_ALARMS} for kind in DISTANCES}
            content |= {"unlike_train_above": far, "references": len(self.tensors["references"]), "neighbor": NEIGHBOR}
        return content

    def save(self, folder: str | Path) -> None:
        """Write ``calibration.json``, for people and other programs, and ``calibration.safetensors``.

        Raises:
            UserError: a file cannot be written.
        """
        folder = Path(folder)
        stored = {name: value.contiguous() for name, value in self.tensors.items()}
        with atomic_path(folder / TENSORS) as temporary:
            save_file(stored, temporary, {"classifier": self.classifier})
        write_json(folder / JSON, self.summary())

    @classmethod
    def load(cls, folder: str | Path) -> "Calibration | None":
        """Read what :meth:`save` wrote; None if there is none.

        Raises:
            UserError: the files are broken, do not belong together, or have a newer format.
        """
        path = Path(folder) / JSON
        if not path.is_file():
            return None
        try:
            content = read_json(path)
            if content["format"] != FORMAT:
                raise UserError(f"{path} has format {content['format']}, this version reads {FORMAT}; test again")
            with safe_open(path.with_name(TENSORS), "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not iterable itself
                if (file.metadata() or {}).get("classifier") != content["classifier"]:
                    raise ValueError(f"{TENSORS} is of another classifier")
            read = cls(
                [str(name) for name in content["class_names"]],
                float(content["temperature"]),
                tensors,
                None if content["layer"] is None else str(content["layer"]),
                str(content["classifier"]),
            )
            read.check(int(content["val_images"]))
        except (OSError, LookupError, TypeError, ValueError, SafetensorError) as error:
            raise UserError(f"{path} is broken ({type(error).__name__}: {first_line(error)}); test again") from error
        return read

    def check(self, rows: int) -> None:
        """Validate shapes and values.

        Args:
            rows: number of val images.

        Raises:
            ValueError: they do not belong together.
        """
        own = ["lac", "aps", "confidence", "correct", *(DISTANCES if self.knows_train else ())]
        if any(self.tensors[name].shape != (rows,) for name in own) or not rows:
            raise ValueError(f"not {rows} values of val")
        if not all(value.isfinite().all() for value in self.tensors.values()) or not 0 < self.temperature < math.inf:
            raise ValueError("a number is not finite")
        if self.knows_train:
            width = self.tensors["references"].shape[1]
            if self.tensors["whitening"].shape != (width, width) or self.tensors["centers"].shape[1] != width:
                raise ValueError("distances of different widths")


def calibrated(logits: Tensor, temperature: float) -> Tensor:
    """Return softmax(logits / temperature): (N, K) -> float64 (N, K)."""
    return (logits.double() / temperature).softmax(1)


def finite(value: float) -> float | None:
    """Return a number as JSON has it: -inf, which all exceed, as 0; inf, which none exceeds, as None."""
    return None if value == math.inf else max(value, 0.0)


def inner_stage(backbone: "Backbone") -> str | None:
    """Return the stage before the last, or None if there is only one.

    A classifier's last stage leaves out what does not tell its classes apart, and so what is strange about an image.
    """
    return backbone.stage_names[-2] if len(backbone.stage_names) > 1 else None
