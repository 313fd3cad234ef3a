"""Embeddings in pandas, polars, DuckDB, Arrow and Hugging Face datasets, and back."""

import duckdb

from transferkit import Embeddings, Extractor
from transferkit.embed import embed

table = embed("photos", Extractor.from_pretrained("resnet18"))
train, val = table.filter(split="train"), table.filter(split="val", label=["apples", "limes"])
assert len(Embeddings.concat([train, val])) == len(table)

frame = table.to_pandas()
frame["note"] = ["seen by " + ("Ann" if number % 2 else "Bob") for number in range(len(frame))]
print(frame.groupby(["label", "note"]).size())
ann = table.join(frame[frame.note == "seen by Ann"])  # the rows that both have
assert len(ann) == len(table) // 2

embeddings = table.to_duckdb()
print(duckdb.sql("SELECT label, avg(embedding[1]) AS first FROM embeddings GROUP BY label ORDER BY label"))
for there, back in (
    ("polars", Embeddings.from_polars),
    ("arrow", Embeddings.from_arrow),
    ("datasets", Embeddings.from_datasets),
):
    assert back(getattr(table, f"to_{there}")()).paths == table.paths
