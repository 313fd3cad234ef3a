"""Faults of several files together: copies, classes and names, as pure functions of the table and the hashes."""

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby

from transferkit.data.groups import in_one_unit, straddling, units_of
from transferkit.data.image_table import ImageTable, check_trainable
from transferkit.data.scan.findings import Finding
from transferkit.data.targets import TARGETS
from transferkit.errors import UserError

UNSORTED = {"unlabelled", "unlabeled", "unknown", "unsorted", "to sort", "to label", "todo", "new", "inbox"}
IMBALANCE = 10  # ratio of training images in the largest class to those in a smaller one


def copies(table: ImageTable, sha256: Mapping[str, str]) -> Iterator[Finding]:
    """Yield images with the same bytes: with two labels, in two splits, or in one.

    Without a given split the copies of a labelled image may be drawn to both sides, and count as a leak, unless they
    are in one group. Copies with two labels count as a label conflict only, in any splits: one of them must be removed
    in any case.

    Args:
        table: the images.
        sha256: path -> hash of the bytes of each image that can be decoded.
    """
    units = units_of(table.paths, table.groups)
    rows = sorted((sha256[path], row) for row, path in enumerate(table.paths) if path in sha256)
    for _, group in groupby(rows, key=lambda pair: pair[0]):
        same = [row for _, row in group]
        if len(same) == 1:
            continue
        labels = {table.labels[row] for row in same} - {None}
        splits = {table.splits[row] for row in same}
        for row in same:
            other = next(table.paths[o] for o in same if o != row)
            if len(labels) > 1:
                unlike = next(o for o in same if table.labels[o] not in (None, table.labels[row]))
                own = "no label" if table.labels[row] is None else repr(table.labels[row])
                detail = f"{own}, but {table.paths[unlike]!r} is {table.labels[unlike]!r}"
                yield Finding("label-conflict", table.paths[row], detail)
            elif len(splits) > 1:
                apart = next(o for o in same if table.splits[o] != table.splits[row])
                yield Finding("leak", table.paths[row], f"the same as {table.paths[apart]!r}")
            elif splits == {None} and labels and len({units[row] for row in same}) > 1:
                yield Finding("leak", table.paths[row], f"the same as {other!r}, and no split is given")
            else:
                yield Finding("duplicate", table.paths[row], f"the same as {other!r}")


def groups(table: ImageTable) -> Iterator[Finding]:
    """Yield groups that given splits break, and classes whose images are all in one group."""
    if table.groups is None:
        return
    for group, sides in straddling(table.groups, table.splits).items():
        yield Finding("group-leak", ".", f"group {group!r} is in {' and '.join(sides)}")
    for name in in_one_unit(table.labels, units_of(table.paths, table.groups)):
        if name != str(None):
            yield Finding("one-group", ".", f"class {name!r}")


def classes(table: ImageTable) -> Iterator[Finding]:
    """Yield missing labels, imbalance, classes that differ only by case, and what else would stop a fit."""
    if not table.class_names:
        yield Finding("no-labels", ".")
        return
    yield from (Finding("empty-folder", name) for name in table.empty)
    try:
        check_trainable(replace(table, empty=()))
    except UserError as error:
        yield Finding("untrainable", ".", str(error))
    for names in alike(table.class_names):
        yield Finding("class-case", ".", f"classes {', '.join(map(ascii, names))}")
    if len(table.class_names) > 1:
        unsorted = (name for name in table.class_names if re.sub(r"[\W_]+", " ", caseless(name)).strip() in UNSORTED)
        yield from (Finding("unsorted", ".", f"class {name!r}") for name in unsorted)
    pairs = zip(table.labels, table.splits, strict=True)
    counts = TARGETS[table.kind].counts(label for label, split in pairs if split in ("train", None))
    most = max(counts.values(), default=0)
    for label, count in sorted(counts.items()):
        if count * IMBALANCE <= most:
            yield Finding("imbalance", ".", f"class {label!r} has {count} training images, the largest class {most}")


def names(paths: Iterable[str]) -> Iterator[Finding]:
    """Yield files or folders of one folder whose names differ only by case, or in their Unicode form.

    Args:
        paths: of files and folders; the parents of a path need not be among them.
    """
    parents = {"/".join(path.split("/")[:depth]) for path in paths for depth in range(1, path.count("/") + 2)}
    by_folder: dict[str, list[str]] = {}
    for path in sorted(parents):
        folder, _, name = path.rpartition("/")
        by_folder.setdefault(folder, []).append(name)
    for folder, inside in by_folder.items():
        for kind, groups in (("name-unicode", grouped(inside, nfc)), ("name-case", alike(inside))):
            for group in groups:
                for name in group:
                    other = next(o for o in group if o != name)
                    yield Finding(kind, f"{folder}/{name}" if folder else name, f"beside {other!a}")


def nfc(text: str) -> str:
    """Return a text with each letter and its accents as one character where Unicode has it (Unicode Annex 15)."""
    return unicodedata.normalize("NFC", text)


def caseless(text: str) -> str:
    """Return a text without case, width and outer or repeated spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def grouped(names: Iterable[str], key: Callable[[str], str]) -> list[list[str]]:
    """Return groups of at least two names with the same key."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(key(name), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def alike(names: Sequence[str]) -> list[list[str]]:
    """Return groups of at least two names that differ by case, width or spaces, not only in their Unicode form."""
    return [group for group in grouped(names, caseless) if len({nfc(name) for name in group}) > 1]


def same_letters(names: Iterable[str]) -> list[str]:
    """Return names that differ only in their Unicode form, each group as one text that shows the difference."""
    return [" and ".join(map(ascii, group)) for group in grouped(sorted(names), nfc)]
