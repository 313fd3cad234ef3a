"""Whether a stage has images with labels."""

from collections.abc import Mapping

from transferkit.data.image_table import ImageTable
from transferkit.errors import UserError


def check_split(tables: Mapping[str, ImageTable], name: str, root: str, fits: bool) -> None:
    """Validate that a split has images and that all have labels.

    Args:
        tables: split -> its images.
        name: of the split.
        root: name of the data, for the message.
        fits: whether a fit needs it.

    Raises:
        UserError: images or labels are missing.
    """
    if name not in tables:
        remedy = "give `val_fraction` above 0, or more images per class" if fits else "add some"
        raise UserError(f"no images for the split {name!r} in {root}; {remedy}")
    bare = tables[name].labels.count(None)
    if bare:
        raise UserError(
            f"{bare} of {len(tables[name])} images of the split {name!r} in {root} have no label; "
            "add labels, or use predict, which needs none"
        )
