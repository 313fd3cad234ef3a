"""``export``: a directory that transformers or torchvision, ONNX Runtime and transferkit load."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from transferkit.cli import console
from transferkit.cli.parsing import call
from transferkit.errors import UserError

if TYPE_CHECKING:
    from transferkit.data.image_table import ImageTable
    from transferkit.extractor.onnx import Exported

CONTENT = {
    "README.md": "model card, with code to paste",
    "calibration.json": "temperature and thresholds of the head",
    "calibration.safetensors": "what they are computed from",
    "config.json": "architecture and labels",
    "head.safetensors": "the linear head",
    "model.bin": "weights of model.xml",
    "model.onnx": "embedding and logits of preprocessed pixels",
    "model.onnx.data": "its weights",
    "model.safetensors": "weights",
    "model.xml": "the same as model.onnx, for OpenVINO",
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
    openvino: bool = False,
    int8: bool = False,
    int8_images: str | None = None,
    max_drop: float | None = None,
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
        openvino: also write model.xml and model.bin for OpenVINO; needs the extras openvino and onnx.
        int8: let the files of --onnx and --openvino compute in 8 bits, in ranges measured on images; needs the extra
            int8.
        int8_images: those images, and val images to measure the loss on: folder or manifest; by default the
            data of the run.
        max_drop: points of accuracy on val that int8 may lose, of the head or, without one, of a linear probe; the
            worst blocks stay in float until it is met. By default any.
        overwrite: replace an earlier export.
        name: name of the run whose best or last checkpoint to export; by default the newest run of any name.
        weights: for a torchvision name or Hugging Face id: DEFAULT, none (random) or a path.
        pooling: for the same; its default if not given.
        revision: of a Hugging Face id: branch, tag or commit; by default its newest.
        json: print one JSON object.
    """
    from transferkit.backbones import with_revision
    from transferkit.cli.open_extractor import read_extractor
    from transferkit.embed.samples import chosen_of, samples_of
    from transferkit.extractor import pretrained
    from transferkit.extractor.int8_export import told
    from transferkit.extractor.onnx import Int8, export, require_onnx
    from transferkit.extractor.openvino_files import require_openvino
    from transferkit.extractor.quantization import require
    from transferkit.probe.int8_judge import judge_of
    from transferkit.training.run_directory import find_checkpoint, measured_on_test, within_run

    run = None
    if Path(checkpoint).is_dir() and (found := within_run(Path(checkpoint))) != Path(checkpoint):
        checkpoint = str(found)
    if checkpoint in ("best", "last") or Path(checkpoint).is_file():
        run, path = find_checkpoint(Path(), name, checkpoint)
        checkpoint = str(path)
    folder = Path(out) if out else (run or Path()) / "extractor"
    pretrained.check_export_place(folder, overwrite)  # before anything is opened, which takes a while
    if (int8_images or max_drop is not None) and not int8:
        raise UserError("--int8_images and --max_drop are for files in int8; add --int8")
    if max_drop is not None and not max_drop >= 0:
        raise UserError(f"--max_drop is {max_drop:g}; give points of accuracy, 0 or more")
    if int8 and not (onnx or openvino):
        raise UserError("--int8 is for the files of --onnx and --openvino; add one of them")
    for wanted, check in ((onnx, require_onnx), (openvino, require_openvino), (int8, require)):
        if wanted:
            check()
    extractor = read_extractor(with_revision(checkpoint, revision), weights, pooling)
    record = extractor.record
    training = {"weights": record.get("weights", f"{checkpoint} ({weights})")}  # of a name, nothing else is known
    if run and "test" in record.get("images", {}):  # else they are of the validation images
        training["metrics"] = record.get("metrics", {}) | measured_on_test(run, record["epoch"])
    how = None
    if int8:
        table = int8_table(run, int8_images)
        how = Int8(samples_of(extractor, chosen_of(table)), judge_of(extractor, table), max_drop)
    exported = export(extractor, folder, onnx, overwrite, training, openvino, how)
    difference = exported.onnx

    files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    if json:
        console.as_json({"out": str(folder), "bytes": files, "onnx_difference": difference, **facts_of(exported)})
    else:
        console.table(
            ("file", "bytes", "content"), ((file, size, CONTENT.get(file, "tokenizer")) for file, size in files.items())
        )
    if exported.loss:
        console.note(f"int8: {told(exported.loss)}")
        console.note_first("kept in float", exported.loss.kept_in_float)
    elif difference is not None:
        same = ", top class the same" if extractor.head else ""
        console.note(f"model.onnx equals PyTorch to {difference:.1e} on batches of 1, 3 and 17 random images{same}")
    console.note(f"exported: {checkpoint}")
    console.written(folder)
    console.next_command("embed", "IMAGES", "--extractor", folder, "--out", "embeddings.parquet")
    return 0


def facts_of(exported: "Exported") -> dict[str, Any]:
    """Return what exporting found besides ONNX's difference, for JSON."""
    loss = {**vars(exported.loss), "drop": exported.loss.drop} if exported.loss else None
    found = {"openvino_difference": exported.openvino, "int8": loss}
    return {name: value for name, value in found.items() if value is not None}


def int8_table(run: Path | None, images: str | None) -> "ImageTable":
    """Return the images to measure int8 on: those named or, with their splits, those of the run.

    Raises:
        UserError: there are none.
    """
    from transferkit.cli.arguments import read_yaml
    from transferkit.data.image_table import open_images
    from transferkit.data.splits import load_splits

    if images:
        return open_images(images)
    if run is None or not (run / "splits.parquet").is_file():
        raise UserError("--int8 needs images to measure ranges on; give a folder or manifest with --int8_images")
    data = read_yaml(run / "config.yaml")["data"]
    table = open_images(data["root"], data.get("image_root"), data.get("multilabel"))
    return load_splits(table, run / "splits.parquet")
