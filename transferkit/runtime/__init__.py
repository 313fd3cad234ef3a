"""The machine: files that are whole or absent, Parquet, processes and cores, progress, versions."""
