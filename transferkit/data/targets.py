"""What is to be predicted of an image: its class, several labels, or a number; and how each is written as a text.

A table holds one text per image, whatever it is: a class name; names, sorted, between bars (``cat|dog``, ``|`` for
none of them); or a number. The three kinds of target know what their texts mean; a table names its kind, and everything
else asks it.
"""

import math
import unicodedata
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from transferkit.errors import UserError, listed

Kind = Literal["class", "labels", "number"]

BAR = "|"
NAME_OF_NUMBER = "target"  # of the manifest's column, and of the one output of a network
STEPS = 1000  # of float32, in which a network computes, that the range of a number has at least
PARTS = 10  # parts of equal size of the range of a number, from each of which a split draws


class Targets(Protocol):
    """A kind of target.

    Attributes:
        kind: its name.
        column: the column of a manifest that holds it.
    """

    kind: Kind
    column: str

    def names(self, labels: Iterable[str | None]) -> list[str]:
        """Return the names of a network's outputs: the classes, sorted, or that of the number."""

    def counts(self, labels: Iterable[str | None]) -> dict[str, int]:
        """Return name -> number of images that have it."""

    def encode(self, labels: Sequence[str | None], names: Sequence[str]) -> Tensor:
        """Return what a network learns of each row; the text of an unknown label has no part in it."""

    def strata(self, labels: Sequence[str | None]) -> list[Hashable]:
        """Return what a split draws evenly: something per row; a frozenset where a row has several."""

    def check(self, labels: Sequence[str | None], source: str) -> None:
        """Raise UserError if nothing can be learned from the labels of all training images."""


class ClassTargets:
    """One class per image."""

    kind: Kind = "class"
    column = "label"

    def names(self, labels: Iterable[str | None]) -> list[str]:
        """Return the classes, sorted."""
        return sorted({label for label in labels if label is not None})

    def counts(self, labels: Iterable[str | None]) -> dict[str, int]:
        """Return class -> number of images."""
        found: dict[str, int] = {}
        for label in labels:
            if label is not None:
                found[label] = found.get(label, 0) + 1
        return found

    def encode(self, labels: Sequence[str | None], names: Sequence[str]) -> Tensor:
        """Return the class index of each row, int64 (N,); -1 for a label that is missing or unknown."""
        index = {one_form(name): position for position, name in enumerate(names)}
        target = {label: index.get(one_form(label), -1) for label in set(labels)}  # é has two forms on disk
        return torch.tensor([target[label] for label in labels], dtype=torch.long)

    def strata(self, labels: Sequence[str | None]) -> list[Hashable]:
        """Return the classes."""
        return list(labels)

    def check(self, labels: Sequence[str | None], source: str) -> None:
        """Raise for a single class.

        Raises:
            UserError: naming the class.
        """
        names = self.names(labels)
        if len(names) == 1:
            raise UserError(
                f"a single class, {listed(names)}, in {source}; training needs at least two: "
                "give the folder that contains the class folders"
            )


class LabelTargets:
    """Any number of labels per image."""

    kind: Kind = "labels"
    column = "label"

    def names(self, labels: Iterable[str | None]) -> list[str]:
        """Return the labels that any image has, sorted."""
        return sorted({name for label in set(labels) if label is not None for name in parts_of(label)})

    def counts(self, labels: Iterable[str | None]) -> dict[str, int]:
        """Return label -> number of images that have it."""
        return ClassTargets().counts(name for label in labels if label is not None for name in parts_of(label))

    def encode(self, labels: Sequence[str | None], names: Sequence[str]) -> Tensor:
        """Return 1 for each label of each row and 0 for the others, float32 (N, names); NaN where they are missing."""
        index = {one_form(name): position for position, name in enumerate(names)}
        target = torch.zeros(len(labels), len(names))
        for row, label in enumerate(labels):
            if label is None:
                target[row] = math.nan
            else:
                known = [index[one_form(name)] for name in parts_of(label) if one_form(name) in index]
                target[row, known] = 1
        return target

    def strata(self, labels: Sequence[str | None]) -> list[Hashable]:
        """Return the set of labels of each row."""
        return [frozenset(parts_of(label or BAR)) for label in labels]

    def check(self, labels: Sequence[str | None], source: str) -> None:
        """Raise for a label that every image has, or if every image has exactly one.

        Raises:
            UserError: naming the label.
        """
        counts, rows = self.counts(labels), sum(label is not None for label in labels)
        if not counts:
            raise UserError(f"no training image of {source} has any label; give some, such as a{BAR}b in its column")
        if all(label is None or len(parts_of(label)) == 1 for label in labels):
            raise UserError(
                f"`multilabel` is set, but every training image of {source} has exactly one label; leave it out"
            )
        if full := [name for name, count in counts.items() if count == rows]:
            raise UserError(
                f"every training image of {source} has the label {listed(full)}; add images without it, or remove it"
            )


