"""Groups of images (of a patient, a burst, a video, a place), dealt as a whole to the sides of a split, stratified."""

import hashlib
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence

from transferkit.data.label_splits import deal_labels
from transferkit.errors import UserError, listed

Classes = Mapping[Hashable, int]
"""Class -> number of images."""


def units_of(paths: Sequence[str], groups: Sequence[str | None] | None) -> list[str]:
    """Return for each image the name of what is dealt as a whole: its group, or the image itself."""
    if groups is None:
        return [f"image {path}" for path in paths]
    return [f"image {path}" if group is None else f"group {group}" for path, group in zip(paths, groups, strict=True)]


def deal(labels: Sequence[Hashable], units: Sequence[str], shares: Sequence[float], salt: str) -> list[int]:
    """Deal units to parts, so that each part gets about its share of every class.

    Large units come first, those of a similar size in the order of a hash. Each goes to the part where it reduces the
    sum over classes of (count - expected)² / expected the most; of equals to the one that lacks most rows. This is the
    greedy rule of scikit-learn's StratifiedGroupKFold, for shares that may differ. Rows of several labels are dealt by
    :func:`~transferkit.data.label_splits.deal_labels`.

    Args:
        labels: (N,) class of each row, or a frozenset of labels.
        units: (N,) name of each row's unit; the draw depends on it and not on the order of the rows.
        shares: expected share of each part, above 0, together 1.
        salt: of the hash.

    Returns:
        (N,) part of each row, from 0.
    """
    classes_of = count_classes(labels, units)
    if have_several(labels):
        dealt = deal_labels(classes_of, Counter(units), shares, lambda unit: digest(salt, unit))
        return [dealt[unit] for unit in units]
    total: Counter[Hashable] = Counter(labels)
    counts: list[Counter[Hashable]] = [Counter() for _ in shares]
    rows = [0] * len(shares)
    part_of: dict[str, int] = {}
    for unit in sorted(classes_of, key=lambda unit: (-classes_of[unit].total().bit_length(), digest(salt, unit))):
        classes = classes_of[unit]
        size = classes.total()

        def cost(part: int, classes: Classes = classes) -> tuple[float, float]:
            share, own = shares[part], counts[part]
            growth = sum(n * (2 * own[name] + n) / total[name] / share - 2 * n for name, n in classes.items())
            return round(growth, 9), rows[part] - share * len(labels)

        best = min(range(len(shares)), key=cost)
        part_of[unit] = best
        counts[best].update(classes)
        rows[best] += size
    return [part_of[unit] for unit in units]


def split_units(labels: Sequence[Hashable], units: Sequence[str], fractions: Sequence[float], seed: int) -> list[int]:
    """Draw parts of about the given fractions of every class, no unit in two of them; the rest is part 0.

    Part 0 has every class, and so has each drawn part as far as there are units. As in
    :func:`~transferkit.data.splits.stratified_split`, a part is the same whichever parts are drawn before it.

    Args:
        labels: (N,) class of each row.
        units: (N,) name of each row's unit.
        fractions: share of parts 1, 2, ... in [0, 1); together below 1.
        seed: seed of the draw.

    Returns:
        (N,) part of each row, 0 to ``len(fractions)``.
    """
    parts = [0] * len(labels)
    left = 1.0
    for part in range(len(fractions), 0, -1):
        fraction = fractions[part - 1]
        if not fraction:
            continue
        rows = [row for row, drawn in enumerate(parts) if not drawn]
        inner, names = [labels[row] for row in rows], [units[row] for row in rows]
        dealt = deal(inner, names, [1 - fraction / left, fraction / left], f"split/{seed}")
        later = sum(1 for other in fractions[: part - 1] if other)  # parts that are drawn afterwards and need a unit
        for row, drawn in zip(rows, complete(inner, names, dealt, 1 + later), strict=True):
            parts[row] = part * drawn
        left -= fraction
    return parts


def complete(labels: Sequence[Hashable], units: Sequence[str], parts: Sequence[int], spare: int) -> list[int]:
    """Move the smallest units between parts 0 and 1, so that part 0 has every class, and part 1 as far as possible.

    Args:
        labels: (N,) class of each row.
        units: (N,) name of each row's unit.
        parts: (N,) 0 or 1.
        spare: units of a class that part 0 keeps when one moves to part 1.
    """
    classes_of, members = count_classes(labels, units), units_by_class(labels, units)
    part_of = dict(zip(units, parts, strict=True))
    for inside in members.values():
        if all(part_of[unit] for unit in inside):
            part_of[inside[0]] = 0

    def can_leave(unit: str) -> bool:
        return all(sum(not part_of[other] for other in members[name]) > spare for name in classes_of[unit])

    for inside in members.values():
        if not any(part_of[unit] for unit in inside):
            movable = next(filter(can_leave, inside), None)
            if movable is not None:
                part_of[movable] = 1
    return [part_of[unit] for unit in units]


