"""Which rows a probe fits, selects and reports on, and which data it cannot use."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from transferkit.data.embeddings import Embeddings
from transferkit.data.splits import stratified_split
from transferkit.errors import UserError, listed

LONGEST = 1e15
"""Squares of longer embeddings, summed over rows, can leave float32."""


@dataclass(frozen=True)
class Parts:
    """Rows of a table by what they are used for, as row numbers `(n,)` int64 in the order of their paths.

    Attributes:
        train: fitted in the sweep; every class of `class_names[:known]` is among them.
        val: choose standardisation, C and temperature.
        test: reported.
        target: `(N,)` int64, each row's place in `class_names`; -1 without label.
        class_names: first the classes of `train`, sorted, then those it lacks, sorted.
        known: how many classes `train` has.
        origin: where the parts come from, for the record.
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


def divide(embeddings: Embeddings, *, val_fraction: float, test_fraction: float, seed: int) -> Parts:
    """Divide a table by its splits, drawing what is missing, so that nothing is selected on what is reported.

    - train, val and test given: as given.
    - train and test: val is drawn from train, `val_fraction` of each class.
    - train and val: val is the test, and another val is drawn from train.
    - no splits: test is drawn, `test_fraction` of each class, then val from the rest.

    The draw depends on paths, labels and seed, not on row order; a class of one row stays in train.

    Raises:
        UserError: NaN or huge numbers, no labels, a part that is empty, fewer than two classes, more classes than
            rows to train on, or all embeddings equal.
    """
    check_values(embeddings)
    rows = sorted(range(len(embeddings)), key=lambda row: embeddings.paths[row])
    unlabelled = [row for row in rows if embeddings.labels[row] is None]
    rows = [row for row in rows if embeddings.labels[row] is not None]
    warnings = [f"{len(unlabelled)} rows have no label and were left out"] if unlabelled else []
    labels: dict[int, str] = {row: str(embeddings.labels[row]) for row in rows}
    if not rows:
        raise UserError(
            f"none of the {len(embeddings)} rows has a label; embed class folders, or a manifest with a column 'label'"
        )
    given = {embeddings.splits[row] for row in rows}
    part = {row: embeddings.splits[row] or "train" for row in rows}
    origin: dict[str, str | int | float | None] = {"source": "given", "seed": None}
    if None in given and len(given) > 1:
        loose = next(row for row in rows if embeddings.splits[row] is None)
        raise UserError(f"{embeddings.paths[loose]} has no split but others have; give all of them one or none")
    if not {"train", "val", "test"} <= given:
        origin = {"source": "drawn", "seed": seed, "val_fraction": val_fraction}
        if given == {None}:
            origin["test_fraction"] = test_fraction
            draw(part, "test", test_fraction, embeddings.paths, labels, seed)
        elif "val" in given and "test" not in given:
            origin["source"] = "val is held out for the test, another one drawn from train"
            part = {row: "test" if name == "val" else name for row, name in part.items()}
        else:
            origin["source"] = "val drawn from train"
        if "train" in part.values() and "test" in part.values():
            draw(part, "val", val_fraction, embeddings.paths, labels, seed)
    train, val, test = ([row for row in rows if part[row] == name] for name in ("train", "val", "test"))
    for name, members in (("train", train), ("val", val), ("test", test)):
        if not members:
            raise UserError(
                f"no labelled rows for {name} ({len(train)} train, {len(val)} val, {len(test)} test); give "
                "train and test images of each class, or at least 3 images a class without splits"
            )
    names, known = order_classes([labels[row] for row in train], [labels[row] for row in rows])
    if len(names) > len(train):
        raise UserError(f"{len(names)} classes but {len(train)} rows to train on; give at least one row a class")
    if known < 2:
        raise UserError(f"train has one class, {names[0]!r}; a classifier needs at least two")
    place = {name: number for number, name in enumerate(names)}
    target = [place[labels[row]] if row in labels else -1 for row in range(len(embeddings))]
    parts = Parts(
        train=torch.tensor(train),
        val=torch.tensor(val),
        test=torch.tensor(test),
        target=torch.tensor(target),
        class_names=names,
        known=known,
        origin=origin,
        warnings=warnings,
    )
    warnings += class_warnings(parts) + feature_warnings(embeddings.embedding[parts.train])
    return parts


def draw(
    part: dict[int, str], name: str, fraction: float, paths: Sequence[str], labels: dict[int, str], seed: int
) -> None:
    """Move a stratified fraction of the training rows to another part, in place."""
    train = [row for row in part if part[row] == "train"]
    chosen = stratified_split([labels[row] for row in train], [fraction], seed, [paths[row] for row in train])
    part.update({row: name for row, drawn in zip(train, chosen, strict=True) if drawn})


def order_classes(train: Sequence[str], every: Sequence[str]) -> tuple[tuple[str, ...], int]:
    """Class names, those of train first, each part sorted, and how many train has."""
    known = sorted(set(train))
    return (*known, *sorted(set(every) - set(train))), len(known)


def check_values(embeddings: Embeddings) -> None:
    """Refuse a table without rows, or with NaN, infinity or embeddings whose squares overflow.

    Raises:
        UserError: as said; the first such row is named.
    """
    if len(embeddings) == 0:
        raise UserError("the embeddings table has no rows; embed some images first")
    # A sum is finite unless a value is not (or values are near the end of float32's range, checked after).
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
            "scale all of them down, or embed with --normalize"
        )


def class_warnings(parts: Parts) -> list[str]:
    """One line for the classes of one member, and one for those that train lacks."""
    lines = []
    rows = parts.target[parts.target >= 0].bincount(minlength=len(parts.class_names))
    single = [parts.class_names[number] for number in (rows == 1).nonzero().flatten().tolist()]
    if single:
        lines.append(f"classes with one member, which can only be in one split: {listed(single)}")
    for name, members in (("val", parts.val), ("test", parts.test)):
        unknown = parts.target[members]
        unknown = unknown[unknown >= parts.known]
        if len(unknown):
            lacking = [parts.class_names[number] for number in sorted(set(unknown.tolist()))]
            lines.append(
                f"{len(unknown)} {name} rows are of classes that train lacks and count as wrong: {listed(lacking)}"
            )
    return lines


def feature_warnings(features: Tensor) -> list[str]:
    """One line where features do not vary over the training rows.

    Raises:
        UserError: none varies.
    """
    constant = int((features.amax(0) == features.amin(0)).sum())
    if constant == features.shape[1]:
        raise UserError(f"all {len(features)} training embeddings are equal; check the extractor and its weights")
    return [f"{constant} of {features.shape[1]} features are constant over train"] if constant else []
