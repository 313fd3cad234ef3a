"""Parsing boxes: what is written is read, and no text makes it fail otherwise than by a UserError."""

import csv
import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from transferkit.data.image_table import ImageTable
from transferkit.embed.regions import Box, match_boxes, read_boxes
from transferkit.errors import UserError

LOOSE = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
NUMBER = st.floats(-1e6, 1e6, allow_nan=False)
WORD = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), min_size=1, max_size=12)
SIZE = st.floats(0.01, 1e6)


@st.composite
def a_box(draw: st.DrawFn) -> tuple[str, float, float, float, float, str | None]:
    x, y = draw(NUMBER), draw(NUMBER)
    label = draw(st.none() | WORD.map(str.strip).filter(bool))
    return draw(WORD).removeprefix("./") or "a", x, y, x + draw(SIZE), y + draw(SIZE), label


@LOOSE
@given(rows=st.lists(a_box(), min_size=1, max_size=8))
def test_csv_round_trip(tmp_path: Path, rows: list[tuple[Any, ...]]) -> None:
    with (tmp_path / "boxes.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["label", "path", "x2", "y2", "x1", "y1", "more"])  # in any order
        writer.writerows([label, path, x2, y2, x1, y1, ""] for path, x1, y1, x2, y2, label in rows)
    assert read_boxes(tmp_path / "boxes.csv") == [Box(number, *row) for number, row in enumerate(rows, 1)]


@LOOSE
@given(rows=st.lists(a_box(), min_size=1, max_size=8))
def test_coco_round_trip(tmp_path: Path, rows: list[tuple[Any, ...]]) -> None:
    paths = sorted({row[0] for row in rows})
    labels = sorted({row[5] for row in rows if row[5]})
    content = {
        "images": [{"id": 7 + n, "file_name": path} for n, path in enumerate(paths)],
        "categories": [{"id": n, "name": label} for n, label in enumerate(labels)],
        "annotations": [
            {"id": 50 + n, "image_id": 7 + paths.index(path), "bbox": [x1, y1, x2 - x1, y2 - y1]}
            | ({"category_id": labels.index(label)} if label else {})
            for n, (path, x1, y1, x2, y2, label) in enumerate(rows)
        ],
    }
    (tmp_path / "coco.json").write_text(json.dumps(content), encoding="utf-8")
    found = read_boxes(tmp_path / "coco.json")
    assert [(box.number, box.path, box.label) for box in found] == [(50 + n, r[0], r[5]) for n, r in enumerate(rows)]
    for box, row in zip(found, rows, strict=True):
        assert box[2:6] == pytest.approx(row[1:5], abs=1e-9, rel=1e-12)


PARTS = ["path", "x1", ",", "\n", '"', "nan", "1", "a,1,2,3,4\n"]


@LOOSE
@given(text=st.text() | st.lists(st.sampled_from(PARTS)).map("".join))
def test_no_text_breaks_the_csv_reader(tmp_path: Path, text: str) -> None:
    file = tmp_path / "boxes.csv"
    file.write_text("path,x1,y1,x2,y2\n" + text, encoding="utf-8", errors="replace")
    only_boxes_or_a_user_error(file)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["images", "annotations", "categories", "id", "image_id", "bbox", "file_name", "name"]),
            inner,
        )
    ),
    max_leaves=25,
)


@LOOSE
@given(content=st.fixed_dictionaries({"images": JSON, "annotations": st.lists(JSON)}) | JSON)
def test_no_json_breaks_the_coco_reader(tmp_path: Path, content: Any) -> None:
    file = tmp_path / "boxes.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    only_boxes_or_a_user_error(file)


