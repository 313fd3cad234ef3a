"""``similarity``: cosine similarity of images."""

from transferkit.cli import console
from transferkit.cli.open_extractor import Accelerator, Network
from transferkit.cli.parsing import call


def main(arguments: list[str]) -> int:
    """Run the command; return the exit status."""
    return call(similarity, arguments)


def similarity(
    images: list[str],
    network: Network = Network(),
    accelerator: Accelerator = "auto",
    json: bool = False,
) -> int:
    """Print the cosine similarity of images, in [-1, 1]: one number for two, a table for more.

    Args:
        images: two or more image files.
        network: the extractor.
        accelerator: auto is a GPU if there is one.
        json: print one JSON object.
    """
    from transferkit.errors import UserError
    from transferkit.similarity import cosine_matrix, zero_rows

    if len(images) < 2:
        raise UserError(f"similarity compares two or more images, got {len(images)}; give another one")
    embedding = network.open(accelerator).embed(images)
    for row in zero_rows(embedding).tolist():
        console.note(f"{images[row]} has an embedding of zeros: its cosine with everything is 0")
    cosine = cosine_matrix(embedding).tolist()
    if json:
        console.as_json({"images": images, "cosine": cosine})
    elif len(images) == 2:
        print(f"{cosine[0][1]:.6f}")
    else:
        console.table(("", *map(str, range(1, len(images) + 1)), "image"), rows_of(images, cosine))
    return 0


def rows_of(images: list[str], cosine: list[list[float]]) -> list[list[object]]:
    """Return the matrix with its rows numbered and named; columns have the same numbers."""
    return [[number, *values, name] for number, (name, values) in enumerate(zip(images, cosine, strict=True), start=1)]
