"""Manifests: what is read, and the one line that each fault gets."""

import random
import time
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from transferkit.data import manifest
from transferkit.data.image_table import open_images
from transferkit.data.manifest import read_manifest
from transferkit.data.scan import scan
from transferkit.errors import UserError


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


def refusal(file: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_manifest(file)
    message = str(caught.value)
    assert "\n" not in message
    assert "\x1b" not in message
    assert repr(str(file)) in message
    return message


def test_rows_are_normalised(tmp_path: Path) -> None:
    lines = [
        "\ufeffsplit,path,label",
        "VALID,./a/../b.png, cat ",
        ',"c,d.png",""',
        "",
        f"train,{tmp_path}/x/e.png,0",
    ]
    assert read_manifest(write(tmp_path / "m.csv", "\r\n".join(lines))) == [
        ("b.png", "cat", "val"),
        ("c,d.png", None, None),
        ("x/e.png", "0", "train"),
    ]


def test_columns_beside_the_three_are_ignored(tmp_path: Path) -> None:
    columns = {
        "path": ["a.png", "b.png"],
        "extra": [[1], [2]],
        "label": pa.array(["u", None]).dictionary_encode(),
    }
    pq.write_table(pa.table(columns), tmp_path / "m.parquet")
    assert read_manifest(tmp_path / "m.parquet") == [("a.png", "u", None), ("b.png", None, None)]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (pa.array([0.0, 1.0, float("nan"), None]), ["0", "1", None, None]),
        (pa.array([1.5, float("nan"), 0.0]).dictionary_encode(), ["1.5", None, "0"]),
        (pa.array(["0", "1", "nan"]), ["0", "1", None]),
        (pa.array([None, None], pa.null()), [None, None]),
        (["0", "1.0", "nan", "NaN", ""], ["0", "1.0", None, None, None]),
        (["nan", "pita", "7", ""], ["nan", "pita", "7", None]),
        (["nan", "nan"], ["nan", "nan"]),
    ],
)
def test_nan_among_numbers_is_no_label(tmp_path: Path, labels: pa.Array | list[str], expected: list[str]) -> None:
    paths = [f"{row}.png" for row in range(len(labels))]
    if isinstance(labels, list):
        lines = [f"{path},{label}" for path, label in zip(paths, labels, strict=True)]
        file = write(tmp_path / "m.csv", "\n".join(["path,label", *lines]))
    else:
        file = tmp_path / "m.parquet"
        pq.write_table(pa.table({"path": paths, "label": labels}), file)
    assert [row.label for row in read_manifest(file)] == expected


@pytest.mark.parametrize(
    ("columns", "named"),
    [
        ("path,labels", "labels"),
        ("width,path,Class", "Class"),
        ("path,split", ""),
        (",path", ""),
        ("path,label,class", ""),
    ],
)
def test_labels_by_another_name_are_missed_aloud(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, columns: str, named: str
) -> None:
    cells = ",".join("train" if name == "split" else "a" for name in columns.split(","))
    read_manifest(write(tmp_path / "m.csv", f"{columns}\n{cells}\n"))
    says = f"{str(tmp_path / 'm.csv')!r} has no column 'label' (it has {named!r}): its images have no labels"
    assert caplog.messages == ([says] if named else [])


