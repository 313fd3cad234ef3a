"""``evaluate``: similarity metrics of embeddings, and figures."""

from pathlib import Path

from transferkit.cli import console
from transferkit.cli.parsing import call

RECORD = "evaluation.json"  # what the results are of


def main(arguments: list[str]) -> int:
    """Run the command; return the exit status."""
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
    overwrite: bool = False,
    json: bool = False,
) -> int:
    """Measure how good embeddings are: retrieval, kNN, clustering, and geometry of the classes.

    Each row is a query among the other rows, or among the references. Only metrics that compare labels need them.
    Writes similarity.json, evaluation.json, per_class.csv, figures and report.html.

    Args:
        file: Parquet file of `transferkit embed`, or a directory of its shards.
        reference: file of the rows to search in; by default each row of FILE is searched for among the others.
        out: directory of the results; by default FILE without its suffix, the splits if any, `-evaluation`.
        split: only the rows of this split.
        reference_split: only the references of this split, or the rows of FILE if no reference is given.
        ks: the K of hit_rate@K (metric learning's R@K), recall@K (the share of all relevant ones that is found) and
            knn_accuracy@K, such as [1,5,10].
        class_sized: also r_precision and map_at_r, which take longer for large classes.
        pictures: draw figures: cosines of class means, distribution of cosines, map of two principal axes.
        tsne: also draw a t-SNE map, of at most 2,000 rows.
        seed: seed of the rows drawn if there are many, and of clustering.
        images: the images of FILE, for thumbnails in report.html: folder, manifest or dataset.
        image_root: the folder that a manifest's paths are relative to or lie in, if it is not the manifest's own.
        overwrite: replace an earlier evaluation of other embeddings, or with other options.
        json: print one JSON object instead of a table.
    """
    from transferkit import evaluation
    from transferkit.data.asked import ASKED, asked_of, check_earlier
    from transferkit.reports.report import report_of
    from transferkit.runtime.files import check_folder
    from transferkit.runtime.json_files import write_json

    folder = Path(out) if out else default_folder(Path(file), split, reference_split)
    check_folder(folder)
    table = evaluation.open_table(file, split)
    against = reference or (file if reference_split else None)
    other = evaluation.open_table(against, reference_split) if against else None
    if other:
        evaluation.check_same_space(table, other, (file, str(against)))
    options = {"split": split, "reference_split": reference_split, "ks": ks, "class_sized": class_sized, "seed": seed}
    compared = {"reference": asked_of(other.metadata, other, {})} if other else {}
    asked = asked_of(table.metadata, table, options | compared)
    for name in (RECORD, "similarity.json"):
        check_earlier(folder / name, asked, overwrite or (name != RECORD and (folder / RECORD).is_file()))
    found = evaluation.measure(table, other, ks=ks, class_sized=class_sized, seed=seed)
    paths = [folder / "similarity.json", folder / RECORD]
    evaluation.save_overall(found, paths[0])
    write_json(paths[1], {"file": file, "reference": against, ASKED: asked})
    if found.per_class:
        paths.append(folder / "per_class.csv")
        evaluation.save_per_class(found, paths[-1])
    if pictures:
        paths += evaluation.draw(table, other, folder, tsne=tsne, seed=seed)
    paths.append(report_of(folder, embeddings=table, images=images, image_root=image_root))
    if json:
        console.as_json(found.overall)
    else:
        console.table(["metric", "value"], list(found.overall.items()), title(file, split, against, reference_split))
    for line in evaluation.caveats(table, other, found, ks):
        console.note(line)
    console.written(*paths)
    if found.per_class:
        console.next_command("probe", file)
    return 0


def title(file: str, split: str | None, against: str | None, reference_split: str | None) -> str:
    """Return which rows are searched for among which."""
    query = f"split {split} of {file}" if split else file
    if not against:
        return query
    return f"{query} among {f'split {reference_split} of {against}' if reference_split else against}"


def default_folder(file: Path, *splits: str | None) -> Path:
    """Return the default directory of the results."""
    return file.with_name("-".join([file.name.removesuffix(".parquet"), *filter(None, splits), "evaluation"]))
