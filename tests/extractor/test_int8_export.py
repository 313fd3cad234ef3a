"""Exports in int8: blocks that stay in float, and what the card says of the loss."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tests.extractor.examples import CLASSES, transformer
from tests.extractor.test_quantization import pictures, with_nncf
from transferkit.errors import UserError
from transferkit.extractor import Extractor, model_card
from transferkit.extractor.int8_export import Attempt, Judge, Loss, Outputs, blocks_of, outputs_of, restore, told
from transferkit.extractor.onnx import Exported, Int8, export, write_onnx
from transferkit.extractor.quantization import Samples


def loss(drop: float, floats: Sequence[str] = ()) -> Loss:
    return Loss(64, "153 images of val", 0.9991, 0.98, "the head", 0.95, 0.95 - drop / 100, list(floats))


@pytest.mark.parametrize("needed", range(1, 8))
@pytest.mark.parametrize("blocks", [2, 5, 8])
def test_the_fewest_of_the_worst_blocks_are_restored(needed: int, blocks: int) -> None:
    ranked = [f"block {number}" for number in range(blocks)]
    tried = []

    def attempt(floats: Mapping[str, Sequence[str]]) -> Attempt:
        assert list(floats) == ranked[: len(floats)] and floats[ranked[0]] == ["node 0"]
        tried.append(len(floats))
        return Attempt(None, loss(0.4 if len(floats) >= needed else 3, list(floats)))

    nodes = {name: [f"node {number}"] for number, name in enumerate(ranked)}
    if needed >= blocks:
        with pytest.raises(
            UserError, match=r"no block of it can be in int8 at `max_drop=0.5`; give more, or leave out"
        ):
            restore(attempt, nodes, ranked, 0.5, "it")
    else:
        assert restore(attempt, nodes, ranked, 0.5, "it").loss.kept_in_float == ranked[:needed]
    assert tried[0] == -(-blocks // 2) and len(tried) <= 3 and len(set(tried)) == len(tried)


def test_the_card_states_precision_and_loss() -> None:
    assert told(loss(0.5)) == (
        "cosine to float32 0.9991, least 0.9800, on 153 images of val; accuracy of the head from 95.0 % to 94.5 %"
    )
    extractor = transformer("vit", "cls")
    text = model_card.card(extractor, "classifier", {}, loss=loss(0.5, ["block 1"]))
    for line in ("| ranges measured on | 64 images |", "| lost | 0.50 points |", "| kept in float | block 1 |"):
        assert line in text
    assert "## Precision" not in model_card.card(extractor, "classifier", {})


def int8_of(extractor: Extractor, max_drop: float | None = None, accuracy: Any = None) -> Int8:
    shown = pictures(extractor)
    return Int8(Samples("images", lambda: shown), Judge(shown, "12 images", accuracy, "the head"), max_drop)


@with_nncf
@pytest.mark.slow
@pytest.mark.parametrize("openvino", [False, True])
def test_an_export_in_int8_is_near_float32(openvino: bool, tmp_path: Path) -> None:
    extractor = transformer("vit", "cls")
    shown = pictures(extractor)
    inputs = extractor.preprocessing.normalize(shown)
    found = export(extractor, tmp_path / "export", True, openvino=openvino, int8=int8_of(extractor))
    assert isinstance(found, Exported) and found.loss and found.loss.kept_in_float == [] and found.onnx is None
    outputs = outputs_of(tmp_path / "export/model.onnx", inputs)  # as ONNX Runtime loads it
    right = {"embedding": extractor(shown), "logits": extractor.classify(extractor(shown))}
    assert outputs.keys() == right.keys()
    cosine = F.cosine_similarity(outputs["embedding"], right["embedding"])
    assert cosine.min() > 0.97 and abs(float(cosine.min()) - found.loss.cosine_least) < 1e-4
    assert F.cosine_similarity(outputs["logits"], right["logits"]).mean() > 0.9
    card = (tmp_path / "export/README.md").read_text(encoding="utf-8")
    assert "compute in int8" in card and f"{found.loss.cosine_mean:.4f}" in card and "`model.onnx`" not in card[:200]
    if openvino:
        import openvino as library

        program = library.Core().compile_model(str(tmp_path / "export/model.xml"), "CPU")
        rows = [torch.from_numpy(program(image[None].numpy())[0].copy()) for image in inputs]
        assert F.cosine_similarity(torch.cat(rows), outputs["embedding"]).min() > 0.99
        assert library.Core().read_model(str(tmp_path / "export/model.xml")).get_rt_info(
            ["transferkit", "class_names"]
        ).astype(str) == str(CLASSES).replace("'", '"')


@with_nncf
@pytest.mark.slow
def test_blocks_stay_in_float_until_the_loss_is_within_the_limit(tmp_path: Path) -> None:
    """Right is an answer that is within a small angle of float32: all in int8 misses it, with one block it is met."""
    import onnx

    extractor = transformer("vit", "cls")
    shown = pictures(extractor)
    right = extractor(shown)
    plain = export(extractor, tmp_path / "plain", True, int8=int8_of(extractor)).loss
    assert plain
    limit = plain.cosine_mean + 0.5 * (1 - plain.cosine_mean)

    def accuracy(outputs: Outputs) -> float:
        return float(F.cosine_similarity(outputs["embedding"], right).mean() >= limit)

    found = export(extractor, tmp_path / "export", True, int8=int8_of(extractor, 0.5, accuracy)).loss
    assert found and 0 < len(found.kept_in_float) < len(extractor.backbone.stage_names) and found.drop <= 0.5
    assert found.cosine_mean >= limit > plain.cosine_mean

    def pairs(folder: str) -> int:
        nodes = onnx.load(tmp_path / folder / "model.onnx").graph.node
        return sum(node.op_type == "DequantizeLinear" for node in nodes)

    assert 0 < pairs("export") < pairs("plain")
    assert f"| kept in float | {', '.join(found.kept_in_float)} |" in (tmp_path / "export/README.md").read_text()
    with pytest.raises(UserError, match=r"no block of someone/model can be in int8 at `max_drop=0.5`"):
        export(
            extractor,
            tmp_path / "no",
            True,
            int8=int8_of(
                extractor,
                0.5,
                lambda outputs: (
                    accuracy(outputs)
                    - 1e9 * (float(F.cosine_similarity(outputs["embedding"], right).mean()) < 1 - 1e-7)
                ),
            ),
        )
    assert not (tmp_path / "no").exists()


@pytest.mark.slow
def test_every_node_is_in_the_stage_of_its_module(tmp_path: Path) -> None:
    extractor = transformer("vit", "cls")
    write_onnx(extractor, tmp_path / "model.onnx")
    blocks = blocks_of(tmp_path / "model.onnx", extractor.backbone)
    assert list(blocks) == extractor.backbone.stage_names
    import onnx

    kinds = {node.name: node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node}
    assert sorted(node for nodes in blocks.values() for node in nodes) == sorted(kinds)
    softmax = {name: [kinds[node] for node in nodes].count("Softmax") for name, nodes in blocks.items()}
    assert softmax == {"embeddings": 0} | dict.fromkeys(extractor.backbone.stage_names[1:], 1)


def test_a_limit_takes_labels(tmp_path: Path) -> None:
    from transferkit.extractor.int8_export import write_int8

    extractor = transformer("vit", "cls")
    with pytest.raises(
        UserError, match="`max_drop` counts right answers; give `int8_images` with labels and a split val"
    ):
        write_int8(extractor, tmp_path / "model.onnx", *int8_of(extractor, 0.5))
