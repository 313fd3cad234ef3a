"""Scan: every fault that was put into a folder is found there, under its name, and nothing else."""

import os
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import image_corpus
from tests.data.scan.folders import classes, data_of, found, put
from tests.image_corpus import encode, photo
from tests.images.tiffs import picture
from transferkit.data import image_table, listing
from transferkit.data.image_table import open_images
from transferkit.data.integrity import recall, verify
from transferkit.data.scan import KINDS, scan
from transferkit.data.scan import file_findings as scan_files
from transferkit.errors import UserError
from transferkit.images.decoding import Fault, decode

# What each broken file of the corpus is called; a case that is not here is `unreadable`.
BROKEN_KINDS = {
    "truncated": "half.jpg half.png half.gif half.webp half.bmp half.tif half.ppm half.jp2 no-end-marker.jpg "
    "progressive-cut.jpg no-end-chunk.png second-frame-cut.gif no-codestream.jp2 wide-claim.jpg "
    "strips-missing.tif zero-tail.jpg no-pixels.png",
    "too-large": "bomb.png under-pillows-limit.png bomb.jpg long-side.png bomb.gif bomb.bmp bomb.ppm many-scans.jpg",
    "zero-byte": "empty.jpg",
    "unsupported-pixels": "negative.tif float.tif",
}
EITHER = {"zero-tail.jpg", "no-pixels.png"}  # the decoder's version decides: truncated or unreadable
ODD = {
    "animated": "two-pictures.mpo animated.gif animated.png animated.webp pages.tif",
    "rotated": "turned.png turned.tif exif-2.jpg exif-3.jpg exif-4.jpg exif-5.jpg exif-6.jpg exif-7.jpg exif-8.jpg",
    "wrong-extension": "png-named.jpg",
    "tiny": "rgb-1x1.png rgb-2x3.png rgb-1x40.png rgb-40x1.png rgb-7x200.png one-wide.jpg",
    "odd-mode": "bilevel.png palette.png bilevel.bmp cmyk.jpg rgba.png rgba.tif rgba.webp grey-alpha.png "
    "fading-palette.png palette-key.png palette-key.gif invisible.png grey16.png rgb16.png grey16-key.png grey16.tif "
    "grey16-big-endian.tif grey16.pgm grey32.tif still.gif no-trailer.gif animated.gif cmyk.tif lab.tif ycbcr.tif",
}


def test_a_clean_folder_has_no_findings(tmp_path: Path) -> None:
    report = scan(classes(tmp_path / "photos"))
    assert found(report) == {}
    assert report.errors == 0
    assert len(report.table) == 8


def test_every_broken_file_of_the_corpus_is_an_error_by_its_name(tmp_path: Path) -> None:
    expected = {name: kind for kind, names in BROKEN_KINDS.items() for name in names.split()}
    image_corpus.write(tmp_path, image_corpus.broken())
    report = scan(tmp_path)
    kinds = {finding.path: finding.kind for finding in report.findings if finding.severity == "error"}
    assert kinds.keys() == {case.name for case in image_corpus.broken()}
    for name, kind in kinds.items():
        assert kind == expected.get(name, "unreadable") or (name in EITHER and kind == "unreadable"), name
    reasons = {finding.path: finding.detail for finding in report.findings if finding.severity == "error"}
    assert all(case.reason in reasons[case.name] for case in image_corpus.broken())


def test_every_good_file_of_the_corpus_passes_with_its_oddities(tmp_path: Path) -> None:
    image_corpus.write(tmp_path, image_corpus.good())
    report = scan(tmp_path)
    assert report.errors == 0
    by_kind = {kind: set(paths) for kind, paths in found(report).items()}
    assert {kind: by_kind.pop(kind) for kind in ODD} == {kind: set(names.split()) for kind, names in ODD.items()}
    assert by_kind.keys() <= {"no-labels", "duplicate", "blank"}
    assert by_kind["blank"] == {"rgb-1x1.png"}


def test_the_second_scan_decodes_nothing_and_says_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = classes(tmp_path / "photos")
    (root / "train/a/half.jpg").write_bytes(data_of("half.jpg"))
    first = scan(root)
    table = open_images(root)
    assert recall(table) == dict.fromkeys(table.paths) | {"train/a/half.jpg": Fault("truncated", "truncated JPEG")}
    decoded: list[bytes] = []
    monkeypatch.setattr(scan_files, "decode", lambda data: decoded.append(data) or decode(data))
    assert scan(root) == first
    assert decoded == [data_of("half.jpg")], "a broken image is looked at anew: its reason may change"


def test_what_fit_decoded_is_not_decoded_again_and_the_other_way_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = classes(tmp_path / "photos")
    verify(open_images(root))
    monkeypatch.setattr(scan_files, "decode", lambda data: pytest.fail("decoded again"))
    assert scan(root).findings == ()
    monkeypatch.setattr(image_table, "read_image", lambda path: pytest.fail("decoded again"))
    assert verify(open_images(root)) == {}