def fold_units(labels: Sequence[Hashable], units: Sequence[str], folds: int, seed: int) -> list[int]:
    """Deal units into folds, stratified; a class that one fold would hold alone leaves its smallest unit out of all.

    Args:
        labels: (N,) class of each row.
        units: (N,) name of each row's unit.
        folds: how many, 2 or more.
        seed: seed of the draw.

    Returns:
        (N,) fold of each row, from 0; -1 for rows that every fold trains on.
    """
    fold_of = dict(zip(units, deal(labels, units, [1 / folds] * folds, f"folds/{seed}"), strict=True))
    for inside in units_by_class(labels, units).values():
        if len({fold_of[unit] for unit in inside}) == 1:
            fold_of[inside[0]] = -1
    return [fold_of[unit] for unit in units]


def classes_of_row(label: Hashable) -> Iterable[Hashable]:
    """Return the classes of a row: its label, or all in its frozenset."""
    return label if isinstance(label, frozenset) else (label,)


def have_several(labels: Sequence[Hashable]) -> bool:
    """Return whether rows have any number of labels instead of one class."""
    return any(isinstance(label, frozenset) for label in labels)


def count_classes(labels: Sequence[Hashable], units: Sequence[str]) -> dict[str, Counter[Hashable]]:
    """Return unit -> class -> number of rows."""
    found: dict[str, Counter[Hashable]] = {}
    for label, unit in zip(labels, units, strict=True):
        found.setdefault(unit, Counter()).update(classes_of_row(label))
    return found


def units_by_class(labels: Sequence[Hashable], units: Sequence[str]) -> dict[Hashable, list[str]]:
    """Return class -> its units, the smallest first, classes sorted."""
    classes_of = count_classes(labels, units)
    names = {name for label in set(labels) for name in classes_of_row(label)}
    found: dict[Hashable, list[str]] = {name: [] for name in sorted(names, key=str)}
    for unit in sorted(classes_of, key=lambda unit: (classes_of[unit].total(), unit)):
        for name in classes_of[unit]:
            found[name].append(unit)
    return found


def digest(salt: str, unit: str) -> bytes:
    """Return the hash that orders units: pseudorandom, and independent of library versions."""
    return hashlib.blake2b(f"{salt}/{unit}".encode()).digest()


def straddling(groups: Sequence[str | None] | None, sides: Iterable[str | None]) -> dict[str, list[str]]:
    """Return group -> its sides, sorted, of the groups that are on two or more.

    Args:
        groups: name of each row's group, or None; None without groups.
        sides: side of each row; None for rows that are on no side.
    """
    found: dict[str, set[str]] = {}
    for group, side in zip(groups or (), sides, strict=False):
        if group is not None and side is not None:
            found.setdefault(group, set()).add(side)
    return {group: sorted(on) for group, on in sorted(found.items()) if len(on) > 1}


def check_whole(groups: Sequence[str | None] | None, splits: Iterable[str | None], source: str) -> None:
    """Raise if given splits break a group: what is measured would be what was trained on.

    Args:
        groups: name of each row's group, or None; None without groups.
        splits: given split of each row; None counts as train.
        source: name of the data, for the message.

    Raises:
        UserError: naming the groups and their splits.
    """
    broken = straddling(groups, (split or "train" for split in splits))
    if broken:
        named = [f"{group!r} in {' and '.join(sides)}" for group, sides in broken.items()]
        raise UserError(
            f"groups of {source} are in two splits: {listed(named, quote=False)}; move each to one split, or rename "
            "the column 'group' if it does not say what must stay together"
        )


def check_enough(units: Sequence[str], sides: int, source: str) -> None:
    """Raise if there are fewer groups than sides.

    Args:
        units: (N,) name of each row's unit.
        sides: parts or folds that each need a unit.
        source: name of the data, for the message.

    Raises:
        UserError: with both numbers.
    """
    count = len(set(units))
    if count < sides:
        raise UserError(
            f"{count} group{'s' * (count != 1)} of images in {source} cannot be shared among {sides} sides; "
            "give more groups, or rename the column 'group' if it does not say what must stay together"
        )


def in_one_unit(labels: Sequence[Hashable], units: Sequence[str]) -> list[str]:
    """Return the classes of two rows or more that are all in one unit, and so can only be on one side."""
    sizes = Counter(name for label in labels for name in classes_of_row(label))
    members = units_by_class(labels, units)
    return [str(name) for name, inside in members.items() if len(inside) == 1 and sizes[name] > 1]
