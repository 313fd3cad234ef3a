"""A table of embeddings evaluated: checked, measured, its figures written and drawn."""

from transferkit.evaluation.measure import compare_remarks, measure, remarks, save_overall, save_per_class
from transferkit.evaluation.plots import draw
from transferkit.evaluation.same_space import check_alike, open_table, shared_rows, some

__all__ = [
    "check_alike",
    "compare_remarks",
    "draw",
    "measure",
    "open_table",
    "remarks",
    "save_overall",
    "save_per_class",
    "shared_rows",
    "some",
]
