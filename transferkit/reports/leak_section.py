"""The section of near-duplicates in different splits, by the embeddings of a run or a probe."""

from collections.abc import Mapping, Sequence
from typing import Any

from transferkit.reports.content import Block, Card, Facts, Gallery, Remark, Section
from transferkit.reports.numbers import Number, count, counted, decimal
from transferkit.reports.result_files import ResultFolder

LEAKS = "leaks.json"
SHOWN = 12  # pairs with images
NOT_THERE = (
    f"near-duplicates of training images among those of other splits: {LEAKS} is not there, which a test on data with "
    "the split train writes; embed all images and look for duplicates"
)


def leak_blocks(folder: ResultFolder) -> list[Block]:
    """Return what ``leaks.json`` says; without it, note that it is missing."""
    found = folder.json(LEAKS)
    if not found:
        folder.missing.append(NOT_THERE)
        return []
    return folder.part(LEAKS, lambda: blocks_of(found), [])


def blocks_of(found: Mapping[str, Any]) -> list[Block]:
    """Return what the content of ``leaks.json`` says."""
    facts: list[tuple[str, Any]] = [
        ("pairs in different splits", count(found["count"], f"{LEAKS} count")),
        ("images compared", count(found["images"], f"{LEAKS} images")),
    ]
    if found["threshold"] is not None:
        facts.append(("cosine from which two are alike", decimal(found["threshold"], f"{LEAKS} threshold")))
    some = "these are nearly the same and" if found["count"] else "no two that are nearly the same are"
    which = f"Among the images of all splits: {some} in different splits."
    blocks: list[Block] = [Remark(which), Facts(facts)]
    if found["images"] < found["of"]:
        blocks.append(Remark(f"Leaks were looked for among {found['images']:,} of {found['of']:,} images, by chance."))
    for place, pair in enumerate(found["pairs"][:SHOWN]):
        title = f"{' and '.join(pair['splits'])}: a leak" + ("" if len(set(pair["labels"])) < 2 else ", other labels")
        cosine = decimal(pair["cosine"], f"{LEAKS} pairs.{place}.cosine")
        blocks.append(Gallery([card(pair, side, cosine) for side in (0, 1)], title))
    if found["count"] > SHOWN:
        blocks.append(Remark(f"{counted(found['count'] - SHOWN, 'more pair')} not shown."))
    return blocks


def card(pair: dict[str, Any], side: int, cosine: Number) -> Card:
    """Return one image of a pair."""
    path, label, split = str(pair[("first", "second")[side]]), pair["labels"][side] or "no label", pair["splits"][side]
    lines: Sequence[tuple[str, str | Number]] = [("", label), ("split", split), ("cosine", cosine)]
    return Card(path, f"{path}: {label}, {split}", lines)


def with_leaks(section: Section, sentence: str, found: Sequence[Block]) -> Section:
    """Return the section of near-duplicates with what is known of exact and near copies across splits."""
    blocks: list[Block] = [*([Remark(sentence)] if sentence else []), *found]
    return Section(section.id, section.title, section.lead, [*blocks, *section.blocks])


def leak_section(folder: ResultFolder) -> Section:
    """Return the section of a report without other near-duplicates."""
    return Section("duplicates", "Near-duplicates and leaks", "", leak_blocks(folder))