def test_a_manifest_known_by_a_link_takes_absolute_paths(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "alias").symlink_to(tmp_path / "real")
    file = write(tmp_path / "real" / "m.csv", f"path\n{tmp_path}/alias/a.png\n{tmp_path}/real/b.png\n")
    expected = [("a.png", None, None), ("b.png", None, None)]
    assert read_manifest(file) == expected
    assert read_manifest(tmp_path / "alias" / "m.csv") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("path,split\na,train\nb,dev2\n", "row 2: unknown split 'dev2'; use train, val or test"),
        ("path\na.png\nb.png\n./a.png\n", "row 3: 'a.png' is already row 1"),
        ("path,label\n,x\n", "row 1: the path is empty"),
        ("path,label\na,b,c\n", "row 1: more cells than columns"),
        ("Filename,label\na,b\n", "has no column 'path'; rename the nearest one, 'Filename'"),
        ("label,image\na,b\n", "has no column 'path'; rename the nearest one, 'image'"),
        ("name;label\na;b\n", "has no column 'path'; rename the nearest one, 'name'"),
        ("", "is empty; give it the columns"),
        ("path,label\n", "has no rows; give it one per image"),
        ("path,label,label\na,b,c\n", "has the column 'label' twice; rename or remove one of them"),
        ("path,path,label\na,b,c\n", "has the column 'path' twice"),
        ('path\n"a.png\n', "as a CSV file in UTF-8 ("),
        ("path\n../a.png\n", "row 1: '../a.png' leads out of the manifest's folder"),
        ("path\nok.png\nx/../../a.png\n", "row 2: 'x/../../a.png' leads out"),
        ("path\n/etc/passwd\n", "row 1: '/etc/passwd' leads out"),
        ("path\n..\n", "row 1: '..' leads out"),
        ("path\nfile_link.png\n", "row 1: 'file_link.png' leads out"),
        ("path\nfolder_link/x.png\n", "row 1: 'folder_link/x.png' leads out"),
        ("path\n../\x1b[31m.png\n", r"row 1: '../\x1b[31m.png' leads out"),
        ("path\na\0b\n", "row 1: the path is empty or not a path"),
        ("\n \n", "is empty; give it the columns"),
        (f"{100 * chr(0)}\na\n", f"rename the nearest one, {40 * chr(0)!r}"),
    ],
)
def test_one_line_names_the_fault(tmp_path: Path, text: str, expected: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    write(tmp_path / "secret.png", "")
    (root / "file_link.png").symlink_to(tmp_path / "secret.png")
    (root / "folder_link").symlink_to(tmp_path)
    assert expected in refusal(write(root / "m.csv", text))


def test_links_that_stay_inside_or_loop_are_no_fault(tmp_path: Path) -> None:
    write(tmp_path / "a.png", "")
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    assert len(read_manifest(write(tmp_path / "m.csv", "path\nlink.png\nloop.png\n"))) == 2


@pytest.mark.parametrize(
    ("path", "link"), [("gone.png", "gone.png"), ("./a/gone.png", "a/gone.png"), ("shut/a/x.png", "shut")]
)
def test_a_broken_link_that_leads_out_is_refused_as_missing(tmp_path: Path, path: str, link: str) -> None:
    root, target = tmp_path / "root", tmp_path / "elsewhere"
    (root / "a").mkdir(parents=True)
    (root / link).symlink_to(target)
    file = write(root / "m.csv", f"path\n{path}\n")
    assert f"row 1: {path!r} is missing: {link!r} is a broken link; restore its target or remove" in refusal(file)
    assert "broken link" in refusal(write(root / "m.csv", "path\n" + "".join(f"{n}.png\n" for n in range(40)) + path))
    target.mkdir()
    assert f"{path!r} leads out of the manifest's folder" in refusal(write(root / "m.csv", f"path\n{path}\n"))


def test_files_that_are_no_table(tmp_path: Path) -> None:
    latin = tmp_path / "latin.csv"
    latin.write_bytes("path\ncafé.png\n".encode("latin-1"))
    assert "as a CSV file in UTF-8" in refusal(latin)
    assert "as a Parquet file" in refusal(write(tmp_path / "text.parquet", "path\na.png\n"))
    whole = tmp_path / "whole.parquet"
    pq.write_table(pa.table({"path": [f"{row}.png" for row in range(999)]}), whole)
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(whole.read_bytes()[:-200])
    assert "as a Parquet file" in refusal(cut)
    nested = tmp_path / "nested.parquet"
    pq.write_table(pa.table({"path": [["a"], ["b"]]}), nested)
    assert "as a Parquet file" in refusal(nested)
    other = tmp_path / "other.parquet"
    pq.write_table(pa.table({"image_path": ["a"]}), other)
    assert "rename the nearest one, 'image_path'" in refusal(other)
    empty = tmp_path / "empty.parquet"
    pq.write_table(pa.table({"path": pa.array([], pa.string())}), empty)
    assert "has no rows" in refusal(empty)
    doubled = tmp_path / "doubled.parquet"
    pq.write_table(pa.table([["a"], ["b"], ["c"]], names=["path", "label", "label"]), doubled)
    assert "has the column 'label' twice" in refusal(doubled)


def test_a_parquet_file_that_unpacks_into_gigabytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "MAX_PARQUET_BYTES", 2**24)
    bomb = tmp_path / "bomb.parquet"
    text = "a" * 2**18
    with pq.ParquetWriter(bomb, pa.schema([("path", pa.string())]), compression="zstd", use_dictionary=False) as file:
        file.write_table(pa.table({"path": [text] * 65}))
    assert bomb.stat().st_size < 2**16
    assert "unpack to" in refusal(bomb)
    again = tmp_path / "again.parquet"
    pq.write_table(pa.table({"path": pa.array([text] * 200)}), again)
    assert again.stat().st_size < 2**20
    assert "unpack to" in refusal(again), "a path that is repeated, and so stands in the file once"
    repeated = tmp_path / "repeated.parquet"
    labels = pa.DictionaryArray.from_arrays(pa.array([0] * 8_000, pa.int32()), pa.array([text]))
    pq.write_table(pa.table({"path": [f"{row}.png" for row in range(8_000)], "label": labels}), repeated)
    rows = read_manifest(repeated)
    assert len({id(row.label) for row in rows}) < 100, "2 GB if every row had its own copy"


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_mutated_manifests_are_read_or_refused(tmp_path: Path, suffix: str) -> None:
    whole = tmp_path / f"whole{suffix}"
    columns = {"path": [f"{row}.png" for row in range(20)], "label": ["a", "b"] * 10, "split": ["train"] * 20}
    if suffix == ".csv":
        lines = [",".join(cells) for cells in zip(*columns.values(), strict=True)]
        write(whole, "\n".join(["path,label,split", *lines]))
    else:
        pq.write_table(pa.table(columns), whole)
    data, draw, refused = whole.read_bytes(), random.Random(0), 0
    for _ in range(150):
        mutant = bytearray(data[: draw.choice([len(data), draw.randrange(len(data))])])
        for _ in range(draw.randrange(4)):
            mutant[draw.randrange(len(mutant) or 1) : 0] = bytes([draw.randrange(256)])
        (tmp_path / f"m{suffix}").write_bytes(mutant)
        try:
            table = open_images(tmp_path / f"m{suffix}")
        except UserError:
            refused += 1
        else:
            assert not any(path.startswith(("/", "..")) for path in table.paths)
    assert refused > 10


