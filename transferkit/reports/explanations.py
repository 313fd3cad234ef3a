"""The page of explained images: each image, what the network looked at, and the nearest training images."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from transferkit.backbones.weights import state_sha256
from transferkit.errors import UserError
from transferkit.images.error import ImageError
from transferkit.reports.content import Card, Gallery, Headline, Report, Section
from transferkit.reports.numbers import Number, counted, decimal, percent
from transferkit.reports.rendering import write_report
from transferkit.reports.result_files import ResultFolder
from transferkit.reports.thumbnails import Thumbnails, thumbnail_uri

SHOWN = 60  # images on the page
RUN_SHOWN = 24  # in the report of a run
MISTAKES, NEAREST = 8, 4  # of these with nearest training images, and how many
TITLE = "{} taken for {}, and the nearest training images"
LEAD = "Bright is what spoke most for the class, gray is what the crop cut off and the network did not see."
SIDE = 256
"""Pixels of a picture's longer side."""
FILE = "explanations.json"
FOLDER = "explained"
"""Of a run."""


@dataclass(frozen=True)
class Neighbor:
    """A training image near an explained one.

    Attributes:
        path: of the image, relative to the current folder.
        label: its class.
        cosine: of the two embeddings.
    """

    path: str
    label: str | None
    cosine: float


@dataclass(frozen=True)
class Explained:
    """One explained image, as the page and ``explanations.json`` have it.

    Attributes:
        path: of the image, as its table has it.
        label: its class, if it is known.
        class_name: the class that is explained.
        probability: of that class.
        prediction: the most probable class.
        overlay: file of the heat map over the image, in the folder of the page.
        nearest: training images, the nearest first.
    """

    path: str
    label: str | None
    class_name: str
    probability: float
    prediction: str
    overlay: str
    nearest: list[Neighbor] = field(default_factory=list)


def explanation_report(explained: Sequence[Explained], checkpoint: str, missing: Sequence[str]) -> Report:
    """Return the page's content.

    Args:
        explained: the images.
        checkpoint: what was explained.
        missing: what is not there, and why, one line each.
    """
    left_out = len(explained) - SHOWN
    notes = [
        *missing,
        *([f"{counted(left_out, 'more image')}: {FILE} and the pictures beside it have them"] * (left_out > 0)),
    ]
    sections = [section(number, each) for number, each in enumerate(explained[:SHOWN])]
    headline = Headline(None, "What the network looked at", LEAD)
    return Report(checkpoint, "Explanation", headline, sections, notes)


def section(number: int, each: Explained) -> Section:
    """Return one image's part of the page."""
    source = f"{FILE} images {number}"
    told = decimal(each.probability, f"{source} probability")
    known: list[tuple[str, str | Number]] = [("label", each.label)] if each.label is not None else []
    cards = [
        Card(each.path, f"{each.path}, predicted {each.prediction}", [("", "image"), *known]),
        Card(
            each.overlay,
            f"{each.path}: what spoke for {each.class_name}",
            [("", each.class_name), ("probability", told)],
        ),
    ]
    near = [
        Card(
            one.path,
            f"training image {one.path} of class {one.label}",
            [("", one.label or "no label"), ("cosine", decimal(one.cosine, f"{source} nearest {rank} cosine"))],
        )
        for rank, one in enumerate(each.nearest)
    ]
    wrong = each.label is not None and each.label != each.prediction
    lead = f"Predicted {each.prediction}{f', the label is {each.label}' if wrong else ''}."
    blocks = [Gallery(cards), *([Gallery(near, "Nearest training images")] if near else [])]
    return Section(f"image-{number}", each.path, lead, blocks)


