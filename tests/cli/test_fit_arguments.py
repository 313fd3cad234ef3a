"""What fit and its siblings read before the parser does: a folder that stands alone."""

from pathlib import Path

import pytest
import yaml

from tests.running import refused, transferkit
from transferkit.cli.arguments import as_root
from transferkit.training import trainer_options

VERBS = ["fit", "validate", "test", "predict"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("photos", "--data.root photos"),
        ("photos --name x", "--name x --data.root photos"),
        ("--name x photos", "--name x --data.root photos"),
        ("--json photos", "--json --data.root photos"),
        ("--name=x photos --json", "--name=x --json --data.root photos"),
        ("--print_config photos", "--print_config --data.root photos"),
        ("--trainer.max_steps -1 photos", "--trainer.max_steps -1 --data.root photos"),
        ("--config vit photos", "--config vit --data.root photos"),
        ("--data.root photos --json", "--data.root photos --json"),
        ("", ""),
    ],
)
def test_a_place_alone_is_the_root(line: str, expected: str) -> None:
    assert as_root("fit", line.split()) == expected.split()


@pytest.mark.parametrize("verb", VERBS)
def test_it_wins_over_configs_as_the_option_does(verb: str) -> None:
    Path("c.yaml").write_text("data: {root: others, batch_size: 7}\n")
    for arguments in (["photos", "--config", "c.yaml"], ["--config", "c.yaml", "--json", "photos"]):
        config = yaml.safe_load(transferkit(verb, *arguments, "--print_config").out)
        assert (config["data"]["root"], config["data"]["batch_size"]) == ("photos", 7)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        (
            ["photos", "--data.root", "others"],
            "images are given twice: 'photos', and --data.root 'others'; leave one out",
        ),
        (["--data.root=others", "photos"], "images are given twice: 'photos', and --data.root 'others'; leave one out"),
        (["photos", "others"], "unexpected argument 'others'; transferkit .* takes images once"),
        (["vit.yaml"], "vit.yaml is a config, not images; give it as --config vit.yaml"),
    ],
)
def test_what_cannot_be_meant(verb: str, arguments: list[str], pattern: str) -> None:
    assert refused(transferkit(verb, *arguments), pattern)


def test_a_folder_that_is_not_there() -> None:
    assert refused(transferkit("fit", "gone", "--model.weights", "none"), "no such folder or file: 'gone'")
    assert not Path("runs").exists()


@pytest.mark.parametrize("given", [["--trainer.precision", "auto"], ["--trainer.precision=auto"]])
def test_precision_auto_is_chosen_by_the_device(given: list[str]) -> None:
    done = transferkit("fit", "photos", *given, "--trainer.accelerator", "cpu", "--print_config")
    assert yaml.safe_load(done.out)["trainer"]["precision"] == "32-true"


@pytest.mark.parametrize("computes", [True, False])
def test_precision_auto_of_a_network_that_learns_wholly(computes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_options, "computes_in_bf16", lambda: computes)
    Path("mine.yaml").write_text("trainer: {precision: auto, accelerator: cpu}\nmodel: {regime: full}\n")
    typed = ["--trainer.precision", "auto", "--trainer.accelerator", "cpu", "--model.regime", "full"]
    for given in (typed, ["--config", "mine.yaml"]):
        done = transferkit("fit", "photos", *given, "--print_config")
        assert yaml.safe_load(done.out)["trainer"]["precision"] == ("bf16-mixed" if computes else "32-true")


def test_precision_auto_of_a_config_too() -> None:
    Path("mine.yaml").write_text("trainer:\n  precision: auto\n  max_epochs: 7\n")
    done = transferkit("fit", "photos", "--config", "mine.yaml", "--trainer.accelerator", "cpu", "--print_config")
    trainer = yaml.safe_load(done.out)["trainer"]
    assert done.status == 0 and (trainer["precision"], trainer["max_epochs"]) == ("32-true", 7), done.err


@pytest.mark.parametrize("verb", ["fit", "predict"])
def test_an_image_root_of_a_config_is_for_its_own_kind_of_images(verb: str) -> None:
    Path("c.yaml").write_text("data: {root: list.csv, image_root: photos, batch_size: 7}\n")
    for given, root in (([], "photos"), (["other.csv"], "photos"), (["elsewhere"], None), (["one.jpg"], None)):
        data = yaml.safe_load(transferkit(verb, *given, "--config", "c.yaml", "--print_config").out)["data"]
        assert (data["image_root"], data["batch_size"]) == (root, 7)
    typed = transferkit(verb, "elsewhere", "--config", "c.yaml", "--data.image_root", "mine", "--print_config")
    assert yaml.safe_load(typed.out)["data"]["image_root"] == "mine", "which is refused when the images are opened"