def test_paths_may_lie_in_another_folder(tmp_path: Path) -> None:
    """Relative to it or absolute, the folder known by whatever name; but nowhere else."""
    root, lists = tmp_path / "images", tmp_path / "lists"
    (root / "a").mkdir(parents=True)
    (tmp_path / "alias").symlink_to(root)
    (root / "out").symlink_to(tmp_path)
    (root / "a" / "out.png").symlink_to(write(tmp_path / "secret.png", ""))
    rows = f"path\na/0.png\n{root}/a/1.png\n{tmp_path}/alias/a/2.png\n{root}/a/../b.png\n"
    file = write(lists / "m.csv", rows)
    expected = [("a/0.png", None, None), ("a/1.png", None, None), ("a/2.png", None, None), ("b.png", None, None)]
    assert read_manifest(file, image_root=root) == expected
    table = open_images(file, tmp_path / "alias")
    assert table.root == str(root) and table.paths == ("a/0.png", "a/1.png", "a/2.png", "b.png")
    for path in (
        "../secret.png",
        f"{tmp_path}/secret.png",
        "out/secret.png",
        "a/out.png",
        f"{root}/a/out.png",
        "/a/0.png",
    ):
        with pytest.raises(UserError, match=f"row 1: '{path}' leads out of {root}; move .* as `image_root`"):
            read_manifest(write(lists / "m.csv", f"path\n{path}\n"), image_root=root)
    with pytest.raises(UserError, match=r"leads out of the manifest's folder; .* as `image_root`"):
        read_manifest(write(lists / "m.csv", f"path\n{root}/a/1.png\n"))


