"""Train/val/test splits and few-shot subsets: seeded, stratified, pure functions of paths and labels."""

import difflib
import hashlib
import itertools
import logging
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from transferkit.data.groups import (
    check_enough,
    classes_of_row,
    fold_units,
    have_several,
    in_one_unit,
    split_units,
    units_of,
)
from transferkit.data.image_table import ImageTable
from transferkit.data.targets import TARGETS, require_class
from transferkit.errors import UserError, listed
from transferkit.runtime.files import atomic_path

log = logging.getLogger(__name__)


def stratified_split(
    labels: Sequence[Hashable], fractions: Sequence[float], seed: int, keys: Sequence[str] | None = None
) -> list[int]:
    """Draw parts of the given fractions from every class; the rest is part 0.

    Within a class of n rows, part j gets ``round(n * fractions[j - 1])`` rows, at least one, and part 0 keeps at
    least one; a class too small for all parts fills the first ones. Rows are drawn in the order of a hash of seed
    and key, so the draw of one class does not depend on the others. The last part is drawn first: with one seed, a
    part of a given fraction is the same whichever parts are drawn before it, so a probe reports on the images that
    a fit validates or tests on.

    Args:
        labels: (N,) class of each row.
        fractions: share of parts 1, 2, ... in [0, 1); together below 1.
        seed: seed of the draw.
        keys: (N,) unique name of each row, such as its path; the draw then does not depend on row order.
            Row numbers if ``None``.

    Returns:
        (N,) part of each row, 0 to ``len(fractions)``.

    Raises:
        UserError: fractions out of range.
    """
    if any(not 0 <= fraction < 1 for fraction in fractions) or sum(fractions) >= 1:
        given = ", ".join(str(fraction) for fraction in fractions)
        raise UserError(f"split fractions {given} leave nothing to train on; each in [0, 1), together below 1")
    names = [str(row) for row in range(len(labels))] if keys is None else keys
    parts = [0] * len(labels)
    for rows in rows_by_class(labels, range(len(labels))).values():
        counts: list[int] = []
        for part, fraction in enumerate(fractions, start=1):
            left = len(rows) - sum(counts)
            later = sum(1 for other in fractions[part:] if other)  # parts that also need a row
            most = min(max(1, left - 1 - later), left - 1)
            counts.append(min(max(1, round(len(rows) * fraction)), most) if fraction else 0)
        drawn = iter(shuffled(rows, names, f"split/{seed}"))
        for part in range(len(fractions), 0, -1):
            for row in itertools.islice(drawn, counts[part - 1]):
                parts[row] = part
    return parts


HELD_OUT = 0.2
"""Share of unsplit images that a fit validates on and a probe reports on: the same images, with one seed."""


def assign_splits(table: ImageTable, val_fraction: float, test_fraction: float, seed: int) -> ImageTable:
    """Give every image a split: given ones are kept, the rest is train, from which val and test are drawn.

    Val is drawn only if the table has no val, and test only if it has no test; fractions are of the training images.
    A group stays together.

    Args:
        table: images, some or all without a split.
        val_fraction: in [0, 1); 0 draws none.
        test_fraction: in [0, 1); 0 draws none.
        seed: seed of the split, independent of the seed of training.

    Raises:
        UserError: fractions out of range; too few groups.
    """
    wanted = {"val": val_fraction, "test": test_fraction}
    drawn = [name for name in wanted if name not in table.splits]
    splits = [split or "train" for split in table.splits]
    train = [row for row, split in enumerate(splits) if split == "train"]
    inside = table.select(train)
    strata, source = TARGETS[table.kind].strata(inside.labels), table.source or table.root
    parts = draw_parts(strata, inside.paths, inside.groups, [wanted[name] for name in drawn], seed, source)
    for row, part in zip(train, parts, strict=True):
        splits[row] = ["train", *drawn][part]
    return replace(table, splits=tuple(splits))


