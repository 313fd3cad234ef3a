"""Tables with several rows per path, such as those of regions, whose rows a probe names by a path of their own."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import count

from transferkit.data.embeddings import Embeddings
from transferkit.errors import UserError


def with_own_paths(table: Embeddings) -> Embeddings:
    """Return a table whose rows have different paths: the second row of ``a.jpg`` becomes ``a.jpg#2``.

    Rows of one path show one image, so they are one group, as the regions of an image are.

    Raises:
        UserError: rows of one path are in different groups.
    """
    rows_of = Counter(table.paths)
    if len(rows_of) == len(table):
        return table
    paths, groups = list(table.paths), list(table.groups or [None] * len(table))
    numbers: dict[str, Iterator[int]] = {}
    group_of: dict[str, str | None] = {}
    for row, path in enumerate(table.paths):
        if rows_of[path] == 1:
            continue
        if path in numbers:
            paths[row] = next(name for number in numbers[path] if (name := f"{path}#{number}") not in rows_of)
        else:
            numbers[path], group_of[path] = count(2), groups[row]
        if groups[row] != group_of[path]:
            raise UserError(
                f"rows of {path!r} are in the groups {group_of[path]!r} and {groups[row]!r}; give them the same group"
            )
        groups[row] = groups[row] or path
    return replace(table, paths=paths, groups=groups)