def only_boxes_or_a_user_error(file: Path) -> None:
    found = []
    with suppress(UserError):
        found = read_boxes(file)
        assert found
    for box in found:
        assert box.path and all(map(math.isfinite, box[2:6])) and not box.is_empty


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("a.png,1,1,5,1", "row 2: the box 1, 1, 5, 1 is empty"),
        ("a.png,5,1,1,9", "row 2: the box 5, 1, 1, 9 is empty"),
        ("a.png,1,x,5,9", "row 2: 1, x, 5, 9 are not four finite numbers"),
        ("a.png,1,2,3,inf", "row 2: 1, 2, 3, inf are not four finite numbers"),
        ("a.png,1,2,3", "row 2: 1, 2, 3, None are not four finite numbers"),
        (",1,2,3,4", "row 2: no image is named"),
        ("a,b.png,1,2,3,4", "row 2: more cells than columns"),
    ],
)
def test_faulty_rows_are_named(tmp_path: Path, row: str, says: str) -> None:
    file = tmp_path / "boxes.csv"
    file.write_text(f"path,x1,y1,x2,y2\na.png,0,0,1,1\n{row}\n")
    with pytest.raises(UserError) as error:
        read_boxes(file)
    assert says in str(error.value)
    file.write_text("path,x1,y1,x2,y2\na.png,0,0,1,1\n" + f"{row}\n" * 9)
    with pytest.raises(UserError, match=r"row 2: .* and 6 more; correct or remove them"):
        read_boxes(file)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("b.csv", "path,x1,x2\n", "no column y1, y2"),
        ("b.csv", "", "no column path"),
        ("b.csv", "path,x1,y1,x2,y2\n", "has no boxes"),
        ("b.json", "[]", "it needs the lists images and annotations"),
        ("b.json", "{", "cannot be read"),
        ("b.json", '{"images": [], "annotations": [{"id": 4, "bbox": [1, 2, 3]}]}', "row 4: bbox '\\[1, 2, 3\\]'"),
        ("b.json", '{"images": [], "annotations": [{"id": 4, "bbox": [1, 2, 3, 4]}]}', "row 4: no image is named"),
        ("b.txt", "", "give a .csv"),
    ],
)
def test_faulty_files(tmp_path: Path, name: str, text: str, says: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=says):
        read_boxes(tmp_path / name)
    with pytest.raises(UserError, match="cannot be read"):
        read_boxes(tmp_path / f"missing-{name.replace('txt', 'csv')}")


