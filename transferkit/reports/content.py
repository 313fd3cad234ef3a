"""What a report is made of: plain data that the templates turn into HTML. No file is read here, no tag is written."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from transferkit.reports.numbers import Number

Cell = str | Number | Markup | None
"""Of a table: text from data, a number, a chart, or nothing."""


@dataclass(frozen=True)
class Card:
    """One image with a few words below it.

    Attributes:
        path: of the image, as the result files have it.
        alt: what stands in its place for those who do not see it.
        lines: below it: name and value; a value without a name is the title. The path is added.
    """

    path: str
    alt: str
    lines: Sequence[tuple[str, str | Number]]


@dataclass(frozen=True)
class Gallery:
    """Images side by side.

    Attributes:
        cards: the images.
        title: above them; empty for none.
        rest: how many more there are that are not shown.
        id: an anchor, or empty.
    """

    cards: Sequence[Card]
    title: str = ""
    rest: int = 0
    id: str = ""
    kind: str = field(default="gallery", init=False)


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        columns: titles.
        rows: cells.
        summary: where not empty, the table is folded behind these words.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    summary: str = ""
    kind: str = field(default="table", init=False)


@dataclass(frozen=True)
class ConfusionCell:
    """One cell of a confusion matrix.

    Attributes:
        count: images, and where the number comes from.
        share: of the row, in [0, 1].
        id: of the gallery with its images; empty where there are none.
        alt: what the cell means.
    """

    count: Number
    share: float
    id: str
    alt: str

    @property
    def step(self) -> int:
        """Which of the ten colors it has."""
        return 0 if not self.count.value else max(1, round(9 * self.share))


@dataclass(frozen=True)
class Confusion:
    """A confusion matrix whose cells open the images that they count.

    Attributes:
        rows: names of the true classes.
        columns: names of the predicted classes.
        cells: of each row.
        galleries: of the cells.
    """

    rows: Sequence[str]
    columns: Sequence[str]
    cells: Sequence[Sequence[ConfusionCell]]
    galleries: Sequence[Gallery]
    kind: str = field(default="confusion", init=False)


@dataclass(frozen=True)
class Chart:
    """One chart.

    Attributes:
        title: above it.
        svg: the chart.
        caption: below it.
        keys: names of its lines, in the order of their colors.
    """

    title: str
    svg: Markup
    caption: str = ""
    keys: Sequence[str] = ()


@dataclass(frozen=True)
class Charts:
    """Charts side by side."""

    charts: Sequence[Chart]
    kind: str = field(default="charts", init=False)


@dataclass(frozen=True)
class MapPoint:
    """One image of a map: place in [0, 1], and what is told of it."""

    x: float
    y: float
    path: str
    label: str
    pred: str
    color: int
    shape: int


@dataclass(frozen=True)
class EmbeddingMap:
    """Images as points on a plane.

    Attributes:
        points: the images.
        legend: class name, mark and how many points it has.
        caption: how it was made, and of how many images.
    """

    points: Sequence[MapPoint]
    legend: Sequence[tuple[str, Markup, int]]
    caption: str
    kind: str = field(default="map", init=False)


@dataclass(frozen=True)
class Facts:
    """Names with values."""

    pairs: Sequence[tuple[str, Cell]]
    kind: str = field(default="facts", init=False)


@dataclass(frozen=True)
class Code:
    """Text to be copied: commands, a configuration.

    Attributes:
        text: as it is.
        summary: where not empty, it is folded behind these words.
    """

    text: str
    summary: str = ""
    kind: str = field(default="code", init=False)


@dataclass(frozen=True)
class Remark:
    """A sentence between blocks."""

    text: str
    kind: str = field(default="remark", init=False)


Block = Gallery | Table | Confusion | Charts | EmbeddingMap | Facts | Code | Remark


@dataclass(frozen=True)
class Section:
    """A part of a report with a heading.

    Attributes:
        id: anchor.
        title: heading.
        lead: a sentence below it.
        blocks: what it holds.
    """

    id: str
    title: str
    lead: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Headline:
    """What a reader takes away.

    Attributes:
        value: the one number; None where nothing was measured.
        name: what it is.
        sentence: the same in words, with the interval.
        interval: lower and upper end, 95 %.
        stats: other numbers, by name.
    """

    value: Number | None
    name: str
    sentence: str
    interval: tuple[Number, Number] | None = None
    stats: Sequence[tuple[str, Number]] = ()


UNREAD = Headline(None, "cannot be read", "The file of the results is not as it was written; the notes say more.")
"""Instead of the headline of a file that somebody has changed."""


@dataclass(frozen=True)
class Report:
    """A whole report.

    Attributes:
        title: what it is of.
        kicker: kind of result, above the title.
        headline: first of all.
        sections: in the order people read.
        missing: what is not in it, and why, one line each.
        version: of transferkit that made the results; empty where unknown.
    """

    title: str
    kicker: str
    headline: Headline
    sections: Sequence[Section]
    missing: list[str] = field(default_factory=list)
    version: str = ""

    def paths(self) -> list[str]:
        """Return the paths of all images that it shows, the most important first; those of a map come last."""
        galleries, points = [], []
        for block in (block for section in self.sections for block in section.blocks):
            if isinstance(block, Gallery):
                galleries.append(block)
            elif isinstance(block, Confusion):
                galleries += block.galleries
            elif isinstance(block, EmbeddingMap):
                points += [point.path for point in block.points]
        shown = [card.path for gallery in galleries for card in gallery.cards]
        return list(dict.fromkeys([*shown, *points]))