def assign_fold(table: ImageTable, folds: int, fold: int, seed: int) -> ImageTable:
    """Make one of K folds val, and all other images train; a given test stays. Stratified, and groups stay together.

    A class that only one fold would have is kept in train by every fold, by its smallest group (or image), so that no
    fold is judged on a class that it has not seen.

    Args:
        table: images; given train and val are dealt together.
        folds: K, 2 or more.
        fold: from 0 to K - 1.
        seed: seed of the folds, the same for all of them.

    Raises:
        UserError: fewer groups, or images, than folds.
    """
    rows = [row for row, split in enumerate(table.splits) if split != "test"]
    inside = table.select(rows)
    strata, source = TARGETS[table.kind].strata(inside.labels), table.source or table.root
    dealt = deal_folds(strata, inside.paths, inside.groups, folds, seed, source, warn=fold == 0)
    splits = list(table.splits)
    for row, number in zip(rows, dealt, strict=True):
        splits[row] = "val" if number == fold else "train"
    return replace(table, splits=tuple(splits))


def deal_folds(
    labels: Sequence[Hashable],
    paths: Sequence[str],
    groups: Sequence[str | None] | None,
    folds: int,
    seed: int,
    source: str,
    warn: bool = True,
) -> list[int]:
    """Deal rows into K folds, stratified, groups together; see :func:`~transferkit.data.groups.fold_units`.

    Args:
        labels: (N,) class of each row.
        paths: (N,) unique.
        groups: (N,) name of each row's group or None; None without groups.
        folds: K, 2 or more.
        seed: seed of the folds.
        source: name of the data, for messages.
        warn: whether to warn of classes that are in one group.

    Returns:
        (N,) fold of each row, from 0; -1 for rows that every fold trains on.

    Raises:
        UserError: fewer groups, or images, than folds.
    """
    units = units_of(paths, groups)
    dealt = fold_units(labels, units, folds, seed)
    if len({number for number in dealt if number >= 0}) < folds:
        what = "images" if groups is None else "groups"
        count = len({unit for unit, number in zip(units, dealt, strict=True) if number >= 0})
        raise UserError(
            f"`folds` is {folds}, but {source} has {count} {what} to hold out (the only one of "
            f"a class stays in train); give fewer folds, or more {what}"
        )
    if warn and groups is not None and (single := in_one_unit(labels, units)):
        log.warning("all images of a class are in one group, and stay in train: %s", listed(single))
    return dealt


def check_folds(folds: int | None, fold: int | None, splits: str | None) -> None:
    """Validate the number of folds, and of one of them.

    Raises:
        UserError: out of range, or beside recorded splits.
    """
    if folds is None and fold is None:
        return
    if folds is None or folds < 2:
        raise UserError(f"`folds` is {folds}; give 2 or more")
    if fold is not None and not 0 <= fold < folds:
        raise UserError(f"`fold` is {fold}; give a number from 0 to {folds - 1}")
    if splits:
        raise UserError(f"`folds={folds}` draws splits, but `splits={splits!r}` gives some; leave one of them out")


def draw_parts(
    labels: Sequence[Hashable],
    paths: Sequence[str],
    groups: Sequence[str | None] | None,
    fractions: Sequence[float],
    seed: int,
    source: str,
) -> list[int]:
    """:func:`stratified_split` by paths; groups, if there are any, stay together.

    A class of which all images are in one group stays in part 0, with a warning.

    Args:
        labels: (N,) class of each row, or a frozenset of labels.
        paths: (N,) unique.
        groups: (N,) name of each row's group or None; None without groups.
        fractions: as of :func:`stratified_split`.
        seed: seed of the draw.
        source: name of the data, for messages.

    Returns:
        (N,) part of each row.

    Raises:
        UserError: fractions out of range; too few groups.
    """
    alone = stratified_split(labels, fractions, seed, paths)
    if (groups is None and not have_several(labels)) or not any(fractions):
        return alone
    units = units_of(paths, groups)
    check_enough(units, 1 + sum(map(bool, fractions)), source)
    parts = split_units(labels, units, fractions, seed)
    single = in_one_unit(labels, units)
    if not set(parts).issuperset(part for part, fraction in enumerate(fractions, 1) if fraction):
        raise UserError(
            f"the classes of {source} have too few groups to hold some out ({listed(single)} in one group each); "
            "give images of another group, or rename the column 'group' if it does not say what must stay together"
        )
    if single and groups is not None:
        log.warning("all images of a class are in one group, and stay in train: %s", listed(single))
    return parts


