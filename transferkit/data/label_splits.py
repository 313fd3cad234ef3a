"""Iterative stratification: images of several labels shared out so that every part has its share of every label.

Sechidis, Tsoumakas and Vlahavas 2011, "On the stratification of multi-label data".
"""

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence

Counts = Mapping[str, Counter[Hashable]]
"""Unit -> label -> number of its images that have it."""


def deal_labels(
    counts: Counts, rows: Mapping[str, int], shares: Sequence[float], order: Callable[[str], bytes]
) -> dict[str, int]:
    """Deal units, images or groups of them, to parts.

    The label that the fewest undealt images have is dealt first: each of its units goes to the part that lacks most
    images of it; of equals to the one that lacks most images at all, then to the first. What has no label comes last.

    Args:
        counts: labels of each unit.
        rows: unit -> number of its images.
        shares: expected share of each part, above 0, together 1.
        order: of units with the same label, pseudorandom.

    Returns:
        Unit -> part, from 0.
    """
    left: Counter[Hashable] = Counter()
    units_of: dict[Hashable, list[str]] = {}
    for unit in sorted(counts, key=order):
        left.update(counts[unit])
        for label in counts[unit]:
            units_of.setdefault(label, []).append(unit)
    lack = {label: [share * count for share in shares] for label, count in left.items()}
    lack_rows = [share * sum(rows.values()) for share in shares]
    part_of: dict[str, int] = {}

    def deal_to_neediest(unit: str, need: Sequence[float]) -> None:
        part = max(range(len(shares)), key=lambda part: (round(need[part], 9), round(lack_rows[part], 9), -part))
        part_of[unit] = part
        lack_rows[part] -= rows[unit]
        for label, count in counts[unit].items():
            lack[label][part] -= count
            left[label] -= count

    while rare := [label for label, count in left.items() if count > 0]:
        label = min(rare, key=lambda label: (left[label], str(label)))
        for unit in units_of[label]:
            if unit not in part_of:
                deal_to_neediest(unit, lack[label])
    for unit in sorted(counts, key=order):
        if unit not in part_of:
            deal_to_neediest(unit, lack_rows)
    return part_of
