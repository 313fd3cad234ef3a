"""The machine: atomic files, JSON, Parquet, text, processes and cores, progress, versions."""