@pytest.mark.parametrize("workers", [1, 5])
def test_the_number_of_threads_does_not_matter(tmp_path: Path, workers: int) -> None:
    image_corpus.write(tmp_path, list(image_corpus.corpus()))
    first = scan(tmp_path, workers).findings
    assert len(first) > 80
    assert scan(tmp_path, 3).findings == first


def test_links(tmp_path: Path) -> None:
    root = classes(tmp_path / "photos")
    (root / "train/a/gone.png").symlink_to("nowhere.png")
    (root / "train/a/self.png").symlink_to("self.png")
    (root / "train/a/up").symlink_to(root)
    (root / "train/a/gone").symlink_to("nowhere")
    (root / "train/a/ring").symlink_to("ring")
    assert found(scan(root)) == {
        "broken-link": ["train/a/gone.png", "train/a/self.png"],
        "left-out": ["train/a/gone", "train/a/ring", "train/a/up"],
    }


def test_pipes_sockets_and_devices_are_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = classes(tmp_path / "photos")
    monkeypatch.chdir(root / "train/a")  # a socket's name is short
    os.mkfifo("pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.png")
        Path("null.png").symlink_to("/dev/null")
        assert found(scan(root)) == {"left-out": ["train/a/null.png", "train/a/pipe.png", "train/a/socket.png"]}
        assert len(open_images(root)) == 8


def test_rights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = classes(tmp_path / "photos")
    locked = root / "train/a/0.png"
    (root / "train/c").mkdir()
    read, listed = Path.read_bytes, os.scandir

    def read_bytes(path: Path) -> bytes:  # root, who runs some tests, may read everything
        if path.name == locked.name and path.parent.name == "a":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    def scandir(place: Path | int) -> object:  # pytest removes its folder by a file descriptor
        if isinstance(place, Path | str) and Path(place).name == "c":
            raise PermissionError(13, "Permission denied", str(place))
        return listed(place)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    monkeypatch.setattr(listing.os, "scandir", scandir)
    report = scan(root)
    assert found(report) == {"permission-denied": ["train/a/0.png", "train/c", "val/a/0.png"]}
    with pytest.raises(UserError, match=r"cannot read the folder .*train/c.*permission denied; change its rights"):
        open_images(root)


@pytest.mark.parametrize("name", [b"caf\xe9.png", b"caf\xe9/1.png"])
def test_names_that_are_not_utf_8(tmp_path: Path, name: bytes) -> None:
    root = classes(tmp_path / "photos")
    path = os.fsencode(root) + b"/train/a/" + name
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120 - bytes have no Path
        with open(path, "wb") as file:  # noqa: PTH123
            file.write(encode(photo(40, 40, seed=9), "PNG"))
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    report = scan(root)
    assert set(found(report)) == {"name-not-utf8"}
    assert len(report.table) == 8


def test_the_longest_names_and_deep_folders(tmp_path: Path) -> None:
    root = classes(tmp_path / "photos")
    put(root / "train/a" / ("n" * 251 + ".png"))
    put(root / "train/a" / "/".join(["deep"] * 300) / "1.png")
    report = scan(root)
    assert found(report) == {}
    assert len(report.table) == 10


def test_folders_that_link_to_one_another_end(tmp_path: Path) -> None:
    root = classes(tmp_path / "photos")
    for one in range(12):  # 12! paths without a repetition
        (root / f"train/a/{one}").mkdir()
        for other in range(12):
            (root / f"train/a/{one}/{other}").symlink_to(root / f"train/a/{other}")
    assert set(found(scan(root))) <= {"unreadable-folder", "left-out"}
    with pytest.raises(UserError, match="reached by more than 64 links"):
        open_images(root)


def test_manifests_are_read_to_the_end(tmp_path: Path) -> None:
    root = classes(tmp_path / "photos")
    (root / "link.png").symlink_to("nowhere.png")
    (tmp_path / "outside.png").write_bytes(b"x")
    rows = [
        "train/a/0.png,x,train",
        "../outside.png,x,train",
        "train/b/0.png,y,dev",
        "gone.png,y,train",
        "link.png,y,train",
        "train/a/1.png,y,val",
        "train/a/0.png,y,val",
        ",x,train",
    ]
    (root / "m.csv").write_text("\n".join(["path,label,split", *rows]))
    report = scan(root / "m.csv")
    assert found(report) == {"broken-link": ["link.png"], "faulty-row": ["m.csv"] * 4, "missing": ["gone.png"]}
    details = [finding.detail for finding in report.findings if finding.kind == "faulty-row"]
    assert [word in line for word, line in zip(("row 2:", "row 3:", "row 7:", "row 8:"), details, strict=True)] == [
        True
    ] * 4


def test_images_without_an_extension(tmp_path: Path) -> None:
    root = classes(tmp_path / "photos")
    for name, format in {"one": "PNG", "two.dat": "JPEG", "three.img": "WEBP", "four": "GIF", "five": "TIFF"}.items():
        (root / "train/a" / name).write_bytes(encode(photo(40, 40), format))
    (root / "train/a/notes.txt").write_text("RIFF is a word")
    (root / "train/a/.hidden").write_bytes(encode(photo(40, 40), "PNG"))
    assert found(scan(root)) == {
        "no-extension": [f"train/a/{name}" for name in ("five", "four", "one", "three.img", "two.dat")]
    }