ANNOTATION = {"id": 4, "image_id": 1, "category_id": 7, "bbox": [1, 2, 3, 4]}
COCO = {
    "images": [{"id": 1, "file_name": "a.png"}],
    "annotations": [ANNOTATION],
    "categories": [{"id": 7, "name": "ant"}],
}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"annotations": [ANNOTATION | {"id": 10**30}]}, "annotation at position 0: its id exceeds 64 bits"),
        ({"annotations": [ANNOTATION, ANNOTATION]}, "row 4: annotation at position 1 has the same id"),
        ({"annotations": [ANNOTATION | {"category_id": 9}]}, "row 4: category_id '9' is not among the categories"),
        ({"categories": []}, "row 4: category_id '7' is not among the categories with a name"),
        ({"categories": COCO["categories"] * 2}, "categories has the id 7 more than once"),
        ({"images": COCO["images"] * 2}, "images has the id 1 more than once"),
        ({"annotations": [ANNOTATION | {"bbox": [10**400, 1.5, 2.5, 3]}]}, "cannot be read: int too large"),
    ],
)
def test_faulty_coco_files(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    file = tmp_path / "b.json"
    file.write_text(json.dumps(COCO | change))
    with pytest.raises(UserError, match=says) as error:
        read_boxes(file)
    assert str(error.value).startswith((f"boxes {file}", f"`boxes` is {file}"))


def test_coco_without_categories_has_no_labels(tmp_path: Path) -> None:
    file = tmp_path / "b.json"
    file.write_text(json.dumps(COCO))
    assert read_boxes(file) == [Box(4, "a.png", 1, 2, 4, 6, "ant")]
    file.write_text(json.dumps({name: COCO[name] for name in ("images", "annotations")}))
    assert read_boxes(file) == [Box(4, "a.png", 1, 2, 4, 6)]


def test_boxes_for_images_that_are_not_there() -> None:
    images = ImageTable("/r", ("a.png",), (None,), (None,), "photos")
    boxes = [Box(1, "a.png", 0, 0, 1, 1), Box(2, "../a.png", 0, 0, 1, 1), Box(3, "b.png", 0, 0, 1, 1)]
    match_boxes("boxes.csv", boxes[:1], images)
    with pytest.raises(UserError, match=r"row 2: '../a.png' is not among the 1 images of photos; row 3: 'b.png'"):
        match_boxes("boxes.csv", boxes, images)


@given(box=a_box(), height=st.integers(1, 500), width=st.integers(1, 500))
def test_clipping(box: tuple[Any, ...], height: int, width: int) -> None:
    whole = Box(1, *box)
    part = whole.clip(height, width)
    assert part.clip(height, width) == part
    if not part.is_empty:
        assert max(0, whole.x1) == part.x1 < part.x2 == min(width, whole.x2)
        assert max(0, whole.y1) == part.y1 < part.y2 == min(height, whole.y2)
    else:
        assert whole.x2 <= 0 or whole.y2 <= 0 or whole.x1 >= width or whole.y1 >= height


@pytest.mark.parametrize("method", [None, []])
def test_rows_that_are_no_box_are_refused_or_skipped(tmp_path: Path, method: list[str] | None) -> None:
    """COCO's own train2017 has boxes of height 0."""
    boxes = [[5, 5, 20, 20], [5, 5, 1.03, 0.0], [5, 5, -1, 9], [1, 2, 3], [float("nan"), 0, 1, 1], [1, 1, 2, 2]]
    file = tmp_path / "b.json"
    annotations = [{"id": number, "image_id": 1, "bbox": box} for number, box in enumerate(boxes)]
    file.write_text(json.dumps({"images": COCO["images"], "annotations": annotations}))
    if method is None:
        with pytest.raises(UserError, match=r"row 1: the box .* is empty .*; row 2: .*; row 3: .* and 1 more"):
            read_boxes(file)
        return
    assert [box.number for box in read_boxes(file, method)] == [0, 5]
    assert [fault.split(":")[0] for fault in method] == ["row 1", "row 2", "row 3", "row 4"]
    file.write_text(json.dumps({"images": COCO["images"], "annotations": annotations[1:5]}))
    with pytest.raises(UserError, match="row 1: the box"):
        read_boxes(file, [])


def test_boxes_without_an_image_are_skipped() -> None:
    images = ImageTable("/r", ("a.png",), (None,), (None,), "photos")
    boxes = [Box(1, "a.png", 0, 0, 1, 1), Box(3, "b.png", 0, 0, 1, 1)]
    skipped: list[str] = []
    assert match_boxes("boxes.csv", boxes, images, skipped) == boxes[:1]
    assert skipped == ["row 3: 'b.png' is not among the 1 images of photos"]
    with pytest.raises(UserError, match="row 3"):
        match_boxes("boxes.csv", boxes[1:], images, skipped)


@pytest.mark.parametrize(
    ("corners", "size", "fault"),
    [
        ((5, 5, 25, 25), (40, 60), None),
        ((5, 5, 25, 25), None, None),
        (
            (5, 5, 25, 25),
            (60, 40),
            "the boxes are for an image of 40 x 60 pixels, it is upright 60 x 40: for the image before",
        ),
        ((5, 5, 25, 25), (80, 120), "the boxes are for an image of 120 x 80 pixels, it is upright 60 x 40"),
        ((0.1, 0.2, 0.5, 0.6), None, "the box 0.1, 0.2, 0.5, 0.6 looks like fractions of the image; give pixels"),
        ((0, 0, 1, 0.5), None, "the box 0, 0, 1, 0.5 looks like fractions"),
        ((0, 0, 1, 1), None, "the box 0, 0, 1, 1 looks like fractions"),  # rather than the first pixel
        ((0.5, 0.5, 1.5, 1.5), None, None),
        ((60, 0, 70, 10), None, "the box 60, 0, 70, 10 lies outside of its image of 60 x 40 pixels"),
    ],
)
def test_boxes_that_cannot_be_of_their_image(
    corners: tuple[float, ...], size: tuple[int, int] | None, fault: str | None
) -> None:
    found = Box(1, "a.png", *corners, size=size).fault(40, 60)
    assert found == fault or (fault is not None and found is not None and found.startswith(fault))


@pytest.mark.parametrize(
    ("said", "size"),
    [
        ({"width": 60, "height": 40}, (40, 60)),
        ({"width": 60.0, "height": 40}, (40, 60)),
        ({"width": 60}, None),
        ({"width": 0, "height": 0}, None),  # as some tools write what they do not know
        ({"width": "60", "height": "40"}, None),
        ({"width": None, "height": None}, None),
        ({"width": float("nan"), "height": 40}, None),
        ({"width": 1e300, "height": 1e300}, None),
    ],
)
def test_the_size_that_coco_gives(tmp_path: Path, said: dict[str, Any], size: tuple[int, int] | None) -> None:
    (tmp_path / "b.json").write_text(json.dumps(COCO | {"images": [COCO["images"][0] | said]}))  # type: ignore[dict-item, index]
    assert read_boxes(tmp_path / "b.json")[0].size == size
