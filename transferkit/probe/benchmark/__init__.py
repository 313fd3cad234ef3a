"""Probes over extractors x datasets: `grid.run` measures the missing cells, `benchmark_table` shows all."""
