"""``export``: a directory that transformers or torchvision, ONNX Runtime and transferkit load."""

from pathlib import Path

from transferkit.cli import console
from transferkit.cli.parsing import call

CONTENT = {
    "README.md": "model card, with code to paste",
    "calibration.json": "temperature and thresholds of the head",
    "calibration.safetensors": "what they are computed from",
    "config.json": "architecture and labels",
    "head.safetensors": "the linear head",
    "model.onnx": "embedding and logits of preprocessed pixels",
    "model.onnx.data": "its weights",
    "model.safetensors": "weights",
    "preprocessor_config.json": "preprocessing",
    "transferkit.json": "metadata for transferkit",
}


def main(arguments: list[str]) -> int:
    """Run the command; return the exit status."""
    return call(export, arguments)


def export(
    checkpoint: str,
    out: str | None = None,
    onnx: bool = False,
    overwrite: bool = False,
    name: str | None = None,
    weights: str = "DEFAULT",
    pooling: str | None = None,
    revision: str | None = None,
    json: bool = False,
) -> int:
    """Write an extractor as a directory that other tools load, with a model card.

    A ViT opens with transformers' AutoModel, AutoModelForImageClassification and AutoImageProcessor, a ResNet
    with torchvision's load_state_dict, both without transferkit.

    Args:
        checkpoint: a checkpoint, best or last of the newest run, or a torchvision name, a Hugging Face id or
            directory, or an export.
        out: the directory to write; by default ``extractor``, in the run's directory if the checkpoint has one.
        onnx: also write model.onnx, checked with ONNX Runtime; needs the extra: pip install 'transferkit[onnx]'.
        overwrite: replace an earlier export.
        name: name of the run whose best or last checkpoint to export; by default the newest run of any name.
        weights: for a torchvision name or Hugging Face id: DEFAULT, none (random) or a path.
        pooling: for the same; its default if not given.
        revision: of a Hugging Face id: branch, tag or commit; by default its newest.
        json: print one JSON object.
    """
    from transferkit.backbones import with_revision
    from transferkit.cli.open_extractor import read_extractor
    from transferkit.extractor import pretrained
    from transferkit.extractor.onnx import export, require_onnx
    from transferkit.training.run_directory import find_checkpoint, measured_on_test, within_run

    run = None
    if Path(checkpoint).is_dir() and (found := within_run(Path(checkpoint))) != Path(checkpoint):
        checkpoint = str(found)
    if checkpoint in ("best", "last") or Path(checkpoint).is_file():
        run, path = find_checkpoint(Path(), name, checkpoint)
        checkpoint = str(path)
    folder = Path(out) if out else (run or Path()) / "extractor"
    pretrained.check_export_place(folder, overwrite)  # before anything is opened, which takes a while
    if onnx:
        require_onnx()
    extractor = read_extractor(with_revision(checkpoint, revision), weights, pooling)
    record = extractor.record
    training = {"weights": record.get("weights", f"{checkpoint} ({weights})")}  # of a name, nothing else is known
    if run and "test" in record.get("images", {}):  # else they are of the validation images
        training["metrics"] = record.get("metrics", {}) | measured_on_test(run, record["epoch"])
    difference = export(extractor, folder, onnx, overwrite, training)

    files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    if json:
        console.as_json({"out": str(folder), "bytes": files, "onnx_difference": difference})
    else:
        console.table(
            ("file", "bytes", "content"), ((file, size, CONTENT.get(file, "tokenizer")) for file, size in files.items())
        )
    if difference is not None:
        same = ", top class the same" if extractor.head else ""
        console.note(f"model.onnx equals PyTorch to {difference:.1e} on batches of 1, 3 and 17 random images{same}")
    console.note(f"exported: {checkpoint}")
    console.written(folder)
    console.next_command("embed", "IMAGES", "--extractor", folder, "--out", "embeddings.parquet")
    return 0
