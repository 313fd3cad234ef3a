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

from transferkit.data.sources import ImageTable
from transferkit.errors import UserError
from transferkit.regions import Box, match_boxes, read_boxes

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
        (",1,2,3,4", "row 2: it names no image"),
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
    with pytest.raises(UserError, match=r"row 2: .*; and 6 more rows; correct or remove them"):
        read_boxes(file)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("b.csv", "path,x1,x2\n", "no column y1, y2"),
        ("b.csv", "", "no column path"),
        ("b.csv", "path,x1,y1,x2,y2\n", "holds no boxes"),
        ("b.json", "[]", "no lists images and annotations"),
        ("b.json", "{", "cannot be read"),
        ("b.json", '{"images": [], "annotations": [{"id": 4, "bbox": [1, 2, 3]}]}', "row 4: bbox '\\[1, 2, 3\\]'"),
        ("b.json", '{"images": [], "annotations": [{"id": 4, "bbox": [1, 2, 3, 4]}]}', "row 4: it names no image"),
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
        ({"annotations": [ANNOTATION | {"id": 10**30}]}, "annotation at position 0: its id is beyond 64 bits"),
        ({"annotations": [ANNOTATION, ANNOTATION]}, "row 4: annotation at position 1 has this id again"),
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
    assert str(error.value).startswith(f"--boxes {file}")


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
