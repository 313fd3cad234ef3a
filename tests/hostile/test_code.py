"""Files that would run code are refused by every verb and option, and the code does not run."""

import ast
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import ResNet18_Weights
from transformers import ViTConfig, ViTModel

import transferkit as package
from tests.hostile.entrances import SMALL
from tests.running import Done, transferkit
from transferkit.data.embeddings import Embeddings
from transferkit.errors import UserError
from transferkit.extractor import Extractor

MARK = "it-ran"
TRAIN = ["--data.num_workers", "0", "--trainer.accelerator", "cpu", "--trainer.max_epochs", "1"]


class Bomb:
    """An object that creates a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path(MARK),)


def bomb(path: Path, way: str = "zip", content: Any = None) -> Path:
    """Write a file that runs code when it is unpickled."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = Bomb() if content is None else content
    if way == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=way == "zip")
    return path


def refused(done: Done) -> bool:
    """Return whether a command ended with status 2 and one line, the last on stderr."""
    last = done.err.splitlines()[-1]
    return done.status == 2 and last.startswith("transferkit: error: ") and "Traceback" not in done.err


@pytest.fixture(autouse=True)
def nothing_ran(here: Path) -> Any:
    yield
    assert not list(here.rglob(MARK))


def test_the_bomb_goes_off_where_it_is_loaded_carelessly(here: Path) -> None:
    for way in ("zip", "legacy", "pickle"):
        path = bomb(here / f"{way}.pt", way)
        pickle.loads(path.read_bytes()) if way == "pickle" else torch.load(path, weights_only=False)
        assert (here / MARK).exists(), way
        (here / MARK).unlink()


ENTRANCES: dict[str, Callable[[str], list[str]]] = {
    "fit --model.weights": lambda file: ["fit", *SMALL, *TRAIN, "--model.weights", file],
    "fit --model.backbone": lambda file: ["fit", *TRAIN, "--model.backbone", file],
    "fit --ckpt_path": lambda file: ["fit", *SMALL, *TRAIN, "--ckpt_path", file],
    "validate --ckpt_path": lambda file: ["validate", "--ckpt_path", file],
    "test --ckpt_path": lambda file: ["test", "--ckpt_path", file],
    "predict --ckpt_path": lambda file: ["predict", "--ckpt_path", file],
    "fit --data.splits": lambda file: ["fit", *SMALL, *TRAIN, "--data.splits", file],
    "embed --extractor": lambda file: ["embed", "--extractor", file],
    "embed --weights": lambda file: ["embed", "--weights", file],
    "similarity --extractor": lambda file: ["similarity", "--extractor", file],
    "export": lambda file: ["export", file, "--out", "exported"],
    "export --weights": lambda file: ["export", "resnet18", "--weights", file, "--out", "exported"],
    "evaluate": lambda file: ["evaluate", file],
    "compare": lambda file: ["compare", file, file],
    "scan": lambda file: ["scan", file],
}  # add a line for a new option that takes weights


@pytest.mark.parametrize("way", ["zip", *(pytest.param(way, marks=pytest.mark.slow) for way in ("legacy", "pickle"))])
@pytest.mark.parametrize("entrance", ENTRANCES)
def test_files_given_on_the_command_line(here: Path, photos: Path, entrance: str, way: str) -> None:
    file = bomb(here / "evil.ckpt", way)
    arguments = ENTRANCES[entrance](str(file))
    verb, *options = arguments
    images = {"embed": [str(photos)], "similarity": [str(photos / f"val/limes/{n}") for n in ("0.jpg", "1.png")]}
    root = ["--data.root", str(photos)] if verb in ("fit", "validate", "test", "predict") else []
    done = transferkit(verb, *images.get(verb, []), *options, *root)
    assert refused(done), done.err
    assert "evil.ckpt" in done.err


@pytest.mark.parametrize("place", ["state_dict", "transferkit", "optimizer_states", "hyper_parameters", "callbacks"])
def test_a_bomb_inside_a_real_checkpoint(here: Path, checkpoint: Path, photos: Path, place: str) -> None:
    content = torch.load(checkpoint, weights_only=True)
    content[place] = {"x": Bomb()} | (content[place] if isinstance(content.get(place), dict) else {})
    file = bomb(here / "evil.ckpt", "zip", content)
    done = transferkit("predict", "--ckpt_path", str(file), "--data.root", str(photos))
    assert refused(done), done.err
    with pytest.raises(UserError, match=r"evil\.ckpt"):
        Extractor.from_pretrained(str(file))


@pytest.mark.parametrize("which", ["last", "best"])
@pytest.mark.parametrize("verb", ["fit", "test", "predict"])
def test_a_checkpoint_replaced_in_a_run(here: Path, run: Path, photos: Path, which: str, verb: str) -> None:
    shutil.copytree(run, here / "runs/tiny/0")
    bomb(here / f"runs/tiny/0/checkpoints/{which}.ckpt")
    done = transferkit(verb, "--name", "tiny", "--ckpt_path", which, "--data.root", str(photos))
    assert refused(done), done.err


