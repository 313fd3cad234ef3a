from pathlib import Path

import pytest
import yaml

from tests.running import transferkit
from transferkit.cli.arguments import (
    all_options,
    as_config,
    check_sections,
    find_config,
    read_setting,
    read_yaml,
    without_option,
)
from transferkit.cli.fit_help import known_options
from transferkit.cli.parsing import rephrase
from transferkit.errors import UserError


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_configs_are_found_here_then_in_configs_then_among_those_shipped(here: Path) -> None:
    shipped = find_config("vit.yaml")
    assert shipped.is_file() and shipped == find_config("vit") and not shipped.is_relative_to(here)
    (here / "configs").mkdir()
    (here / "configs/vit.yaml").touch()
    assert find_config("vit") == find_config("configs/vit.yaml") == Path("configs/vit.yaml")
    (here / "vit.yaml").touch()
    assert find_config("vit.yaml") == Path("vit.yaml")
    assert find_config(str(here / "vit.yaml")) == here / "vit.yaml"


def test_an_unknown_config_names_those_shipped() -> None:
    with pytest.raises(UserError, match=r"no config 'vti'.*the shipped ones: benchmark.yaml, .*vit.yaml"):
        find_config("vti")


def test_values_of_an_option() -> None:
    arguments = ["--a", "1", "--b=x", "--a=2", "--ab", "3"]
    assert all_options(arguments, "--a") == ["1", "2"]
    assert all_options(arguments, "--c") == []
    with pytest.raises(UserError, match="--a needs a value"):
        all_options(["--a"], "--a")


def test_an_option_taken_out() -> None:
    assert without_option(["x", "--a", "1", "--b", "2", "--a=3"], "--a") == ["x", "--b", "2"]


def test_a_setting_is_the_last_and_the_command_line_wins(here: Path) -> None:
    (here / "one.yaml").write_text("name: one\ntrainer: {default_root_dir: first}\n")
    (here / "two.yaml").write_text("trainer: {default_root_dir: second}\n")
    files = [Path("one.yaml"), Path("two.yaml")]
    assert read_setting([], files, "trainer.default_root_dir") == "second"
    assert read_setting([], files, "name") == "one"
    assert read_setting(["--name", "x", "--name=y"], files, "name") == "y"
    assert read_setting([], files, "data.root") is None


@pytest.mark.parametrize("text", ["a: [1", "- a\n", "just text", "\x00"])
def test_configs_that_are_none(here: Path, text: str) -> None:
    (here / "bad.yaml").write_text(text)
    with pytest.raises(UserError, match=r"config bad.yaml (cannot be read|holds no options)"):
        read_yaml(Path("bad.yaml"))


def test_an_empty_config_is_one(here: Path) -> None:
    (here / "empty.yaml").write_text("# nothing\n")
    assert read_yaml(Path("empty.yaml")) == {}
    assert as_config({}) == []


def test_a_section_without_options(here: Path) -> None:
    (here / "bad.yaml").write_text("model: 3\n")
    with pytest.raises(UserError, match=r"bad.yaml: model holds no options"):
        check_sections(Path("bad.yaml"))


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("unrecognized arguments: --model.backbon x", "unknown option --model.backbon; did you mean --model.backbone?"),
        ("unrecognized arguments: --batch_size=3", "unknown option --batch_size=3; did you mean --data.batch_size?"),
        (
            "Subcommand 'fit' does not accept option 'modl.lr_head'",
            "unknown option modl.lr_head; did you mean --model.lr_head?",
        ),
        ("unrecognized arguments: zzz", "unexpected argument 'zzz'; transferkit fit --help lists those it takes"),
        ("several\n lines", "several lines"),
    ],
)
def test_what_a_parser_says_in_one_line(message: str, line: str) -> None:
    assert rephrase(message, known_options(), "fit") == line


@pytest.mark.parametrize(
    "lines",
    [
        ["model.lr_head: 0.001", "model:", "  weights: none"],
        ["model:", "  weights: none", "model.lr_head: 0.001"],
        ["model.preprocessing.image_size: 32", "model.preprocessing: {resize: 32}"],
        ["model.preprocessing.image_size: 32", "model: {weights: none}"],
    ],
)
def test_a_dotted_key_beside_its_section_is_refused(tmp_path: Path, lines: list[str]) -> None:
    """The parser would lose one of them in silence; of which, the order decides."""
    file = tmp_path / "c.yaml"
    file.write_text("\n".join(lines))
    with pytest.raises(UserError, match=rf"^config {file}: 'model\..*' stands beside the section 'model.*; write '.*'"):
        read_yaml(file)


def test_a_dotted_key_alone_is_an_option(tmp_path: Path) -> None:
    """For the parser, and for what is read before it."""
    file = tmp_path / "c.yaml"
    file.write_text("model.lr_head: 0.001\nmodel.weights: none\ntrainer.default_root_dir: here\ndata:\n  root: a.b\n")
    assert read_setting([], [file], "trainer.default_root_dir") == "here"
    assert read_setting([], [file], "data.root") == "a.b"
    assert read_setting([], [file], "data.nothing") is None
    printed = yaml.safe_load(transferkit("fit", "--config", str(file), "--print_config").out)
    assert printed["model"]["lr_head"] == 0.001 and printed["model"]["weights"] == "none"
    assert printed["trainer"]["default_root_dir"] == "here"


@pytest.mark.parametrize(
    ("text", "key", "lines"),
    [
        ("model:\n  weights: none\nmodel:\n  lr_head: 0.2\n", "model", "1 and 3"),
        ("model:\n  lr_head: 0.1\n  lr_head: 0.2\n", "lr_head", "2 and 3"),
        ("trainer:\n  callbacks:\n  - class_path: EarlyStopping\n    class_path: Timer\n", "class_path", "3 and 4"),
        ('{"name": "a", "seed_everything": 1,\n "name": "b"}', "name", "1 and 2"),
    ],
)
def test_a_key_that_is_given_twice_is_refused(tmp_path: Path, text: str, key: str, lines: str) -> None:
    """YAML's loader would lose the first of them in silence, and a whole section with it."""
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=rf"^config {file} has '{key}' twice, in lines {lines}; keep one"):
        read_yaml(file)


def test_an_alias_is_no_repetition(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("a: &same {x: 1}\nb: *same\nc:\n- *same\n- *same\nd:\n  <<: *same\n  y: 2\n")
    assert read_yaml(file)["d"] == {"x": 1, "y": 2}