def looked_at(folder: ResultFolder, known: Collection[str] = frozenset()) -> tuple[Section | None, dict[str, Path]]:
    """Return what a run's report shows of its explained images, and the file of each picture of the network's look.

    Mistakes come first, the surest of them with the nearest training images.

    Args:
        folder: the run.
        known: paths of the run's images, as far as they are there.
    """
    found = folder.json(f"{FOLDER}/{FILE}") if (folder.path / FOLDER / FILE).is_file() else {}
    try:
        if not found or not found["images"]:
            return None, {}
        file = folder.path / "checkpoints" / Path(found["checkpoint"]).name
        if not file.is_file() or checkpoint_sha256(file) != found["weights_sha256"]:
            folder.missing.append("what the network looked at: another checkpoint was explained; explain again")
            return None, {}
        images = sorted(found["images"], key=lambda each: each["label"] in (None, each["prediction"]))
        shown = images[:RUN_SHOWN]
        cards = [small_card(each) for each in shown]
        near = [near_cards(each, known) for each in shown[:MISTAKES]]
    except (AttributeError, KeyError, TypeError, UserError, ValueError):  # somebody else wrote or changed it
        folder.missing.append(f"what the network looked at: {FOLDER}/{FILE} is damaged; explain again")
        return None, {}
    titles = [TITLE.format(each["label"], each["prediction"]) for each in shown]
    blocks = [Gallery([card, *few], title) for card, few, title in zip(cards, near, titles, strict=False) if few]
    alone = [card for number, card in enumerate(cards) if number >= len(near) or not near[number]]
    rest = max(0, len(images) - RUN_SHOWN)
    blocks += [Gallery(alone, rest=rest)] if alone or rest else []
    section = Section("looked-at", "What the network looked at", f"{LEAD} Mistakes come first.", blocks)
    return section, {card.path: folder.path / card.path for card in cards}


def near_cards(each: Mapping[str, Any], known: Collection[str]) -> list[Card]:
    """Return the nearest training images of a mistake, as far as they are among the run's images; else none.

    Args:
        each: of ``explanations.json``, whose paths are relative to the folder where it was made.
        known: paths of the run's images.
    """
    if each["label"] in (None, each["prediction"]):
        return []
    cards = []
    for rank, one in enumerate(each["nearest"][:NEAREST]):
        parts = Path(one["path"]).parts
        path = next((end for at in range(len(parts)) if (end := "/".join(parts[at:])) in known), None)
        if path is not None:
            near = decimal(float(one["cosine"]), f"{FOLDER}/{FILE} {each['path']} nearest {rank} cosine")
            name = str(one["label"] or "no label")
            cards.append(Card(path, f"training image {path} of class {name}", [("", name), ("cosine", near)]))
    return cards


def checkpoint_sha256(checkpoint: Path) -> str | None:
    """Return the SHA-256 over the weights of a checkpoint, the same for the same weights; None for a directory.

    Raises:
        UserError: it is not a checkpoint.
    """
    from transferkit.extractor.checkpoint_reader import load  # with torchvision: few reports need it

    return state_sha256(load(checkpoint)["state_dict"]) if checkpoint.is_file() else None


def small_card(each: Mapping[str, Any]) -> Card:
    """Return the card of an explained image, as ``explanations.json`` has it, in the report of its run."""
    label: list[tuple[str, str | Number]] = [("label", str(each["label"]))] if each["label"] is not None else []
    share = percent(float(each["probability"]), f"{FOLDER}/{FILE} {each['path']} probability")
    alt = f"{each['path']}: what spoke for {each['class_name']}"
    lines: list[tuple[str, str | Number]] = [("", str(each["class_name"])), ("probability", share), *label]
    return Card(f"{FOLDER}/{Path(each['overlay']).name}", alt, lines)


def write_explanations(report: Report, readers: dict[str, Callable[[], Tensor]], path: Path) -> None:
    """Write the page.

    Args:
        report: its content.
        readers: path of a card -> function that gives its pixels, uint8 (3, H, W), or raises ImageError.
        path: the HTML file.

    Raises:
        UserError: the file cannot be written.
    """
    made = Thumbnails()
    for name in report.paths():
        try:
            made.uris[name] = thumbnail_uri(readers[name](), SIDE)
        except ImageError as error:
            made.unread[name] = str(error)
    write_report(report, made, path)
