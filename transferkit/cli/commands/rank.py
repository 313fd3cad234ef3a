"""``rank``: which of several extractors suits some images."""

from pathlib import Path
from typing import Any, Literal

from transferkit.cli import console
from transferkit.cli.commands.probe import extract, percent
from transferkit.cli.open_extractor import Accelerator, open_extractor
from transferkit.cli.parsing import resumable
from transferkit.errors import UserError


def main(arguments: list[str]) -> int:
    """Run the command; return the exit status."""
    return resumable(rank, arguments)


def rank(
    images: str,
    extractors: str | None = None,
    weights: str = "DEFAULT",
    out: str = "rank",
    fast: bool = False,
    seed: int = 0,
    val_fraction: float = 0.15,
    test_fraction: float = 0.2,
    on_error: Literal["fail", "skip"] = "fail",
    image_root: str | None = None,
    accelerator: Accelerator = "auto",
    overwrite: bool = False,
    json: bool = False,
) -> int:
    """Rank extractors by a linear probe on your images, and say whether the images can tell them apart.

    All are probed as ``transferkit probe`` does, on the same splits. Beside the accuracies stand an interval of the
    rank (bootstrap over the test images, groups as a whole), scores that need no probe (LogME, shrunk H-score), and
    what is known without any images: parameters, width, and the published ImageNet accuracy where there is one.

    Args:
        images: folder, manifest, ``digits``, or name of a torchvision dataset; with labels.
        extractors: two or more, separated by commas: torchvision names, Hugging Face ids or directories, exported
            directories, checkpoints.
        weights: ``DEFAULT``, or ``none`` (random), of all of them.
        out: directory for rank.json, rank.csv and report.html.
        fast: sweep C coarse to fine.
        seed: seed of the drawn splits and of the bootstrap.
        val_fraction: share of train to select on, if no val is given beside a test.
        test_fraction: share of all images to report on, if no splits are given.
        on_error: unreadable images: ``fail`` names the first of them, ``skip`` leaves them out.
        image_root: the folder that a manifest's paths are relative to or lie in, if it is not the manifest's own.
        accelerator: auto is a GPU if there is one.
        overwrite: replace an earlier ranking of other images, of other extractors, or with other options.
        json: print rank.json instead of the table.
    """
    from transferkit.backbones.published import imagenet_accuracy
    from transferkit.data.asked import ASKED, asked_of, check_earlier
    from transferkit.data.image_table import open_images
    from transferkit.data.seen import backbone_seen
    from transferkit.data.targets import require_class
    from transferkit.probe.rank import Known, measure_candidate, rank_candidates, verdict
    from transferkit.probe.rank_files import RANKING, save_ranking
    from transferkit.reports.report import report_of
    from transferkit.runtime.files import check_folder

    names = split_names(extractors)
    check_folder(out)
    table = open_images(images, image_root)
    require_class(table.kind, "a ranking")
    options: dict[str, Any] = {"seed": seed, "val_fraction": val_fraction, "test_fraction": test_fraction}
    question = {"extractors": ", ".join(names), "weights": weights, "fast": fast, **options}
    asked = asked_of({"data_fingerprint": table.fingerprint()}, table, question)
    check_earlier(Path(out) / RANKING, asked, overwrite)
    candidates = []
    for name in names:
        extractor = open_extractor(name, weights, None, accelerator)
        parameters = sum(parameter.numel() for parameter in extractor.backbone.parameters())
        known = Known(name, parameters, extractor.embed_dim, imagenet_accuracy(name, weights))
        embeddings = extract(extractor, table, on_error)
        candidate = measure_candidate(known, embeddings, coarse_to_fine=fast, **options)
        candidate.result.warn_of_seen(backbone_seen(extractor.record))
        candidates.append(candidate)
    given = {"source": images, "image_root": image_root, "weights": weights, "seed": seed}
    content = {**rank_candidates(candidates, seed=seed), "images": given}
    content["verdict"] = verdict(content)
    files = [*save_ranking(content | {ASKED: asked}, Path(out)), report_of(out)]
    console.as_json(content) if json else print_table(content, images)
    for line in content["verdict"]:
        console.note(line)
    for line in content["warnings"]:
        console.note(f"warning: {line}")
    console.written(*files)
    root = ["--image_root", image_root] if image_root else []
    console.next_command("probe", images, *root, "--extractor", content["rows"][0]["extractor"])
    return 0


def split_names(extractors: str | None) -> list[str]:
    """Return the names between commas.

    Raises:
        UserError: fewer than two, or one twice.
    """
    names = [name.strip() for name in (extractors or "").split(",") if name.strip()]
    if len(names) < 2:
        raise UserError(
            "give two or more extractors to rank, as in --extractors resnet18,resnet50,facebook/dinov2-small"
        )
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"--extractors has {twice[0]!r} twice; give each once")
    return names


def print_table(content: dict[str, Any], images: str) -> None:
    """Print a line per extractor, the best first; accuracies in percent."""
    measured = ("rank", "95 %", "extractor", "linear %", "95 % interval", "kNN %")
    columns = (*measured, "LogME", "H-score", "parameters", "width", "ImageNet %")
    rows = []
    for row in content["rows"]:
        low, high = (percent(end) for end in row["linear"]["top1_interval"])
        first, last = row["rank_interval"]
        rows.append(
            (
                row["rank"], f"{first} – {last}", row["extractor"], percent(row["linear"]["top1"]), f"{low} – {high}",
                percent(row["knn"]["top1"]), row["log_me"], row["h_score"], row["parameters"], row["width"],
                percent(row["imagenet"]),
            )
        )  # fmt: skip
    splits = content["splits"]
    title = f"{images}: {len(content['class_names'])} classes; {splits['train']} train, {splits['val']} val, "
    console.table(columns, rows, f"{title}{splits['test']} test images")