def test_sources_without_files_or_labels(tmp_path: Path) -> None:
    assert found(scan("digits")) == {}
    put(tmp_path / "one.png")
    assert found(scan(tmp_path / "one.png")) == found(scan(tmp_path)) == {"no-labels": ["."]}
    (tmp_path / "empty").mkdir()
    assert found(scan(tmp_path)) == {"no-labels": ["."]}, "without classes it stands for none"
    (tmp_path / "one.png").write_bytes(data_of("half.png"))
    assert scan(tmp_path / "one.png").errors == 1


@pytest.mark.parametrize("name", ["absent", "empty", "notes.txt"])
def test_nothing_to_scan(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match=r"no such|no images|is not an image"):
        scan(tmp_path / name)


def test_every_kind_says_what_to_do() -> None:
    assert all(kind.severity in ("error", "note") and kind.remedy for kind in KINDS.values())


def test_a_large_file_is_refused_unread(tmp_path: Path) -> None:
    root = classes(tmp_path / "photos")
    with (root / "train/a/large.png").open("wb") as file:
        file.truncate(2**40)  # a hole
    assert found(scan(root)) == {"too-large": ["train/a/large.png"]}


def test_cmyk_and_grey_are_told_apart(tmp_path: Path) -> None:
    Image.new("CMYK", (40, 40)).save(tmp_path / "c.jpg")
    Image.new("L", (40, 40)).save(tmp_path / "l.jpg")
    assert found(scan(tmp_path)) == {"no-labels": ["."], "odd-mode": ["c.jpg"], "blank": ["c.jpg", "l.jpg"]}


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF"])
@pytest.mark.parametrize("size", [24, 300])
def test_images_of_one_color_are_found_in_every_scan(tmp_path: Path, format: str, size: int) -> None:
    for label, color in {"a": "white", "b": (90, 14, 200)}.items():
        (tmp_path / label).mkdir()
        Image.new("RGB", (size + 9, size), color).save(tmp_path / label / "blank.png", format)
        almost = Image.new("RGB", (size + 9, size), color)
        almost.paste("black", (3, 3, size // 2, size // 2))
        almost.save(tmp_path / label / "drawn.png", format)
        Image.fromarray(photo(size, size + 9)).save(tmp_path / label / "photo.png", format)
    first = scan(tmp_path)
    assert found(first)["blank"] == ["a/blank.png", "b/blank.png"]
    assert scan(tmp_path) == first, "also when they are known to be good"


def test_pictures_that_are_not_read_are_named_and_other_files_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = classes(tmp_path / "photos")
    (root / "train/a/0.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64))
    (root / "train/a/1.jxl").write_bytes(b"\xff\x0a" + bytes(64))
    for name in ("2.tga", "3.ICO", "4.dcm", "5.NEF", "6.psd"):
        (root / "train/a" / name).write_bytes(bytes(64))
    for name in ("a.mp4", "b.MOV", "c.pdf", "d.zip", "e.json", "f.json", "notes"):
        (root / name).touch()
    report = scan(root)
    assert {finding.path: (finding.kind, finding.detail) for finding in report.findings} == {
        "train/a/0.heic": ("needs-package", "HEIC needs the package pillow-heif (pip install pillow-heif)"),
        "train/a/1.jxl": (
            "needs-package",
            "JPEG XL needs the package pillow-jxl-plugin (pip install pillow-jxl-plugin)",
        ),
        "train/a/2.tga": ("other-format", "TGA"),
        "train/a/3.ICO": ("other-format", "ICO"),
        "train/a/4.dcm": ("other-format", "DICOM"),
        "train/a/5.NEF": ("other-format", "camera raw"),
        "train/a/6.psd": ("other-format", "Photoshop"),
    }
    assert report.ignored == {"video": 2, ".json": 2, "PDF": 1, "archive": 1, "no extension": 1}
    assert list(report.ignored.values()) == [2, 2, 1, 1, 1]
    open_images(root)
    assert "not read: 1 DICOM, 1 ICO, 1 Photoshop, 1 TGA, 1 camera raw; convert" in caplog.text
    with pytest.raises(UserError, match=r"a picture of a kind that is not read \(TGA\)"):
        open_images(root / "train/a/2.tga")


def test_pictures_of_unread_formats_and_layouts_under_other_names(tmp_path: Path) -> None:
    (tmp_path / "tga.png").write_bytes(encode(photo(40, 40), "TGA"))
    (tmp_path / "signed.tif").write_bytes(picture(np.full((40, 40, 1), 9), 8, 1, sample_format=2))
    (tmp_path / "dark.tif").write_bytes(picture(np.full((40, 40, 1), 4000), 16, 1))
    kinds = {finding.path: finding.kind for finding in scan(tmp_path).findings if finding.severity == "error"}
    assert kinds == {
        "tga.png": "unsupported-format",
        "signed.tif": "unsupported-pixels",
        "dark.tif": "unsupported-pixels",
    }