def test_the_cache_of_torchvision(here: Path, monkeypatch: pytest.MonkeyPatch, photos: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(here / "torch"))
    name = ResNet18_Weights.DEFAULT.url.rpartition("/")[2]
    bomb(here / "torch/hub/checkpoints" / name)
    done = transferkit("fit", "--data.root", str(photos), *TRAIN)
    assert refused(done), done.err
    with pytest.raises(UserError):
        Extractor.from_pretrained("resnet18")


def vit_directory(path: Path, **changes: Any) -> Path:
    """Write a small ViT in Hugging Face's layout, with changes to its configuration and a module that would run."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    ViTModel(ViTConfig(**sizes, image_size=32, patch_size=16), add_pooling_layer=False).save_pretrained(path)
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}
    (path / "preprocessor_config.json").write_text(json.dumps(processor))
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | changes))
    (path / "evil.py").write_text(f"from pathlib import Path\nPath({MARK!r}).touch()\nclass Evil: pass\n")
    return path


def test_a_hugging_face_directory_with_pickled_weights(here: Path, photos: Path) -> None:
    folder = vit_directory(here / "vit")
    (folder / "model.safetensors").unlink()
    bomb(folder / "pytorch_model.bin")
    done = transferkit("fit", "--model.backbone", str(folder), "--data.root", str(photos), *TRAIN)
    assert refused(done), done.err
    with pytest.raises(UserError):
        Extractor.from_pretrained(str(folder))


AUTO_MAP = {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil", "AutoImageProcessor": "evil.Evil"}


def test_code_that_a_known_architecture_brings_is_not_run(here: Path) -> None:
    assert Extractor.from_pretrained(str(vit_directory(here / "vit", auto_map=AUTO_MAP))).embed_dim == 32


def test_a_preprocessing_that_only_its_own_code_knows_is_refused(here: Path) -> None:
    file = vit_directory(here / "vit") / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"auto_map": AUTO_MAP}))
    with pytest.raises(UserError, match="auto_map"):
        Extractor.from_pretrained(str(here / "vit"))


def test_an_architecture_that_only_its_own_code_knows_is_refused(here: Path, photos: Path) -> None:
    folder = vit_directory(here / "vit", model_type="evil", architectures=["Evil"], auto_map=AUTO_MAP)
    done = transferkit("fit", "--model.backbone", str(folder), "--data.root", str(photos), *TRAIN)
    assert refused(done), done.err


@pytest.mark.parametrize("name", ["model.safetensors", "head.safetensors"])
def test_an_exported_directory_with_a_pickle_in_it(here: Path, checkpoint: Path, name: str) -> None:
    extractor = Extractor.from_pretrained(str(checkpoint))
    extractor.save_pretrained(here / "export")
    record = json.loads((here / "export/transferkit.json").read_text())
    if name == "head.safetensors":  # the layout in which this file is read
        record["layout"] = "base"
        (here / "export/transferkit.json").write_text(json.dumps(record))
    bomb(here / "export" / name)
    with pytest.raises(UserError):
        Extractor.from_pretrained(str(here / "export"))


def test_an_embeddings_table_that_is_a_pickle(here: Path) -> None:
    with pytest.raises(UserError, match="is not a readable Parquet file"):
        Embeddings.load(bomb(here / "e.parquet", "pickle"))


FORBIDDEN = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_ATTRIBUTES = {"system", "popen", "unsafe_load", "full_load", "read_pickle", "load_from_checkpoint"}
MODULES = {"pickle", "marshal", "shelve", "dill", "joblib", "cloudpickle"}


def dangers(source: str) -> list[str]:
    """Return every expression that may run the content of a file."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            options = {option.arg: ast.unparse(option.value) for option in node.keywords}
            if options.get("trust_remote_code", "False") != "False":
                found.append("trust_remote_code")
            if called == "torch.load" and options.get("weights_only") != "True":
                found.append(called)
            if options.get("allow_pickle", "False") != "False" or options.get("shell", "False") != "False":
                found.append(called)
            if called in FORBIDDEN or called.rpartition(".")[2] in FORBIDDEN_ATTRIBUTES or called == "yaml.load":
                found.append(called)
            if called.partition(".")[0] in MODULES:
                found.append(called)
    return found


@pytest.mark.parametrize(
    "line",
    [
        "f(trust_remote_code=True)",
        "f(trust_remote_code=flag)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(p, allow_pickle=True)",
        "yaml.load(t)",
        "pickle.loads(b)",
        "os.system(s)",
        "eval(s)",
        "M.load_from_checkpoint(p)",
    ],
)
def test_the_rule_itself(line: str) -> None:
    assert dangers(line)


def test_no_line_of_ours_can_run_what_a_file_holds() -> None:
    folder = Path(package.__file__).parent
    found = {str(path.relative_to(folder)): dangers(path.read_text()) for path in folder.rglob("*.py")}
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_a_good_file_passes_where_the_bombs_do_not(here: Path, photos: Path, checkpoint: Path) -> None:
    state = Extractor.from_pretrained(str(checkpoint)).backbone.model.state_dict()
    state |= {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    save_file(state, here / "good.safetensors")
    torch.save(state, here / "good.pt")
    for name in ("good.safetensors", "good.pt"):
        done = transferkit("fit", "--data.root", str(photos), *SMALL, *TRAIN, "--model.weights", str(here / name))
        assert done.status == 0, done.err
