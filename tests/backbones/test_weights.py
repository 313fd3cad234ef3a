import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from transferkit.backbones.loading import check_keys
from transferkit.backbones.weights import read_state_dict, state_sha256
from transferkit.errors import UserError


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.bin"])
@pytest.mark.parametrize("content", [b"", b"no weights at all", b"PK\x03\x04 cut short"])
def test_files_that_hold_no_weights_get_one_line(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"^{path} is not a weights file .*; give a") as caught:
        read_state_dict(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_truncated_files_get_one_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    save = save_file if path.suffix == ".safetensors" else torch.save
    save({"a": torch.arange(1000.0)}, path)
    path.write_bytes(path.read_bytes()[:-900])
    with pytest.raises(UserError, match="is not a weights file"):
        read_state_dict(path)


@pytest.mark.parametrize("content", [[torch.zeros(2)], {"a": 1}, {"state_dict": {"a": "b"}}, torch.zeros(1)])
def test_saved_objects_that_are_no_state_dict(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(UserError, match="does not hold a state dict"):
        read_state_dict(tmp_path / "w.pt")


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path, hostile: type[object]) -> None:
    torch.save({"a": hostile()}, tmp_path / "w.pt")
    with pytest.raises(UserError, match="is not a weights file") as caught:
        read_state_dict(tmp_path / "w.pt")
    assert not (tmp_path / "mark").exists()
    assert "weights_only" not in str(caught.value), "torch advises to run it"
    torch.load(tmp_path / "w.pt", weights_only=False)  # it would have
    assert (tmp_path / "mark").exists()


def test_a_missing_file() -> None:
    with pytest.raises(UserError, match=r"weights file none.pt does not exist"):
        read_state_dict("none.pt")


def test_long_lists_of_tensors_are_cut() -> None:
    check_keys("w.pt")
    with pytest.raises(UserError, match=r"^w\.pt lacks tensors t0, t1, t2, t3, t4 and 3 more; is it"):
        check_keys("w.pt", missing=[f"t{i}" for i in range(8)])


def test_state_sha256_is_over_names_types_shapes_and_bytes() -> None:
    state = {"b": torch.tensor([1.0, 2.0]), "a": torch.tensor(7)}
    parts = b"a torch.int64 ()\n" + (7).to_bytes(8, "little")
    parts += b"b torch.float32 (2,)\n" + state["b"].numpy().tobytes()
    assert state_sha256(state) == hashlib.sha256(parts).hexdigest()
    assert state_sha256(dict(reversed(state.items()))) == state_sha256(state)
    others = [{"b": state["b"]}, state | {"a": torch.tensor(8)}, state | {"b": state["b"].bfloat16()}]
    assert len({state_sha256(other) for other in [state, *others]}) == 4
