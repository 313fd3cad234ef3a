"""``duplicates``: near-duplicates, and those in different splits."""

from typing import TYPE_CHECKING, Any

from transferkit.cli.console import as_json, note, table
from transferkit.cli.open_extractor import Accelerator, Network
from transferkit.cli.parsing import call

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transferkit.data.embeddings import Embeddings
    from transferkit.search.duplicates import Duplicates, Pair

SHOWN = 50  # rows per table; --json has all


def main(arguments: list[str]) -> int:
    """Run the command; return the exit status."""
    return call(duplicates, arguments)


def duplicates(
    images: str,
    threshold: float | None = None,
    network: Network = Network(),
    image_root: str | None = None,
    accelerator: Accelerator = "auto",
    json: bool = False,
) -> int:
    """List pairs of nearly identical images, the most similar first, groups of them, and leakage.

    The exit status is 2 if there are any, otherwise 0. In a group any two images reach the threshold. Leakage is a
    pair in different splits; where a manifest has groups and no splits, pairs in two groups are listed, too: a drawn
    split may part them.

    Args:
        images: a folder, manifest or image, or an embeddings table (.parquet).
        threshold: cosine from which two images count as duplicates, above 0 and at most 1; by default, 1 minus a
            tenth of the median distance (1 - cosine) of two images of the set, of a fine-tuned network 1 minus an
            eighth of that to the tenth nearest image, if it is less.
        network: the extractor; not used for an embeddings table.
        image_root: the folder that a manifest's paths are relative to or lie in, if it is not the manifest's own.
        accelerator: auto is a GPU if there is one.
        json: print one JSON object.
    """
    from transferkit.search.duplicates import find_duplicates, open_embeddings

    embeddings = open_embeddings(images)
    same: dict[str, str] = {}
    if embeddings is not None:
        found = find_duplicates(embeddings, threshold)
    else:
        from transferkit.data.image_table import open_images
        from transferkit.embed import cached_features

        opened = open_images(images, image_root)
        embeddings = cached_features(network.open(accelerator, opened), opened)
        for path, reason in embeddings.metadata["broken"].items():
            note(f"left out: {path} ({reason})")
        found = find_duplicates(embeddings, threshold)
        same = opened.content_hashes(embeddings.paths[row] for group in found.groups for row in group)
    if found.zero_rows:
        note(f"{found.zero_rows} images have an embedding of zeros and are in no group")
    report(embeddings, found, same, json)
    return 2 if found.groups else 0


def report(embeddings: "Embeddings", found: "Duplicates", same: dict[str, str], json: bool) -> None:
    """Print pairs, then groups, then leaking pairs, then those that may leak."""
    paths, labels, splits = embeddings.paths, embeddings.labels, embeddings.splits

    def member(row: int) -> dict[str, Any]:
        digest = same.get(paths[row])
        return {"path": paths[row], "label": labels[row], "split": splits[row], "sha256": digest}

    def in_json(pairs: "Sequence[Pair]") -> list[dict[str, Any]]:
        return [{"cosine": pair.cosine, "a": member(pair.first), "b": member(pair.second)} for pair in pairs]

    if json:
        groups = [[member(row) for row in group] for group in found.groups]
        content = {"images": len(paths), "threshold": found.threshold, "groups": groups}
        pairs = {"pairs": in_json(found.pairs), "pair_count": found.pair_count}
        leaks = {"leaks": in_json(found.leaks), "leak_count": found.leak_count}
        loose = {"loose": in_json(found.loose), "loose_count": found.loose_count} if embeddings.groups else {}
        as_json({**content, **pairs, **leaks, **loose})
        return
    if not found.pairs:
        print(f"no two of {len(paths):,} images have a cosine of {found.threshold:g} or more")
        return
    title = f"{found.pair_count:,} pairs of {len(paths):,} images with cosine {found.threshold:g} or more"
    print_pairs(title, found.pairs, found.pair_count, ("label", labels), paths)
    rows = [[number, paths[row], labels[row], splits[row], identical(group, paths, same, row)]
            for number, group in enumerate(found.groups, 1) for row in group]  # fmt: skip
    images = sum(map(len, found.groups))
    columns = ["group", "path", "label", "split", "same file as"]
    width = len(columns) - all(row[-1] is None for row in rows)  # without an empty column
    table(columns[:width], [row[:width] for row in rows[:SHOWN]], f"{len(found.groups):,} groups of {images:,} images")
    more(len(rows))
    if found.leaks:
        title = f"Leakage: {found.leak_count:,} pairs in different splits"
        print_pairs(title, found.leaks, found.leak_count, ("split", splits), paths)
    if found.loose and embeddings.groups:
        title = f"{found.loose_count:,} pairs in two groups, which a drawn split may part; give them one group"
        print_pairs(title, found.loose, found.loose_count, ("group", embeddings.groups), paths)


def print_pairs(
    title: str, pairs: "Sequence[Pair]", count: int, column: tuple[str, "Sequence[str | None]"], paths: "Sequence[str]"
) -> None:
    """Print the first pairs, each row with another column of both images before their paths."""
    name, values = column
    shown = [[pair.cosine, *(cell for row in pair[:2] for cell in (values[row], paths[row]))] for pair in pairs[:SHOWN]]
    table(["cosine", name, "path", name, "path"], shown, title)
    more(count)


def identical(group: list[int], paths: Any, same: dict[str, str], row: int) -> str | None:
    """Return the path of the first file of a group with the same bytes, if it is another one."""
    first = next((other for other in group if same and same[paths[other]] == same[paths[row]]), row)
    return None if first == row else str(paths[first])


def more(count: int) -> None:
    """Print how many rows a table leaves out."""
    if count > SHOWN:
        note(f"{count - SHOWN} more; --json lists them")
