"""``search``: the images of an index nearest to a query."""

from collections.abc import Callable
from functools import partial
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING

from transferkit.cli.arguments import all_options, without_option
from transferkit.cli.commands.index import network_of
from transferkit.cli.console import as_json, note, table, written
from transferkit.cli.open_extractor import Accelerator, Engine, Network, Precision
from transferkit.cli.parsing import call
from transferkit.errors import UserError
from transferkit.runtime.page_files import check_page_place

if TYPE_CHECKING:
    from torch import Tensor

    from transferkit.search.index import ImageIndex


def main(arguments: list[str]) -> int:
    """Run the command; return the exit status."""
    texts = all_options(arguments, "--text")  # a parser would keep the last one only
    given = [f"--text={dumps(texts)}"] if texts else []
    return call(search, [*without_option(arguments, "--text"), *given])


def search(
    index: str,
    query: list[str],
    k: int = 10,
    text: list[str] | None = None,
    row: str | None = None,
    exact: bool = False,
    html: str | None = None,
    accelerator: Accelerator = "auto",
    engine: Engine | None = None,
    precision: Precision | None = None,
    json: bool = False,
) -> int:
    """Find the images of an index that are nearest to an image or to words, or to the mean of several.

    Args:
        index: directory that `transferkit index` wrote. faiss trusts the files it reads: search a directory that
            you do not trust with --exact, which does not read index.faiss.
        query: images; for several, the mean of their unit embeddings is searched for, texts included.
        k: number of images to find.
        text: search for words, such as "a red mushroom", alone or together with images; repeat it for several. The
            index must be of a model of images and texts.
        row: search for an indexed image instead, by its row number (from 0) or path; the image itself is left out.
        exact: compare with every image, for any kind of index.
        html: also write the results with thumbnails as one HTML file.
        accelerator: auto is a GPU if there is one.
        engine: what runs the network, as for embed; by default what the index was built with.
        precision: of the queries; by default that of the index, which alone can be compared with it.
        json: print one JSON object.
    """
    from transferkit.search.index import open_index
    from transferkit.search.query import find, find_row, mean_direction

    texts = text or []
    if bool(query or texts) == (row is not None):
        raise UserError(
            f"give images to search for, or --row with an indexed one, or --text: transferkit search {index} A.jpg"
        )
    if html and Path(html).suffix.lower() not in (".html", ".htm"):  # never overwrite an image
        raise UserError(f"--html {html}: give the page a name that ends in .html")
    if html:
        check_page_place(html)
    opened = open_index(index)
    if texts:
        opened.check_words()
    if row is None:
        left_out, direction = None, mean_direction(embed_queries(opened, query, texts, accelerator, engine, precision))
    else:
        import torch

        left_out = find_row(opened, row)
        direction = mean_direction(opened.embedding(torch.tensor([left_out])))
    available = len(opened) - (left_out is not None)
    if k > available:
        note(f"-k is {k}, but the index has {available} images to find; showing {available}")
    hits = find(opened, direction, k, exact, left_out)
    if len(hits) < min(k, available):
        note(f"{opened.kind} found only {len(hits)} images; --exact compares with all")
    names = query if left_out is None else [opened.images.paths[left_out]]
    asked_words = {"text": texts} if texts else {}
    if json:
        found = [hit._asdict() for hit in hits]
        as_json({"index": index, "images": opened.images.root, "query": names, **asked_words, "k": k, "results": found})
    else:
        table(["rank", "cosine", "path", "label"], [[hit.rank, hit.cosine, hit.path, hit.label] for hit in hits])
    if html:
        from transferkit.search.html import write_page

        words = "".join(f", {sentence!r}" for sentence in texts)
        summary = f"{len(hits)} of {len(opened):,} images in {opened.images.root}, nearest by cosine first{words}"
        asked = [(name, reader(opened, name, left_out)) for name in names]
        write_page(html, "Image search", summary, asked, [(hit, reader(opened, hit.path, hit.row)) for hit in hits])
        written(Path(html))
    return 0


def embed_queries(
    index: "ImageIndex",
    query: list[str],
    texts: list[str],
    accelerator: Accelerator = "auto",
    engine: Engine | None = None,
    precision: Precision | None = None,
) -> "Tensor":
    """Embed images and texts with the extractor that the index was built with: (Q, D)."""
    import torch

    extractor = network_of(index, Network(engine=engine, precision=precision)).open(
        accelerator, made=index.quantization
    )
    index.check_extractor(extractor)
    parts = [extractor.embed(query)] if query else []
    if texts:
        parts.append(extractor.embed_text(texts))
    return torch.cat(parts)


def reader(index: "ImageIndex", name: str, row: int | None) -> "Callable[[], Tensor]":
    """Return a function that reads an indexed image or, without a row, a file."""
    from transferkit.images.decoding import read_image

    return partial(read_image, name) if row is None else partial(index.images.read, row)
