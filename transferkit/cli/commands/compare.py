"""``compare``: how similar two extractors are on the same images."""

from transferkit.cli import console
from transferkit.cli.parsing import call


def main(arguments: list[str]) -> int:
    """Run the command; return the exit status."""
    return call(compare, arguments)


def compare(first: str, second: str, k: int = 10, rsa_rows: int = 4000, seed: int = 0, json: bool = False) -> int:
    """Compare two tables of embeddings on the images that both contain, matched by path.

    Linear CKA (plain and unbiased), RSA, and the share of nearest neighbors that an image has in both, all of rows
    scaled to length 1; cka_raw is linear CKA of the features as they are, as papers report it (Kornblith et al. 2019).

    Args:
        first: Parquet file of `transferkit embed`, or a directory of its shards.
        second: another, of any extractor.
        k: number of neighbors for knn_overlap.
        rsa_rows: largest number of images for rsa, which ranks all their pairs.
        seed: seed of the images drawn for rsa, if there are more.
        json: print one JSON object instead of a table.
    """
    from transferkit import evaluation, similarity

    names = (first, second)
    tables = (evaluation.open_table(first), evaluation.open_table(second))
    shared = evaluation.shared_rows(*tables, names)
    one, other = (table.embedding[rows] for table, rows in zip(tables, shared.rows, strict=True))
    values = similarity.compare(one, other, k=k, rsa_rows=rsa_rows, seed=seed)
    values |= {"only_in_first": len(shared.alone[0]), "only_in_second": len(shared.alone[1])}
    if json:
        console.as_json(values)
    else:
        console.table(["metric", "value"], list(values.items()), title=f"{first} and {second}")
    for name, table, rows in zip(names, tables, shared.alone, strict=True):
        if rows:
            console.note(
                f"left out: {len(rows)} images that are only in {name}: {evaluation.listed_paths(table, rows)}"
            )
    for line in evaluation.comparison_caveats(tables, values, k):
        console.note(line)
    console.next_command("evaluate", first)
    return 0
