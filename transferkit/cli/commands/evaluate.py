"""``evaluate``: what embeddings are worth, as numbers and pictures."""

from pathlib import Path

from transferkit.cli import console
from transferkit.cli.parsing import call


def main(arguments: list[str]) -> int:
    """Run the command; the exit status."""
    return call(evaluate, arguments)


def evaluate(
    file: str,
    reference: str | None = None,
    out: str | None = None,
    split: str | None = None,
    reference_split: str | None = None,
    ks: tuple[int, ...] = (1, 5, 10),
    class_sized: bool = True,
    pictures: bool = True,
    tsne: bool = False,
    seed: int = 0,
    images: str | None = None,
    image_root: str | None = None,
    json: bool = False,
) -> int:
    """Measure how good embeddings are: retrieval, kNN, clusters, and how classes lie.

    Each row is a query among the others, or among the references. Labels are needed only where a metric compares
    them. Writes similarity.json, per_class.csv, pictures and report.html.

    Args:
        file: Parquet file of `transferkit embed`, or a directory of its shards.
        reference: file of the rows to be found; by default each row of FILE is looked for among the others.
        out: directory of the results; by default FILE without its suffix, the splits if any, `-evaluation`.
        split: only the rows of this split.
        reference_split: only the references of this split; of FILE itself where no reference is given.
        ks: the K of hit_rate@K, recall@K and knn_accuracy@K, such as [1,5,10].
        class_sized: also r_precision and map_at_r, which take longer where classes are large.
        pictures: whether to draw: cosines of class means, spread of cosines, map of two principal axes.
        tsne: also draw a t-SNE map, of 2,000 rows at most.
        seed: of whatever is drawn by chance where there are many rows.
        images: the images of FILE, for thumbnails in report.html: folder, manifest or dataset.
        image_root: the folder that a manifest's paths are relative to or lie in, where it is not its own.
        json: print one JSON object instead of a table.
    """
    from transferkit import evaluation
    from transferkit.reports.report import report_of
    from transferkit.runtime.files import check_folder

    folder = Path(out) if out else default_folder(Path(file), split, reference_split)
    check_folder(folder)
    table = evaluation.open_table(file, split)
    against = reference or (file if reference_split else None)
    other = evaluation.open_table(against, reference_split) if against else None
    if other:
        evaluation.check_alike(table, other, (file, str(against)))
    found = evaluation.measure(table, other, ks=ks, class_sized=class_sized, seed=seed)
    paths = [folder / "similarity.json"]
    evaluation.save_overall(found, paths[0])
    if found.per_class:
        paths.append(folder / "per_class.csv")
        evaluation.save_per_class(found, paths[1])
    if pictures:
        paths += evaluation.draw(table, other, folder, tsne=tsne, seed=seed)
    paths.append(report_of(folder, embeddings=table, images=images, image_root=image_root))
    if json:
        console.as_json(found.overall)
    else:
        console.table(["metric", "value"], list(found.overall.items()), title(file, split, against, reference_split))
    for line in evaluation.remarks(table, other, found, ks):
        console.note(line)
    console.written(*paths)
    if found.per_class:
        console.next_command("probe", file)
    return 0


def title(file: str, split: str | None, against: str | None, reference_split: str | None) -> str:
    """Which rows look for which."""
    query = f"split {split} of {file}" if split else file
    if not against:
        return query
    return f"{query} among {f'split {reference_split} of {against}' if reference_split else against}"


def default_folder(file: Path, *splits: str | None) -> Path:
    """Where results go unless said otherwise."""
    return file.with_name("-".join([file.name.removesuffix(".parquet"), *filter(None, splits), "evaluation"]))
