"""What a stranger gets: a wheel that holds everything, typed; and a Makefile whose help is true."""

import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import transferkit

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=60)
    return zipfile.ZipFile(next(folder.glob("*.whl")))


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return Parser().parsestr(wheel.read(name).decode())


def test_wheel_holds_package_and_configs_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "transferkit").rglob("*.py")}
    configs = {f"transferkit/configs/{path.name}" for path in (ROOT / "configs").iterdir()}
    templates = {path.relative_to(ROOT).as_posix() for path in (ROOT / "transferkit/reports/templates").iterdir()}
    data = {"transferkit/py.typed", "transferkit/backbones/known_models.csv"}
    assert len(templates) > 2 and names == sources | configs | templates | data


def test_wheel_holds_the_licence_and_the_command(wheel: zipfile.ZipFile, metadata: Message) -> None:
    entry_points = next(name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    licence = next(name for name in wheel.namelist() if name.endswith("LICENSE"))
    assert "transferkit = transferkit.cli:main" in wheel.read(entry_points).decode()
    assert "Apache License" in wheel.read(licence).decode()
    assert metadata["License-Expression"] == "Apache-2.0"


SCRIPT = """
import transferkit
from transferkit import *
{names}
extractor = Extractor.from_pretrained("resnet18")
table = embed.embed("photos", extractor)
result = similarity.evaluate(table.embedding, table.labels)
{values}
transferkit.nothing
"""
LIBRARIES = ["torch", "torchvision", "lightning", "torchmetrics", "transformers", "numpy", "PIL", "pyarrow"]


@pytest.fixture(scope="module")
def user(wheel: zipfile.ZipFile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel in it, and all else that is installed here."""
    folder = tmp_path_factory.mktemp("user")
    venv.create(folder)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder)}))
    wheel.extractall(site)
    (site / "libraries.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    return folder


@pytest.mark.parametrize("libraries", ["skip", pytest.param("silent", marks=pytest.mark.slow)])
def test_the_public_names_are_typed(user: Path, libraries: str) -> None:
    """For a type checker that reads the wheel; the quick test skips torch and its like, whose types are Any to it."""
    values = ["extractor", "table", "result.overall", *(["table.embedding"] if libraries == "silent" else [])]
    names = [*transferkit.__all__, "embed.embed", "similarity.evaluate"]
    reveals = [[f"reveal_type({name})" for name in group] for group in (names, values)]
    (user / "script.py").write_text(SCRIPT.format(names="\n".join(reveals[0]), values="\n".join(reveals[1])))
    sections = f"[mypy]\nstrict = true\n[mypy-{','.join(f'{name}.*' for name in LIBRARIES)}]\n"
    (user / "mypy.ini").write_text(f"{sections}follow_imports = {libraries}\n")
    python = Path(sysconfig.get_path("scripts", "venv", {"base": str(user)})) / "python"
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--python-executable", str(python)]
    done = subprocess.run([*command, "script.py"], cwd=user, capture_output=True, text=True, timeout=1200)
    types = re.findall(r'note: Revealed type is "(.*)"$', done.stdout, re.MULTILINE)
    errors = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert len(types) == len(names) + len(values) and "Any" not in types, done
    assert len(errors) == 1 and 'Module has no attribute "nothing"' in errors[0], done


def test_the_public_names_are_there_and_lazy() -> None:
    code = (
        "import sys, transferkit; assert set(transferkit.__all__) <= set(dir(transferkit)); "
        "assert 'torch' not in sys.modules; from transferkit import *; print(Extractor, embed.embed, similarity)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        transferkit.nothing  # type: ignore[attr-defined]  # noqa: B018


def test_version_is_said_once(metadata: Message) -> None:
    assert metadata["Version"] == transferkit.__version__


def test_every_dependency_has_a_floor() -> None:
    requirements = [Requirement(text) for text in PROJECT["dependencies"]]
    assert all(any(spec.operator == ">=" for spec in each.specifier) for each in requirements)


@pytest.mark.parametrize(("version", "allowed"), [("2.6.2", False), ("2.6.3", False), ("2.6.6", True)])
def test_malicious_lightning_is_shut_out(version: str, allowed: bool) -> None:
    lightning = next(text for text in PROJECT["dependencies"] if text.startswith("lightning"))
    assert (version in Requirement(lightning).specifier) is allowed


def test_make_help_lists_every_target() -> None:
    text = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z][a-z-]*):", text, re.MULTILINE))
    phony = set(re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)[1].split())  # type: ignore[index]
    command = ["make", "--no-print-directory", "help"]  # silent also where make itself runs the tests
    output = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    listed = re.findall(r"^make (\S+) +\S.*$", output, re.MULTILINE)
    assert set(listed) == targets == phony
    assert len(listed) == len(output.splitlines())


def test_floors_are_those_of_the_dependencies(tmp_path: Path) -> None:
    makefile, pyproject = ROOT / "Makefile", ROOT / "pyproject.toml"
    (tmp_path / "pyproject.toml").write_bytes(pyproject.read_bytes())
    command = ["make", "-s", "-f", str(makefile), ".venv-floor/floors.txt"]
    subprocess.run(command, cwd=tmp_path, check=True)
    constraints = set((tmp_path / ".venv-floor/floors.txt").read_text().splitlines())
    extras = PROJECT["optional-dependencies"]
    requirements = [Requirement(t) for t in [*PROJECT["dependencies"], *(t for e in extras.values() for t in e)]]
    floors = {
        f"{each.name}=={spec.version}" for each in requirements for spec in each.specifier if spec.operator == ">="
    }
    assert constraints == floors


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 200
