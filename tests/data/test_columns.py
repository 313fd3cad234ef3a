"""Rows of a table: in the order given, of any table with paths, labels and splits."""

import torch

from transferkit.data.columns import Columns, take
from transferkit.data.embeddings import Embeddings
from transferkit.data.image_table import DigitsTable, ImageTable, open_images


def test_every_table_gives_the_same_rows() -> None:
    paths, labels, splits = ("a", "b", "c"), ("x", None, "y"), ("train", "val", None)
    wanted = Columns(["c", "a"], ["y", "x"], [None, "train"])
    tables = (ImageTable("/", paths, labels, splits), Embeddings(torch.ones(3, 1), paths, labels, splits, {}))
    assert all(take(table, [2, 0]) == wanted and table.row_of == {"a": 0, "b": 1, "c": 2} for table in tables)
    assert take(wanted, []) == Columns([], [], [])


def test_rows_of_the_digits_are_digits() -> None:
    some = open_images("digits").select([7, 42])
    assert isinstance(some, DigitsTable) and some.in_memory and some.content_hashes(some.paths) == {}
    assert torch.equal(some.read(1), open_images("digits").read(42))
