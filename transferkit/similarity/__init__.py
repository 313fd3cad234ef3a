"""Quality of embeddings: cosine, neighbors, retrieval, clusters, CKA. Pure functions on tensors."""

from transferkit.similarity.clustering import k_means, nmi
from transferkit.similarity.compare import compare, knn_overlap, linear_cka, rsa
from transferkit.similarity.cosine import class_codes, cosine_matrix, drawn_rows, finite_rows, unit_rows, zero_rows
from transferkit.similarity.evaluate import Evaluation, evaluate
from transferkit.similarity.geometry import uniformity
from transferkit.similarity.neighbours import top_k
from transferkit.similarity.pairs import (
    groups_within,
    joined_rows,
    linked_rows,
    near_duplicates,
    similar_pairs,
    usual_threshold,
)
from transferkit.similarity.projection import class_means, cosine_counts, neighbour_map, principal_axes
from transferkit.similarity.retrieval import votes

__all__ = [
    "Evaluation",
    "class_codes",
    "class_means",
    "compare",
    "cosine_counts",
    "cosine_matrix",
    "drawn_rows",
    "evaluate",
    "finite_rows",
    "groups_within",
    "joined_rows",
    "k_means",
    "knn_overlap",
    "linear_cka",
    "linked_rows",
    "near_duplicates",
    "neighbour_map",
    "nmi",
    "principal_axes",
    "rsa",
    "similar_pairs",
    "top_k",
    "uniformity",
    "unit_rows",
    "usual_threshold",
    "votes",
    "zero_rows",
]
