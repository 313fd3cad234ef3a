"""``transferkit audit``: from images to a reviewed manifest and a fit on it."""

import csv
import json
import shlex
from pathlib import Path

import pytest

from tests.running import Done, refused, transferkit

RANDOM = ("--extractor", "resnet18", "--weights", "none")


@pytest.fixture
def place(photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (photo_folder / "train/limes/apple.jpg").write_bytes((photo_folder / "train/apples/0.jpg").read_bytes())
    return photo_folder


def audit(*arguments: str) -> Done:
    done = transferkit("audit", *arguments)
    assert done.status == 0, done.err
    return done


def test_from_images_to_a_fit(place: Path) -> None:
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    done = audit("photos", *RANDOM, "--json")
    found = json.loads(done.out)
    assert found["rows"] == 25
    copies = [issue["detail"] for issue in found["issues"] if issue["path"] == "train/limes/apple.jpg"]
    assert any("near-duplicates" in detail for detail in copies)
    assert done.err.splitlines()[-2].endswith("audit/report.html")
    assert "next: transferkit audit photos --apply audit/audit.csv" in done.err
    html = Path("audit/report.html").read_text(encoding="utf-8")
    assert 'data-source="audit.json counts.label"' in html and html.count("<image ") >= 1
    with Path("audit/audit.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["issue"] for row in rows] == [issue["issue"] for issue in found["issues"]]
    assert {row["decision"] for row in rows} == {""}
    decisions = [{"path": "train/limes/apple.jpg", "decision": "relabel", "suggested": "apples"},
                 {"path": "train/apples/0.jpg", "decision": "drop", "suggested": ""}]  # fmt: skip
    with Path("reviewed.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["path", "decision", "suggested"])
        writer.writeheader()
        writer.writerows(decisions)
    done = audit("photos", "--apply", "reviewed.csv", "--json")
    counts = {"dropped": 1, "images": 24, "relabeled": 1, "unreadable": 0}
    assert json.loads(done.out) == counts | {"manifest": "corrected.csv"}
    with Path("corrected.csv").open(newline="") as file:
        corrected = {row["path"]: row for row in csv.DictReader(file)}
    assert corrected["train/limes/apple.jpg"] == {"path": "train/limes/apple.jpg", "label": "apples", "split": "train"}
    assert "train/apples/0.jpg" not in corrected and len(corrected) == 24
    assert before == {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    done = transferkit(
        "fit", "--data.root", "corrected.csv", "--data.image_root", "photos", "--model.weights", "none",
        "--data.exclude", "reviewed.csv", "--trainer.max_epochs", "1", "--trainer.enable_progress_bar", "false",
    )  # fmt: skip
    assert done.status == 0, done.err


def test_a_table_of_embeddings(place: Path) -> None:
    assert transferkit("embed", "photos", *RANDOM, "--out", "photos.parquet").status == 0
    done = audit("photos.parquet", "--out", "found")
    assert "photos.parquet: 25 images; " in done.out and "next:" not in done.err
    assert "the results do not say where their images are" in Path("found/report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("path,suggested\n", r"no column 'decision'"),
        ("path,decision,suggested\nx.jpg,drop,\n", r"line 2: 'x\.jpg' is not among the images"),
        (
            "path,decision,suggested\ntrain/apples/0.jpg,delete,\n",
            "unknown decision 'delete'; use keep",
        ),
        ("path,decision,suggested\ntrain/apples/0.jpg,relabel,\n", "line 2: no class to relabel"),
        (
            "path,decision,suggested\ntrain/apples/0.jpg,drop,\ntrain/apples/0.jpg,keep,\n",
            "line 3: .* has two decisions",
        ),
    ],
)
def test_decisions_that_cannot_be_applied(place: Path, rows: str, said: str) -> None:
    Path("reviewed.csv").write_text(rows)
    assert refused(transferkit("audit", "photos", "--apply", "reviewed.csv"), said)
    assert not Path("corrected.csv").exists()


def test_a_review_from_a_spreadsheet(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Semicolons, a byte order mark, capital letters; a class that is new is said, with the nearest one."""
    (place / "train/limes/été.jpg").write_bytes((place / "train/limes/0.jpg").read_bytes())
    rows = [
        "path;decision;suggested",
        "train/limes/été.jpg;Relabel;apple",
        "train/limes/0.jpg;relabel;apple",
        "train/apples/0.jpg;DROP;",
        "train/apples/1.png;relabel;limes",
    ]
    Path("reviewed.csv").write_text("\r\n".join(rows), encoding="utf-8-sig")
    Path("audit").mkdir()
    done = audit("photos", "--apply", "reviewed.csv", "--json")
    assert json.loads(done.out)["relabeled"] == 3 and json.loads(done.out)["dropped"] == 1
    said = [line for line in caplog.messages if "new class" in line]
    assert said == ["reviewed.csv, line 2: 'apple' is a new class; nearest: 'apples'"]
    content = Path("corrected.csv").read_bytes()
    assert content.startswith("\N{BYTE ORDER MARK}".encode()), "a spreadsheet would garble the accents"
    assert "train/limes/été.jpg,apple,train" in content.decode()


def test_the_next_command_has_the_backbone_of_the_audit(place: Path) -> None:
    network = ("--extractor", "shufflenet_v2_x0_5", "--weights", "none")
    audit("photos", *network)
    done = audit("photos", "--apply", "audit/audit.csv")
    assert "--model.backbone shufflenet_v2_x0_5 --model.weights none" in done.err.splitlines()[-1]


def test_bad_input_is_one_line(place: Path) -> None:
    assert refused(transferkit("audit", "photos", "--folds", "1"), "--folds is 1; give 2 or more")
    assert refused(transferkit("audit", "photos", "--apply", "nowhere.csv"), "cannot read nowhere.csv")
    assert refused(transferkit("audit", "digits", "--apply", "x.csv"), "has no image files")
    Path("corrected.csv").write_text("mine")
    Path("reviewed.csv").write_text("path,decision,suggested\n")
    assert refused(transferkit("audit", "photos", "--apply", "reviewed.csv"), "--manifest corrected.csv exists")


def test_decisions_are_not_overwritten(place: Path) -> None:
    assert transferkit("embed", "photos", *RANDOM, "--out", "photos.parquet").status == 0
    reviewed = Path("audit/audit.csv")
    again = ("audit", "photos.parquet")
    audit("photos.parquet")
    written = reviewed.read_text()
    audit("photos.parquet")  # nobody has decided anything
    rows = "path,decision,suggested\na.jpg,,\nb.jpg,drop,\nc.jpg,relabel,limes\n"
    for content, said in (
        (rows, r"audit/audit\.csv holds decisions \(2\); apply it, move it, or add --overwrite"),
        (rows.replace(",", ";"), r"audit/audit\.csv holds decisions \(2\); apply it, move it, or add --overwrite"),
        (rows.encode("utf-16").decode("latin-1"), r"audit/audit\.csv is not as an audit writes it"),
    ):
        reviewed.write_text(content, encoding="latin-1")
        before = {file: file.read_bytes() for file in reviewed.parent.iterdir()}
        assert refused(transferkit(*again), said)
        assert refused(transferkit("audit", "photos", "--extractor", "nowhere/model"), said), "before a model is loaded"
        assert before == {file: file.read_bytes() for file in reviewed.parent.iterdir()}
    audit("photos.parquet", "--overwrite")
    assert reviewed.read_text() == written


def test_unreadable_images_are_not_in_the_manifest(place: Path) -> None:
    """Empty, cut, or links without a target, inside or outside of the folder: the printed command takes the rest."""
    photo = (place / "train/apples/0.jpg").read_bytes()
    (place / "train/apples/empty.jpg").write_bytes(b"")
    (place / "train/apples/cut.jpg").write_bytes(photo[:-200])
    (place / "train/limes/gone.jpg").symlink_to(place / "nothing.jpg")
    (place / "train/limes/outside.jpg").symlink_to("/nowhere/nothing.jpg")
    Path("reviewed.csv").write_text("path,decision,suggested\ntrain/apples/0.jpg,drop,\n")
    fail = transferkit("audit", "photos", "--apply", "reviewed.csv", "--on_error", "fail")
    assert refused(fail, "4 broken images: .*'train/limes/outside.jpg'.* --on_error skip")
    done = audit("photos", "--apply", "reviewed.csv", "--json")
    counts = {"dropped": 1, "images": 24, "relabeled": 0, "unreadable": 4}
    assert json.loads(done.out) == counts | {"manifest": "corrected.csv"}
    assert done.err.count("left out: ") == 4 and "left out: train/limes/gone.jpg (" in done.err
    with Path("corrected.csv").open(newline="") as file:
        paths = {row["path"] for row in csv.DictReader(file)}
    whole = {path.relative_to(place).as_posix() for path in place.rglob("*.*") if path.is_file()}
    assert paths == whole - {"train/apples/0.jpg", "train/apples/empty.jpg", "train/apples/cut.jpg"}
    (line,) = (line for line in done.err.splitlines() if "next: transferkit fit" in line)
    command = shlex.split(line.partition("transferkit ")[2])
    fit = transferkit(*command, "--model.weights", "none", "--trainer.max_epochs", "1")
    assert fit.status == 0, fit.err


def test_links_that_a_manifest_cannot_list(place: Path) -> None:
    outside = place.parent / "outside.png"
    outside.write_bytes((place / "train/apples/1.png").read_bytes())
    (place / "train/apples/link.png").symlink_to(outside)
    Path("reviewed.csv").write_text("path,decision,suggested\n")
    said = "links lead out of .*: 'train/apples/link.png'; replace them by copies, or drop them"
    assert refused(transferkit("audit", "photos", "--apply", "reviewed.csv"), said)
    assert not Path("corrected.csv").exists()
    Path("reviewed.csv").write_text("path,decision,suggested\ntrain/apples/link.png,drop,\n")
    audit("photos", "--apply", "reviewed.csv")


def test_no_image_is_left(place: Path) -> None:
    paths = [path.relative_to(place).as_posix() for path in place.rglob("*.*")]
    Path("reviewed.csv").write_text("path,decision,suggested\n" + "".join(f"{path},drop,\n" for path in paths))
    assert refused(transferkit("audit", "photos", "--apply", "reviewed.csv"), "no image of photos is left; drop fewer")