def few_shot(table: ImageTable, n_per_class: int, seed: int) -> tuple[ImageTable, str | None]:
    """Keep ``n_per_class`` random training images of each class, and all of val and test.

    With one seed, the images kept for a smaller n are among those kept for a larger one.

    Returns:
        The smaller table, and a warning that names the classes with fewer images, or ``None``.

    Raises:
        UserError: ``n_per_class`` below 1, or images without classes.
    """
    if table.kind == "number":
        require_class(table.kind, "`n_per_class`")
    if n_per_class < 1:
        raise UserError(f"`n_per_class` is {n_per_class}; keep at least 1 training image per class")
    train = [row for row, split in enumerate(table.splits) if split in ("train", None)]
    kept = sorted(set(range(len(table))) - set(train))
    short: list[str] = []
    for label, rows in rows_by_class(TARGETS[table.kind].strata(table.labels), train).items():
        kept += shuffled(rows, table.paths, f"few-shot/{seed}")[:n_per_class]
        if len(rows) < n_per_class:
            short.append(f"{label!r} has {len(rows)}")
    warning = f"fewer than `n_per_class={n_per_class}` training images: {', '.join(sorted(short))}; all are used"
    return table.select(kept), warning if short else None


def select_classes(table: ImageTable, classes: Iterable[str]) -> ImageTable:
    """Keep the images of some classes.

    Raises:
        UserError: the table does not have a class (the most similar one is named).
    """
    require_class(table.kind, "`classes`")
    wanted, known = set(classes), table.class_names
    for name in sorted(wanted - set(known)):
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
        hint = f"the nearest is {nearest[0]!r}" if nearest else "its images have no labels"
        raise UserError(f"no class {name!r} in {table.source or table.root!r}; {hint}")
    return table.select(row for row, label in enumerate(table.labels) if label in wanted)


def save_splits(table: ImageTable, path: str | Path) -> None:
    """Record the split of each image: Parquet with the columns path, label, split.

    Raises:
        UserError: the file cannot be written.
    """
    columns = {"path": table.paths, "label": table.labels, "split": table.splits}
    texts = {name: pa.array(values, pa.string()) for name, values in columns.items()}
    with atomic_path(path) as temporary:
        pq.write_table(pa.table(texts), temporary)


def load_splits(table: ImageTable, path: str | Path) -> ImageTable:
    """Return the recorded images of a table, and no others, with their recorded splits.

    Raises:
        UserError: unreadable file, or a recorded image is gone or has another label now.
    """
    split_of = recorded_splits(table.paths, table.labels, path, table.source)
    return replace(table.select(split_of), splits=tuple(split_of.values()))


def recorded_splits(
    paths: Sequence[str], labels: Sequence[str | None], file: str | Path, source: str
) -> dict[int, str | None]:
    """Return row -> split of the images that a file records, in row order.

    Args:
        paths: paths of the present images.
        labels: their labels.
        file: written by :func:`save_splits`.
        source: name of the data, for messages.

    Raises:
        UserError: unreadable file, or a recorded image is gone or has another label now.
    """
    try:
        recorded = pq.read_table(file, columns=["path", "label", "split"]).to_pydict()
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"cannot read the splits in {str(file)!r}; start a new run without them") from error
    row_of = {name: row for row, name in enumerate(paths)}
    for name, label in zip(recorded["path"], recorded["label"], strict=True):
        if name not in row_of or labels[row_of[name]] != label:
            raise UserError(
                f"{name!r} with label {label!r}, recorded in {str(file)!r}, is no longer in {source!r}; "
                "put it back or start a new run"
            )
    rows = {row_of[name]: split for name, split in zip(recorded["path"], recorded["split"], strict=True)}
    return dict(sorted(rows.items()))


def rows_by_class(labels: Sequence[Hashable], rows: Iterable[int]) -> dict[Hashable, list[int]]:
    """Return class -> its rows."""
    groups: dict[Hashable, list[int]] = {}
    for row in rows:
        for name in classes_of_row(labels[row]):
            groups.setdefault(name, []).append(row)
    return groups


def shuffled(rows: Iterable[int], keys: Sequence[str], salt: str) -> list[int]:
    """Return rows in the order of a hash of their keys: pseudorandom, and independent of library versions."""
    return sorted(rows, key=lambda row: hashlib.blake2b(f"{salt}/{keys[row]}".encode()).digest())
