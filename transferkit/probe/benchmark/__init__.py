"""Probes over extractors x datasets: `grid.run` measures what is missing, `table` shows what is there."""
