"""Evaluation of a table of embeddings: checks, metrics, files and figures."""

from transferkit.evaluation.measure import caveats, comparison_caveats, measure, save_overall, save_per_class
from transferkit.evaluation.plots import draw
from transferkit.evaluation.same_space import check_same_space, listed_paths, open_table, shared_rows

__all__ = [
    "caveats",
    "check_same_space",
    "comparison_caveats",
    "draw",
    "listed_paths",
    "measure",
    "open_table",
    "save_overall",
    "save_per_class",
    "shared_rows",
]
