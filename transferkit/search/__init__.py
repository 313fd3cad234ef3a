"""Image search: an index of embeddings on disk, queries against it, and near-duplicates."""

from transferkit.search.build import Change, absolute_source, build_index
from transferkit.search.directory import ImageIndex, open_index
from transferkit.search.duplicates import Duplicates, find_duplicates, open_embeddings
from transferkit.search.page import write_page
from transferkit.search.query import Hit, find, find_row, mean_direction

__all__ = [
    "Change",
    "Duplicates",
    "Hit",
    "ImageIndex",
    "absolute_source",
    "build_index",
    "find",
    "find_duplicates",
    "find_row",
    "mean_direction",
    "open_embeddings",
    "open_index",
    "write_page",
]
