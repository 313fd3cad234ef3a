"""Self-retrieval among a million embeddings: the ten nearest of every row, exact, in float32."""

from collections.abc import Iterator

import torch

from tests.bench.gpu.measure import Row, Setting, seconds
from transferkit.similarity import top_k, unit_rows

WIDTH, K = 768, 10


def rows(setting: Setting) -> Iterator[Row]:
    """Yield the seconds; a part of the rows asks, so that it ends in time, and all are asked."""
    count, asking = (2000, 500) if setting.small else (1_000_000, 200_000)
    generator = torch.Generator(setting.device).manual_seed(0)
    centers = torch.randn(count // 100, WIDTH, device=setting.device, generator=generator)
    table = unit_rows(centers.repeat(100, 1) + torch.randn(count, WIDTH, device=setting.device, generator=generator))
    query = table[:asking]
    top_k(query[:1000], table, K, normalize=False)
    found = []
    taken = seconds(setting.device, lambda: found.append(top_k(query, table, K, normalize=False)))
    assert (found[0][1][:, 0] == torch.arange(asking, device=setting.device)).double().mean() > 0.999, "itself first"
    total = taken * count / asking
    work = 2 * asking * count * WIDTH / taken / 1e12
    note = f"measured on {asking:,} queries in {taken:.1f} s; {work:.0f} TFLOP/s, {asking / taken:,.0f} queries/s"
    yield Row(f"top {K} of {count:,} x {WIDTH}, all of them", "", [total], unit=" s", note=note)
