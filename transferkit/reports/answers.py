"""When to trust a prediction: calibrated probability, set of classes, distance from the training images, abstention."""

import json
import math
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
import torch
from torch import Tensor

from transferkit.errors import UserError
from transferkit.extractor.calibration import DISTANCES, Calibration, Distance, Sets
from transferkit.reports.predictions import Columns
from transferkit.similarity.selective import fewest_rows

LEVEL = 0.95
"""Probability of the guarantee of ``reject``."""
BATCH = 4096
"""Rows at once, which bounds the memory."""


@dataclass(frozen=True)
class Answering:
    """What predictions say beside the class.

    Attributes:
        coverage: add to each image a set of classes that contains the true one with this probability, such as 0.9.
        sets: lac: the smallest sets on average; aps: larger where an image is harder.
        reject: do not answer unless sure: at most this share of the answers is wrong, such as 0.05.
        unlike: distance from the training images that tells which images are unlike them.
        false_alarm: share of images like those of val that may be called unlike.

    Raises:
        UserError: a share is not in (0, 1), a word is unknown, or ``sets`` is given without ``coverage``.
    """

    coverage: float | None = None
    sets: Sets = "lac"
    reject: float | None = None
    unlike: Literal[Distance, "none"] = "mahalanobis"
    false_alarm: float = 0.05

    def __post_init__(self) -> None:
        for name in ("coverage", "reject", "false_alarm"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise UserError(f"`{name}` is {value}; give a number between 0 and 1")
        for name, words in (("sets", ("lac", "aps")), ("unlike", (*DISTANCES, "none"))):
            if getattr(self, name) not in words:
                raise UserError(f"`{name}` is {getattr(self, name)!r}; give {', '.join(words)}")
        if self.coverage is None and self.sets != Answering.sets:
            raise UserError(f"`sets={self.sets}` needs `coverage`, such as `coverage=0.9`")

    @property
    def asked(self) -> str | None:
        """The name of what was asked for and needs a calibration, if anything was."""
        return "coverage" if self.coverage is not None else "reject" if self.reject is not None else None

    def require(self, calibration: Calibration | None) -> None:
        """Raise if what was asked for cannot be given.

        Raises:
            UserError: the classifier is not calibrated.
        """
        if self.asked and calibration is None:
            raise UserError(
                f"`{self.asked}` needs a calibrated classifier; test this one first, on data with a val split"
            )


@dataclass(frozen=True)
class Answers:
    """The answers for N images.

    Attributes:
        probability: `(N,)` calibrated probability of the predicted class.
        sets: `(N, K)` bool, the classes that fit; None if not asked for.
        answered: `(N,)` bool, whether the classifier is sure enough; None if not asked for.
        distances: `(N,)` each, from the training images; empty if not asked for or unknown.
        unlike: `(N,)` bool, whether that distance is too large; None without distances.
        remarks: what the numbers mean, a sentence each.
    """

    probability: Tensor
    sets: Tensor | None
    answered: Tensor | None
    distances: dict[Distance, Tensor]
    unlike: Tensor | None
    remarks: list[str]


def answer(calibration: Calibration, probability: Tensor, inner: Tensor | None, answering: Answering) -> Answers:
    """Judge predictions by what is known from val.

    Args:
        calibration: of the classifier.
        probability: `(N, K)`, uncalibrated.
        inner: `(N, D)` embeddings of the calibration's layer; None for no distances.
        answering: what to say.
    """
    confidences, members = [torch.empty(0, dtype=torch.float64)], []
    for rows in torch.split(probability, BATCH):
        calibrated = calibration.probability(rows.double().clamp(min=1e-300).log())
        confidences.append(calibrated.amax(1))
        if answering.coverage is not None:
            members.append(calibration.prediction_sets(calibrated, answering.coverage, answering.sets))
    confidence = torch.cat(confidences)
    count = f"{len(calibration):,} images of val"
    remarks = [f"calibrated on {count}: temperature {calibration.temperature:.3g}"]
    sets = answered = unlike = None
    distances: dict[Distance, Tensor] = {}
    if answering.coverage is not None:
        sets = torch.cat(members)
        size = float(sets.sum(1).double().mean())
        remarks.append(
            f"sets with the true class in {answering.coverage:.4g} of images like val: {size:.2f} classes each"
        )
        if math.isinf(calibration.set_threshold(answering.coverage, answering.sets)):
            remarks.append(f"each set has all classes: val has too few images ({len(calibration)}) for this coverage")
    if answering.reject is not None:
        threshold = calibration.answer_threshold(answering.reject, LEVEL)
        answered = confidence > threshold
        remarks.append(
            f"answered {int(answered.sum()):,} of {len(answered):,}: among answered images like val at most "
            f"{answering.reject:.4g} are wrong, with {LEVEL:.0%} confidence"
        )
        if len(calibration) < (least := fewest_rows(answering.reject, LEVEL)):
            remarks.append(f"this takes at least {least:,} images of val, there are {len(calibration):,}; add some")
        elif threshold == math.inf:
            wrong = 1 - float(calibration.tensors["correct"].double().mean())
            remarks.append(
                f"on val {wrong:.4g} are wrong in all, and not even among the surest images are so few; "
                "give a larger `reject`, or train a better classifier"
            )
    if inner is not None and answering.unlike != "none":
        distances = {kind: calibration.distance(inner, kind) for kind in DISTANCES}
        unlike = distances[answering.unlike] > calibration.distance_threshold(answering.unlike, answering.false_alarm)
        remarks.append(
            f"{int(unlike.sum()):,} of {len(unlike):,} are unlike the training images; of images like val at most "
            f"{answering.false_alarm:.4g} would be called so"
        )
    return Answers(confidence, sets, answered, distances, unlike, remarks)


def answer_columns(answers: Answers, names: list[str], preds: pa.Array, as_text: bool = False) -> Columns:
    """Return the columns of a table of predictions.

    Args:
        answers: for N images.
        names: K class names.
        preds: the predicted classes.
        as_text: write sets as JSON, for a CSV file.

    Returns:
        ``calibrated_probability``; then, as far as asked for, ``set``, ``set_size``, ``answer`` (null if the image is
        not answered), ``knn_distance``, ``mahalanobis_distance``, ``unlike_train``.
    """
    columns: Columns = {"calibrated_probability": pa.array(answers.probability.numpy(), pa.float32())}
    if answers.sets is not None:
        members = [[names[k] for k in row.nonzero().flatten().tolist()] for row in answers.sets]
        texts = [json.dumps(member, ensure_ascii=False) for member in members] if as_text else members
        columns["set"] = pa.array(texts, pa.string() if as_text else pa.list_(pa.string()))
        columns["set_size"] = pa.array(answers.sets.sum(1).numpy(), pa.int32())
    if answers.answered is not None:
        words = zip(preds.to_pylist(), answers.answered.tolist(), strict=True)
        columns["answer"] = pa.array([word if sure else None for word, sure in words], pa.string())
    for kind, distance in answers.distances.items():
        columns[f"{kind}_distance"] = pa.array(distance.numpy(), pa.float32())
    if answers.unlike is not None:
        columns["unlike_train"] = pa.array(answers.unlike.tolist(), pa.bool_())
    return columns
