"""``audit``: what to mend in labeled images, and the manifest that a review of it leads to."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from transferkit.cli import console
from transferkit.cli.commands.probe import extract, is_embeddings
from transferkit.cli.open_extractor import Accelerator, open_extractor
from transferkit.cli.parsing import resumable
from transferkit.errors import UserError
from transferkit.runtime.text import for_terminal

if TYPE_CHECKING:
    from transferkit.data.image_table import ImageTable
    from transferkit.probe.audit import Audit

SHOWN = 30  # rows of the table


def main(arguments: list[str]) -> int:
    """Run the command; the exit status."""
    return resumable(audit, arguments)


def audit(
    images: str,
    extractor: str = "resnet18",
    weights: str = "DEFAULT",
    pooling: str | None = None,
    revision: str | None = None,
    out: str = "audit",
    folds: int = 5,
    seed: int = 0,
    on_error: Literal["fail", "skip"] = "skip",
    overwrite: bool = False,
    apply: str | None = None,
    manifest: str = "corrected.csv",
    image_root: str | None = None,
    accelerator: Accelerator = "auto",
    json: bool = False,
) -> int:
    """List what should be mended in labeled images, ranked by how sure it is. The images are never changed.

    Likely label errors, by a linear probe that did not see the image or its near-duplicates and by a vote of the
    nearest images; outliers; images unlike their class; ambiguous ones; bursts; blurred, dark, bright, nearly empty
    and very long pictures. Review audit.csv: write keep, relabel or drop into its column decision, and apply it.

    Args:
        images: folder, manifest, ``digits``, a dataset of torchvision's by name, or an embeddings table (.parquet).
        extractor: torchvision name, Hugging Face id or directory, exported directory, or checkpoint; not used
            for an embeddings table.
        weights: ``DEFAULT``, ``none`` (random) or a file of weights.
        pooling: how features become one embedding; by default the extractor's own.
        revision: branch, tag or commit of a Hugging Face repository; by default its newest.
        out: directory for audit.csv, audit.parquet, audit.json, label_quality.parquet and report.html.
        folds: of the probe; each image is judged by the one that did not see it.
        seed: of the folds.
        on_error: unreadable images: ``skip`` leaves them out, ``fail`` names the first of them.
        overwrite: replace an audit of another extractor, of other images, or with other options, or with decisions.
        apply: audit.csv with decisions; writes the manifest they lead to, without unreadable images, and nothing else.
        manifest: the manifest that ``--apply`` writes.
        image_root: the folder that a manifest's paths are relative to or lie in, where it is not its own.
        accelerator: auto takes a GPU if there is one.
        json: print one JSON object instead of a table.
    """
    from transferkit.backbones import with_revision
    from transferkit.data.asked import ASKED, asked_of, check_earlier
    from transferkit.data.embeddings import Embeddings
    from transferkit.data.image_table import open_images
    from transferkit.data.targets import require_class
    from transferkit.probe.audit import audit_embeddings
    from transferkit.probe.audit_files import SUMMARY, check_decisions_place, save_audit
    from transferkit.probe.picture_looks import look_at_pictures
    from transferkit.reports.report import report_of
    from transferkit.runtime.files import check_folder

    if folds < 2:
        raise UserError(f"--folds is {folds}; give 2 or more")
    table = None if is_embeddings(images) else open_images(images, image_root)
    if table is not None:
        require_class(table.kind, "an audit")
    if apply is not None:
        return apply_decisions(table, images, apply, manifest, on_error, json)
    check_folder(out)
    check_decisions_place(Path(out), overwrite)  # before the images are embedded, which takes a while
    options = {"folds": folds, "seed": seed}
    if table is None:
        embeddings, pictures = Embeddings.load(images), None
        asked = asked_of(embeddings.metadata, embeddings, options)
        check_earlier(Path(out) / SUMMARY, asked, overwrite)
    else:
        from transferkit.embed import describe  # with all that an extractor needs, 150 MiB

        name = with_revision(extractor, revision)
        opened = open_extractor(name, weights, pooling, accelerator)
        asked = asked_of(describe(opened, table), table, options)
        check_earlier(Path(out) / SUMMARY, asked, overwrite)
        embeddings = extract(opened, table, on_error)
        pictures = look_at_pictures(table)
    found = audit_embeddings(embeddings, pictures, folds=folds, seed=seed, in_place=True)
    given = {"source": images, "image_root": image_root} if table is not None else {}
    given |= {"extractor": name, "weights": weights, "pooling": pooling} if table is not None else {}
    files = [*save_audit(found, Path(out), given, {ASKED: asked}), report_of(out)]
    if json:
        console.as_json({"rows": found.rows, "counts": found.counts(), "issues": [i._asdict() for i in found.issues]})
    else:
        print_issues(found, images)
    for line in found.remarks:
        console.note(line)
    console.written(*files)
    root = ["--image_root", image_root] if image_root else []
    if found.issues and table is not None:
        console.next_command("audit", images, *root, "--apply", f"{out}/audit.csv")
    return 0


def print_issues(found: "Audit", images: str) -> None:
    """How many issues of each kind, and the surest."""
    counts = {kind: number for kind, number in found.counts().items() if number}
    title = f"{images}: {found.rows:,} images; " + (
        ", ".join(f"{number:,} {kind}" for kind, number in counts.items()) or "nothing found"
    )
    rows = [(i.issue, i.score, i.path, i.label, i.suggested, i.detail) for i in found.issues[:SHOWN]]
    if not rows:
        print(for_terminal(title))
        return
    console.table(("issue", "score", "path", "label", "suggested", "detail"), rows, title)
    if len(found.issues) > SHOWN:
        console.note(f"{len(found.issues) - SHOWN:,} more; audit.csv lists all")


def apply_decisions(
    table: "ImageTable | None", images: str, reviewed: str, manifest: str, on_error: str, json: bool
) -> int:
    """Write the manifest that the decisions lead to; unreadable images are left out.

    Raises:
        UserError: images without files, decisions that cannot be applied, unreadable images with ``fail``, or no image
            that a manifest can list.
    """
    from transferkit.data.integrity import raise_broken, verify
    from transferkit.probe.audit_files import apply_review, check_listed, write_manifest

    if table is None or table.in_memory:
        raise UserError(f"{images} has no image files to list in a manifest; give their folder or manifest")
    if Path(manifest).exists():
        raise UserError(f"--manifest {manifest} exists; choose another name")
    labels, stays = apply_review(Path(reviewed), list(table.paths), list(table.labels))
    changed = sum(new != old for new, old in zip(labels, table.labels, strict=True))
    dropped = stays.count(False)
    broken = verify(table, [row for row, stay in enumerate(stays) if stay])
    if on_error == "fail":
        reasons = {path: str(why) for path, why in broken.items()}
        raise_broken(reasons, table.source, "leave out with --on_error skip", stays.count(True))
    stays = [stay and path not in broken for stay, path in zip(stays, table.paths, strict=True)]
    check_listed(table, stays)
    kept = write_manifest(table, labels, stays, Path(manifest))
    counts = {"images": kept, "relabeled": changed, "dropped": dropped, "unreadable": len(broken)}
    if json:
        console.as_json(counts | {"manifest": manifest})
    else:
        console.table(list(counts), [list(counts.values())])
    console.note_first("left out", [f"{path} ({reason})" for path, reason in broken.items()])
    console.written(Path(manifest))
    where = ["--data.root", manifest, "--data.image_root", table.root]
    console.next_command("fit", *where, *options_of_fit(Path(reviewed).parent))
    return 0


def options_of_fit(folder: Path) -> list[str]:
    """Return the options for a fit of the network that an audit used; none where they are the usual ones."""
    from transferkit.probe.audit_files import SUMMARY
    from transferkit.reports.result_files import ResultFolder

    used = ResultFolder(folder).json(SUMMARY).get("images") or {}
    usual = {"extractor": "resnet18", "weights": "DEFAULT", "pooling": None}
    if all(used.get(name, value) == value for name, value in usual.items()):
        return []
    pairs = (("backbone", used["extractor"]), ("weights", used["weights"]), ("pooling", used["pooling"]))
    return [part for name, value in pairs if value not in (None, "DEFAULT") for part in (f"--model.{name}", value)]
