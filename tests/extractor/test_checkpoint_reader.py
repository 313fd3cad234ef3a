from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.extractor.examples import resnet18, transformer
from transferkit.errors import UserError
from transferkit.extractor import Extractor
from transferkit.extractor.checkpoint_reader import FORMAT, KEY, linear, load


def checkpoint(extractor: Extractor) -> dict[str, Any]:
    """What a fit's checkpoint holds of an extractor, and something that is Lightning's own."""
    assert extractor.head is not None
    state = {f"backbone.{key}": value for key, value in extractor.backbone.state_dict().items()}
    record = {
        "format": FORMAT,
        "complete": True,
        "backbone": extractor.spec(),
        "class_names": extractor.class_names,
        "l2_normalize": extractor.l2_normalize,
        "regime": "full",
    }
    state |= {"head.weight": extractor.head.weight.detach(), "head.bias": extractor.head.bias.detach()}
    return {KEY: record, "state_dict": state, "epoch": 4, "pytorch-lightning_version": "2.6.6"}


@pytest.mark.parametrize("make", [resnet18, lambda: transformer("vit", "cls+mean", l2_normalize=True)])
def test_checkpoint_and_its_export_agree(make: Any, photos: list[Tensor], tmp_path: Path) -> None:
    extractor = make()
    torch.save(checkpoint(extractor), tmp_path / "best.ckpt")
    opened = Extractor.from_pretrained(tmp_path / "best.ckpt")
    opened.save_pretrained(tmp_path / "export")
    exported = Extractor.from_pretrained(tmp_path / "export")
    for other in (opened, exported):
        torch.testing.assert_close(other.embed(photos), extractor.embed(photos), atol=1e-5, rtol=0)
        assert other.head is not None
        assert torch.equal(other.head.weight, extractor.head.weight)
        assert (other.class_names, other.l2_normalize) == (extractor.class_names, extractor.l2_normalize)
        assert other.spec()["preprocessing"] == extractor.spec()["preprocessing"]
        assert other.record["regime"] == "full"


def test_checkpoints_that_cannot_be_opened(tmp_path: Path) -> None:
    path = tmp_path / "best.ckpt"
    with pytest.raises(UserError, match=r"best\.ckpt does not exist"):
        Extractor.from_pretrained(path)
    whole = checkpoint(transformer("vit", "cls"))
    record, state = whole[KEY], whole["state_dict"]
    lacking = {key: value for key, value in state.items() if "layernorm" not in key}
    for content, message in (
        ({"state_dict": state}, "is not a transferkit checkpoint; give one that fit wrote"),
        ([1], "is not a transferkit checkpoint"),
        (whole | {KEY: record | {"format": 9}}, f"has format 9, this version reads {FORMAT}"),
        (
            whole | {KEY: record | {"complete": False}},
            "was written by an earlier version during a fit, without the frozen weights; fit again",
        ),
        (whole | {"state_dict": lacking}, "lacks tensors .*; is it for another architecture"),
    ):
        torch.save(content, path)
        with pytest.raises(UserError, match=message) as caught:
            Extractor.from_pretrained(path)
        assert "\n" not in str(caught.value)


def test_options_that_contradict_a_checkpoint(tmp_path: Path) -> None:
    torch.save(checkpoint(transformer("vit", "cls")), tmp_path / "best.ckpt")
    for option, message in (
        ({"weights": "none"}, "has its own weights"),
        ({"pooling": "mean"}, "was trained with pooling cls, not mean"),
        ({"architecture": {"hidden_size": 8}}, "has its own architecture"),
    ):
        with pytest.raises(UserError, match=message):
            Extractor.from_pretrained(tmp_path / "best.ckpt", **option)


class Hostile:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.mark,)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    whole = checkpoint(transformer("vit", "cls")) | {"extra": Hostile(tmp_path / "mark")}
    torch.save(whole, tmp_path / "best.ckpt")
    with pytest.raises(UserError, match=r"best\.ckpt is not a weights file \(broken, or more than plain tensors"):
        Extractor.from_pretrained(tmp_path / "best.ckpt")
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    ("part", "value"),
    [("callbacks", 3), ("state_dict", [1]), ("loops", "x"), ("optimizer_states", {}), ("hyper_parameters", "x")],
)
def test_a_part_of_another_type_is_refused(part: str, value: Any, tmp_path: Path) -> None:
    torch.save({**checkpoint(resnet18()), part: value}, tmp_path / "odd.ckpt")
    with pytest.raises(UserError, match=rf"odd.ckpt is broken or of another version \({part}\); fit again"):
        Extractor.from_pretrained(tmp_path / "odd.ckpt")


@pytest.mark.parametrize("field", [{"target": "odd"}, {"class_weights": "x"}, {"class_weights": [None]}])
def test_a_field_of_the_record_that_cannot_be_used_is_refused(field: dict[str, Any], tmp_path: Path) -> None:
    content = checkpoint(resnet18())
    content[KEY].update(field)
    torch.save(content, tmp_path / "odd.ckpt")
    with pytest.raises(UserError, match=rf"broken or of another version \({next(iter(field))} is"):
        Extractor.from_pretrained(tmp_path / "odd.ckpt")


@pytest.mark.parametrize("names", ["ab", [1, 2], ["a", "a"], [["a"], "b"], {"a": 1, "b": 2}])
def test_class_names_that_are_not_different_texts_are_refused(names: Any, tmp_path: Path) -> None:
    content = checkpoint(resnet18())
    content[KEY]["class_names"] = names
    torch.save(content, tmp_path / "odd.ckpt")
    with pytest.raises(UserError, match=r"odd.ckpt is broken or of another version \(class_names\); fit again"):
        load(tmp_path / "odd.ckpt")
    with pytest.raises(ValueError, match="class_names is"):
        linear(torch.zeros(2, 3), torch.zeros(2), 3, names)
