"""The rows that a probe fits, selects and reports on, and the checks that they can be used."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from transferkit.data.embeddings import Embeddings
from transferkit.data.groups import check_whole
from transferkit.data.splits import draw_parts
from transferkit.data.targets import TARGETS, check_bars, require_class
from transferkit.errors import UserError, listed

LONGEST = 1e15
"""Squares of longer embeddings, summed over rows, can overflow float32."""


@dataclass(frozen=True)
class RowSplits:
    """Rows of a table by their use, as row numbers `(n,)` int64 in the order of their paths.

    Attributes:
        train: rows fitted in the sweep; every class of `class_names[:known]` is among them.
        val: rows to choose standardization, C and temperature on.
        test: rows to report on.
        target: `(N,)` int64, each row's index in `class_names`; -1 without label.
        class_names: first the classes of `train`, sorted, then those it lacks, sorted.
        known: number of classes in `train`.
        origin: where the splits come from, for the report.
        warnings: one line each.
    """

    train: Tensor
    val: Tensor
    test: Tensor
    target: Tensor
    class_names: tuple[str, ...]
    known: int
    origin: dict[str, str | int | float | None]
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Members:
    """Rows of a table by their use, in the order of their paths; see :class:`RowSplits`."""

    train: list[int]
    val: list[int]
    test: list[int]
    origin: dict[str, str | int | float | None]
    warnings: list[str]

    def counts(self) -> dict[str, Any]:
        """Return where the splits come from and their numbers of rows, for the report."""
        return {**self.origin, "train": len(self.train), "val": len(self.val), "test": len(self.test)}


def split_members(embeddings: Embeddings, *, val_fraction: float, test_fraction: float, seed: int) -> Members:
    """Split a table by its own splits and draw missing ones, so that no row serves both to select and to report.

    - train, val and test given: as given.
    - train and test: val is drawn from train, `val_fraction` of each class.
    - train and val: val becomes test, and another val is drawn from train.
    - no splits: test is drawn, `test_fraction` of each class, then val from the rest.

    The draw depends on paths, labels, groups and seed, not on row order; a class of one row stays in train. Rows of
    one group stay together.

    Raises:
        UserError: NaN or huge values, no labels, given splits that break a group, too few groups, or an empty split.
    """
    check_values(embeddings)
    rows = sorted(range(len(embeddings)), key=lambda row: embeddings.paths[row])
    unlabeled = [row for row in rows if embeddings.labels[row] is None]
    rows = [row for row in rows if embeddings.labels[row] is not None]
    warnings = [f"{len(unlabeled)} rows have no label and were left out"] if unlabeled else []
    labels: dict[int, str] = {row: str(embeddings.labels[row]) for row in rows}
    if not rows:
        raise UserError(
            f"none of the {len(embeddings)} rows has a label; embed class folders, or a manifest with a column "
            f"{TARGETS[embeddings.kind].column!r}"
        )
    given = {embeddings.splits[row] for row in rows}
    split_of = {row: embeddings.splits[row] or "train" for row in rows}
    origin: dict[str, str | int | float | None] = {"source": "given", "seed": None}
    if None in given and len(given) > 1:
        loose = next(row for row in rows if embeddings.splits[row] is None)
        raise UserError(f"{embeddings.paths[loose]} has no split but others do; give all of them a split, or none")
    if embeddings.groups is not None:
        check_whole([embeddings.groups[row] for row in rows], split_of.values(), "the embeddings")
    if not {"train", "val", "test"} <= given:
        origin = {"source": "drawn", "seed": seed, "val_fraction": val_fraction}
        if given == {None}:
            origin["test_fraction"] = test_fraction
            draw(split_of, "test", test_fraction, embeddings, labels, seed)
        elif "val" in given and "test" not in given:
            origin["source"] = "val is held out for the test, another one drawn from train"
            split_of = {row: "test" if name == "val" else name for row, name in split_of.items()}
        else:
            origin["source"] = "val drawn from train"
        if "train" in split_of.values() and "test" in split_of.values():
            draw(split_of, "val", val_fraction, embeddings, labels, seed)
    train, val, test = ([row for row in rows if split_of[row] == name] for name in ("train", "val", "test"))
    for name, members in (("train", train), ("val", val), ("test", test)):
        if not members:
            raise UserError(
                f"no labeled rows for {name} ({len(train)} train, {len(val)} val, {len(test)} test); give "
                "train and test images of each class, or at least 3 images per class without splits"
            )
    return Members(train, val, test, origin, warnings)


def split_rows(embeddings: Embeddings, *, val_fraction: float, test_fraction: float, seed: int) -> RowSplits:
    """Split a table of classes, as :func:`split_members` does.

    Raises:
        UserError: NaN or huge values, no labels, given splits that break a group, too few groups, an empty split, fewer
            than two classes, more classes than rows to train on, classes that look like several labels, or all
            embeddings equal.
    """
    require_class(embeddings.kind, "this probe")
    check_bars({label for label in embeddings.labels if label is not None}, "the embeddings")
    members = split_members(embeddings, val_fraction=val_fraction, test_fraction=test_fraction, seed=seed)
    train, val, test, warnings = members.train, members.val, members.test, members.warnings
    labels = {row: str(label) for row, label in enumerate(embeddings.labels) if label is not None}
    rows = sorted(labels, key=lambda row: embeddings.paths[row])
    names, known = order_classes([labels[row] for row in train], [labels[row] for row in rows])
    if len(names) > len(train):
        raise UserError(f"{len(names)} classes but {len(train)} rows to train on; give at least one row per class")
    if known < 2:
        raise UserError(f"train has one class, {names[0]!r}; a classifier needs at least two")
    index = {name: number for number, name in enumerate(names)}
    target = [index[labels[row]] if row in labels else -1 for row in range(len(embeddings))]
    splits = RowSplits(
        train=torch.tensor(train),
        val=torch.tensor(val),
        test=torch.tensor(test),
        target=torch.tensor(target),
        class_names=names,
        known=known,
        origin=members.origin,
        warnings=warnings,
    )
    warnings += class_warnings(splits) + feature_warnings(embeddings.embedding[splits.train])
    return splits


def draw(
    split_of: dict[int, str], name: str, fraction: float, embeddings: Embeddings, labels: dict[int, str], seed: int
) -> None:
    """Move a stratified fraction of the training rows to another split, in place; groups stay together."""
    train = [row for row in split_of if split_of[row] == "train"]
    groups = None if embeddings.groups is None else [embeddings.groups[row] for row in train]
    paths = [embeddings.paths[row] for row in train]
    strata = TARGETS[embeddings.kind].strata([labels[row] for row in train])
    chosen = draw_parts(strata, paths, groups, [fraction], seed, "the embeddings")
    split_of.update({row: name for row, drawn in zip(train, chosen, strict=True) if drawn})


def order_classes(train: Sequence[str], every: Sequence[str]) -> tuple[tuple[str, ...], int]:
    """Return class names, those of train first, both parts sorted, and the number of classes in train."""
    known = sorted(set(train))
    return (*known, *sorted(set(every) - set(train))), len(known)


def check_values(embeddings: Embeddings) -> None:
    """Raise if a table has no rows, or values that cannot be fitted.

    Raises:
        UserError: no rows; NaN, infinity or embeddings whose squares overflow, with the first such row named.
    """
    if len(embeddings) == 0:
        raise UserError("the embeddings table has no rows; embed some images first")
    # A sum is finite unless a value is not, or values are near the end of float32's range, which is checked next.
    suspects = (~embeddings.embedding.sum(1).isfinite()).nonzero().flatten().tolist()
    bad = [row for row in suspects if not embeddings.embedding[row].isfinite().all()]
    if bad:
        more = f" (and {len(bad) - 1} more rows)" if len(bad) > 1 else ""
        raise UserError(
            f"the embedding of {embeddings.paths[bad[0]]} holds NaN or infinity{more}; embed it again or leave it out"
        )
    long = (torch.linalg.vector_norm(embeddings.embedding, dim=1) > LONGEST).nonzero().flatten().tolist()
    if long:
        raise UserError(
            f"the embedding of {embeddings.paths[long[0]]} is longer than {LONGEST:g}, too long to fit on; "
            "scale all of them down, or embed with `normalize=True`"
        )


def class_warnings(splits: RowSplits) -> list[str]:
    """Warn of classes with a single row, and of those that train lacks, one line each."""
    lines = []
    rows = splits.target[splits.target >= 0].bincount(minlength=len(splits.class_names))
    single = [splits.class_names[number] for number in (rows == 1).nonzero().flatten().tolist()]
    if single:
        lines.append(f"classes with one row, which can only be in one split: {listed(single)}")
    for name, members in (("val", splits.val), ("test", splits.test)):
        unknown = splits.target[members]
        unknown = unknown[unknown >= splits.known]
        if len(unknown):
            lacking = [splits.class_names[number] for number in sorted(set(unknown.tolist()))]
            lines.append(
                f"{len(unknown)} {name} rows are of classes that train lacks and count as wrong: {listed(lacking)}"
            )
    return lines


def feature_warnings(features: Tensor) -> list[str]:
    """Warn of features that are constant over the training rows.

    Raises:
        UserError: all of them are.
    """
    constant = int((features.amax(0) == features.amin(0)).sum())
    if constant == features.shape[1]:
        raise UserError(f"all {len(features)} training embeddings are equal; check the extractor and its weights")
    return [f"{constant} of {features.shape[1]} features are constant over train"] if constant else []
