"""Similarity of two extractors' embeddings of the same images: CKA, RSA, shared neighbors."""

import torch
from torch import Tensor

from transferkit.errors import UserError
from transferkit.similarity.cosine import cosine_matrix, drawn_rows, finite_rows, unit_rows
from transferkit.similarity.neighbours import top_k


def compare(first: Tensor, second: Tensor, *, k: int = 10, rsa_rows: int = 4000, seed: int = 0) -> dict[str, float]:
    """Compare two embeddings of the same images; rows are scaled to length 1 first, but for `cka_raw`.

    - `rows`: number of images.
    - `cka`, `cka_unbiased`: `linear_cka` of the scaled rows.
    - `cka_raw`: `linear_cka` of the features as they are, as Kornblith et al. 2019 report it.
    - `rsa`: of `rsa_rows` images, all of them or a sample with a fixed seed.
    - `knn_overlap@k`: share of the k nearest neighbors that an image has in both; k clamped to `rows` - 1.

    Undefined values (too few rows, all rows equal) are left out.

    Args:
        first: `(N, D1)`.
        second: `(N, D2)`, row i of the same image as row i of `first`.
        k: number of neighbors.
        rsa_rows: maximum number of rows for `rsa`, which ranks all their pairs.
        seed: seed of that sample.

    Raises:
        UserError: different numbers of rows; a table is not `(N, D)`, is empty, or has NaN or infinity.
    """
    raw = first, second
    first, second = unit_rows(first, "first"), unit_rows(second, "second")
    check_same_rows(first, second)
    sample = drawn_rows(len(first), rsa_rows, seed).to(first.device)
    values = {
        "rows": len(first),
        "cka": linear_cka(first, second),
        "cka_unbiased": linear_cka(first, second, unbiased=True),
        "cka_raw": linear_cka(*raw),
        "rsa": rsa(first[sample], second[sample]),
        "rsa_rows": len(sample),
        f"knn_overlap@{k}": knn_overlap(first, second, k),
    }
    return {name: value for name, value in values.items() if value == value}  # NaN: undefined


def linear_cka(first: Tensor, second: Tensor, *, unbiased: bool = False) -> float:
    """Return linear centered kernel alignment, HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)), K = X X', L = Y Y'.

    Biased: HSIC is |X' Y|^2 of the centered features (Kornblith et al. 2019, arXiv:1905.00414), close to 1
    unless N is far above D. Unbiased: HSIC_1 of Song et al. 2012 (JMLR 13, eq. 5), about 0 for unrelated
    features for any N and D, and possibly below. Both from D x D sums in float64, without an N x N matrix.

    >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0]])
    >>> round(linear_cka(x, 3 * x), 6)
    1.0

    Args:
        first: `(N, D1)`, used as it is.
        second: `(N, D2)`.
        unbiased: which of the two.

    Returns:
        At most 1; NaN if undefined: all rows of one table equal, N < 2 (unbiased: N < 4).

    Raises:
        UserError: different numbers of rows; a table is not `(N, D)`, is empty, or has NaN or infinity.
    """
    finite_rows(first, "first")
    finite_rows(second, "second")
    check_same_rows(first, second)
    n = len(first)
    if n < (4 if unbiased else 2):
        return torch.nan
    means = [table.mean(0, dtype=torch.float64) for table in (first, second)]
    products: list[Tensor] = []  # X'X, Y'Y, X'Y
    s_t = torch.zeros(5, dtype=torch.float64)  # sums of ss, tt, st, s, t; s, t squared lengths of centered rows
    for x, y in zip(torch.split(first, 4096), torch.split(second, 4096), strict=True):
        x, y = x.double() - means[0], y.double() - means[1]
        s, t = x.square().sum(1), y.square().sum(1)
        block = [x.T @ x, y.T @ y, x.T @ y]
        products = [old + new for old, new in zip(products, block, strict=True)] if products else block
        s_t += torch.stack([s @ s, t @ t, s @ t, s.sum(), t.sum()]).cpu()
    xx, yy, xy = (float(product.square().sum()) for product in products)
    ss, tt, st, s_sum, t_sum = s_t.tolist()
    # Equal rows differ from their mean only by the rounding of float64.
    if any(total <= 1e-20 * n * float(m @ m) for total, m in zip((s_sum, t_sum), means, strict=True)):
        return torch.nan
    if unbiased:
        # The kernels without their diagonals; of centered rows, K 1 = -s and L 1 = -t.
        share, cross = 1 / ((n - 1) * (n - 2)), 1 + 2 / (n - 2)
        xx += s_sum * s_sum * share - ss * cross
        yy += t_sum * t_sum * share - tt * cross
        xy += s_sum * t_sum * share - st * cross
    return xy / (xx * yy) ** 0.5 if xx > 0 and yy > 0 else torch.nan


def rsa(first: Tensor, second: Tensor) -> float:
    """Return representational similarity: Spearman's correlation of the two tables' pairwise cosines.

    Over the upper triangles of the cosine matrices; equal values share their mean rank (Kriegeskorte et
    al. 2008). Memory and time grow as N^2.

    Args:
        first: `(N, D1)`.
        second: `(N, D2)`.

    Returns:
        From -1 to 1; NaN if undefined: N < 3, or all pairs of one table equal.
    """
    check_same_rows(first, second)
    upper = torch.triu_indices(len(first), len(first), 1, device=first.device)
    of_tables = [ranks(cosine_matrix(table)[upper[0], upper[1]]) for table in (first, second)]
    x, y = (rank - rank.mean() for rank in of_tables)
    return float((x @ y) / ((x @ x) * (y @ y)).sqrt()) if len(first) > 2 else torch.nan


def knn_overlap(first: Tensor, second: Tensor, k: int = 10) -> float:
    """Return the mean share of a row's k nearest neighbors by cosine that it has in both tables.

    >>> x = torch.eye(4)
    >>> knn_overlap(x, 2 * x, k=2)
    1.0

    Args:
        first: `(N, D1)`.
        second: `(N, D2)`.
        k: number of neighbors, clamped to N - 1.

    Returns:
        From 0 to 1; NaN for a single row.
    """
    check_same_rows(first, second)
    _, near_first = top_k(first, first, k, exclude_self=True)
    _, near_second = top_k(second, second, k, exclude_self=True)
    if near_first.shape[1] == 0:
        return torch.nan
    both = torch.cat([near_first, near_second], 1).sort(1).values  # a shared neighbor is in its row twice
    return (both[:, 1:] == both[:, :-1]).sum().item() / near_first.numel()


def ranks(values: Tensor) -> Tensor:
    """Return ranks from 1, float64; equal values share their mean rank.

    >>> ranks(torch.tensor([0.5, 0.1, 0.5]))
    tensor([2.5000, 1.0000, 2.5000], dtype=torch.float64)
    """
    _, position, count = torch.unique(values, return_inverse=True, return_counts=True)
    mean: Tensor = count.cumsum(0).double() - (count.double() - 1) / 2
    return mean[position]


def check_same_rows(first: Tensor, second: Tensor) -> None:
    """Raise UserError if two tables have different numbers of rows."""
    if len(first) != len(second):
        raise UserError(f"compare: {len(first)} rows against {len(second)}; give the same images in the same order")