@pytest.mark.parametrize(
    ("source", "root", "expected"),
    [
        ("m.csv", "nowhere", "`image_root` .*nowhere' is not a folder; give the one"),
        ("m.csv", "m.csv", "`image_root` .*m.csv' is not a folder; give the one"),
        ("", "", "`image_root` is for a manifest .*, not for .*; leave it out"),
    ],
)
def test_an_image_root_that_is_none(tmp_path: Path, source: str, root: str, expected: str) -> None:
    write(tmp_path / "m.csv", "path\na.png\n")
    for entrance in (open_images, scan):
        with pytest.raises(UserError, match=f"^{expected}"):
            entrance(tmp_path / source, image_root=tmp_path / root)


@pytest.mark.parametrize("count", [5, 50])
def test_a_link_among_many_files_is_found(tmp_path: Path, count: int) -> None:
    """Where its folder was listed, and where every file was asked."""
    names = [f"{number:02d}.png" for number in range(count)]
    for folder in ("a", "b"):
        (tmp_path / "root" / folder).mkdir(parents=True)
    (tmp_path / "root" / "b" / names[-1]).symlink_to(write(tmp_path / "secret.png", ""))
    rows = [f"{folder}/{name}" for folder in ("a", "b") for name in names]
    file = write(tmp_path / "root" / "m.csv", "\n".join(["path", *rows]))
    faults: list[str] = []
    assert len(read_manifest(file, faults)) == 2 * count - 1
    assert len(faults) == 1 and f"row {2 * count}: 'b/{names[-1]}' leads out" in faults[0]


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_row_takes_little_and_always_as_much(tmp_path: Path, suffix: str) -> None:
    """Text of 34 letters takes 83 bytes in Python, and a place in each of three columns 24."""
    rows = [(f"class_{row % 1000:04d}/image_{row:08d}.jpeg", f"{row % 1000:04d}", "train") for row in range(8_000)]
    random.Random(0).shuffle(rows)
    taken, peaks = {}, {}
    for count in (8_000, 4_000, 8_000) * 2:  # some pay for imports, or for room in Python's table of interned names
        columns = dict(zip(("path", "label", "split"), map(list, zip(*rows[:count], strict=True)), strict=True))
        file = tmp_path / f"{count}{suffix}"
        if suffix == ".csv":
            write(file, "\n".join(["path,label,split", *map(",".join, rows[:count])]))
        else:
            pq.write_table(pa.table(columns), file)
        tracemalloc.start()
        table = open_images(file)
        kept, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        taken[count] = min(kept, taken.get(count, kept))
        peaks[count] = min(peak, peaks.get(count, peak))
        assert len(table) == count
    assert taken[8_000] / 8_000 < 130 and peaks[8_000] / 8_000 < 250
    assert taken[8_000] / taken[4_000] < 2 * 1.1 and peaks[8_000] / peaks[4_000] < 2 * 1.1


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_million_rows(tmp_path: Path, suffix: str) -> None:
    """Processor time grows with the rows, within a tenth; 31 s once, 4 s now."""
    seconds = []
    for count in (500_000, 1_000_000):
        paths = [f"class_{row % 1000:04d}/image_{row:08d}.jpeg" for row in range(count)]
        random.Random(0).shuffle(paths)
        table = pa.table({"path": paths, "label": [path[6:10] for path in paths]})
        file = tmp_path / f"{count}{suffix}"
        pq.write_table(table, file) if suffix == ".parquet" else pa.csv.write_csv(table, file)
        del paths, table
        start = time.process_time()
        assert len(open_images(file)) == count
        seconds.append(time.process_time() - start)
    assert seconds[1] < 6 and seconds[1] / seconds[0] < 2 * 1.1 + 0.2  # a sort is a little more than linear