class NumberTargets:
    """A number per image."""

    kind: Kind = "number"
    column = NAME_OF_NUMBER

    def names(self, labels: Iterable[str | None]) -> list[str]:
        """Return the name of the output."""
        return [NAME_OF_NUMBER]

    def counts(self, labels: Iterable[str | None]) -> dict[str, int]:
        """Return the number of images that have a number."""
        return {NAME_OF_NUMBER: sum(label is not None for label in labels)}

    def encode(self, labels: Sequence[str | None], names: Sequence[str]) -> Tensor:
        """Return the numbers, float32 (N, 1); NaN for what is not one."""
        values = [number_of(label) for label in labels]
        return torch.tensor([math.nan if value is None else value for value in values])[:, None]

    def strata(self, labels: Sequence[str | None]) -> list[Hashable]:
        """Return the part of the range of numbers that each row is in; parts have the same number of rows."""
        values = [number_of(label) or 0.0 for label in labels]
        order = sorted(range(len(values)), key=values.__getitem__)
        parts = min(PARTS, max(1, len(values) // 10))  # of ten rows or more: a tenth of it is a row
        part: list[Hashable] = [0] * len(values)
        for rank, row in enumerate(order):
            part[row] = rank * parts // len(values)
        return part

    def check(self, labels: Sequence[str | None], source: str) -> None:
        """Raise if all numbers are equal, or float32 does not hold them or their differences.

        Raises:
            UserError: naming the number, or the range.
        """
        different = sorted({value for label in labels if (value := number_of(label)) is not None})
        if len(different) < 2:
            raise UserError(
                f"all training images of {source} have the target {different[0]}; give images with other numbers"
            )
        least, most = different[0], different[-1]
        largest, limits = max(-least, most), torch.finfo(torch.float32)
        finest = max(limits.tiny / limits.eps, STEPS * limits.eps * largest)
        if largest > limits.max or most - least < finest:
            raise UserError(
                f"the targets of {source} range from {least} to {most}, more or less than float32 can tell; "
                "give them in another unit, or subtract the lowest"
            )


TARGETS: Mapping[Kind, Targets] = {"class": ClassTargets(), "labels": LabelTargets(), "number": NumberTargets()}


def parts_of(label: str) -> tuple[str, ...]:
    """Return the names between the bars of a text, sorted.

    >>> parts_of("dog|cat"), parts_of("|")
    (('cat', 'dog'), ())
    """
    return tuple(sorted({name for part in label.split(BAR) if (name := part.strip())}))


def check_bars(names: Collection[str], source: str) -> None:
    """Raise if classes look like several labels each: their parts are other classes, or shared by several.

    Raises:
        UserError: naming some.
    """
    known = {name for name in names if BAR not in name}
    parts = {name: set(parts_of(name)) for name in names if BAR in name}
    known |= shared_parts(parts)
    several = sorted(name for name, own in parts.items() if len(own) > 1 and own & known)
    if several:
        raise UserError(
            f"labels of {source} look like several per image: {listed(several)}; add `multilabel=True`, or "
            f"rename these classes without {BAR}"
        )


def shared_parts(names: Iterable[str]) -> set[str]:
    """Return the parts that two or more texts have in common."""
    seen: set[str] = set()
    shared: set[str] = set()
    for name in names:
        parts = set(parts_of(name))
        shared |= seen & parts
        seen |= parts
    return shared


def joined_labels(names: Iterable[str]) -> str:
    """Return names as one text.

    >>> joined_labels(["dog", "cat"]), joined_labels([])
    ('cat|dog', '|')
    """
    return BAR.join(parts_of(BAR.join(names))) or BAR


def number_of(label: str | None) -> float | None:
    """Return a text as a finite number; None if it is not one.

    >>> number_of("2.50"), number_of("nan"), number_of("ants")
    (2.5, None, None)
    """
    try:
        value = float(label or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def one_form(label: str | None) -> str | None:
    """Return a label in Unicode's composed form: file systems and editors store the same letters in two ways."""
    return label if label is None or label.isascii() else unicodedata.normalize("NFC", label)


WORDS: Mapping[Kind, str] = {
    "class": "one class per image",
    "labels": "several labels per image",
    "number": "a number per image",
}


def require_class(kind: Kind, what: str) -> None:
    """Raise if the targets are not classes.

    Args:
        kind: of the data, or of a classifier.
        what: the subject of the message, such as ``an audit``.

    Raises:
        UserError: the kind, and what to give.
    """
    if kind != "class":
        raise UserError(f"{what} needs one class per image, not {WORDS[kind]}; give data with classes")


def check_kind(kind: Kind, multilabel: bool, source: str) -> None:
    """Raise if data to train on does not have what ``multilabel`` asks for.

    Raises:
        UserError: it has one class, or a number, per image.
    """
    if multilabel and kind != "labels":
        raise UserError(
            f"`multilabel` needs a manifest whose column label holds cat|dog or lists, but {source} has {WORDS[kind]}; "
            "leave it out"
        )


def check_same_kind(kind: Kind, trained: Kind, source: str) -> None:
    """Raise if data to evaluate on has other targets than what was trained.

    Raises:
        UserError: naming both.
    """
    if kind != trained:
        remedy = "add `multilabel=True`" if trained == "labels" else f"give data with {WORDS[trained]}"
        raise UserError(f"{source} has {WORDS[kind]}, the checkpoint was trained on {WORDS[trained]}; {remedy}")
