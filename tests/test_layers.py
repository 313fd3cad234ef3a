"""The house: imports go strictly downward, also lazy ones; floor-mates do not know each other."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "transferkit"
FLOORS = (  # from the ground up; a room is a module or a folder of modules
    {"cores", "errors"},
    {"embedding_space", "files", "images", "intervals", "metrics", "parquet", "processor_config", "progress", "ranks"}
    | {"similarity", "versions"},
    {"pictures", "preprocessing"},
    {"backbones", "embeddings", "runs"},
    {"data", "extractor", "freezing", "optimizers"},
    {"checkpoints", "embed", "metrics_table"},
    {"evaluation", "export", "module_record", "probe", "projector", "regions", "search"},
    {"regularization_path"},
    {"module"},
    {"epoch_lines", "results", "run_record", "trainer_options"},
    {"training"},
    {"benchmark", "quickstart"},
    {"commands"},
    {"cli"},
    {"__init__", "__main__"},
)
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
AVOIDED = {"utils", "helpers", "common", "manager"}
MODULES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}


def room_of(module: str) -> str:
    """The room of a file in the package: ``data/sources.py`` is in ``data``."""
    return module.split("/")[0].removesuffix(".py")


def imports(source: str) -> Iterator[tuple[int, str]]:
    """Line and room of each import from transferkit, lazy ones too; its version is free to all."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.startswith("transferkit.")]
        elif isinstance(node, ast.ImportFrom) and node.level:
            names = ["transferkit.a_relative_import"]
        elif isinstance(node, ast.ImportFrom) and node.module == "transferkit":
            names = [f"transferkit.{alias.name}" for alias in node.names if alias.name != "__version__"]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("transferkit."):
            names = [node.module or ""]
        else:
            continue
        yield from ((node.lineno, name.split(".")[1]) for name in names)


def violations(module: str, source: str) -> list[str]:
    """Every import of a file that does not go downward, as ``file:line imports room``."""
    room = room_of(module)
    return [
        f"{module}:{line} imports {other}"
        for line, other in imports(source)
        if other != room and not LEVEL.get(other, len(FLOORS)) < LEVEL[room]
    ]


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_downward(module: str) -> None:
    assert room_of(module) in LEVEL, f"{module}: give {room_of(module)} a floor in tests/test_layers.py"
    assert violations(module, MODULES[module].read_text()) == []


@pytest.mark.parametrize("module", MODULES)
def test_files_are_short_and_well_named(module: str) -> None:
    lines = len(MODULES[module].read_text().splitlines())
    assert lines <= 400, f"{module} has {lines} lines: split it"
    assert not AVOIDED & set(module.removesuffix(".py").split("/")), f"{module}: say what it does in its name"


@pytest.mark.parametrize(
    ("module", "source", "downward"),
    [
        ("extractor.py", "from transferkit.backbones.base import Backbone", True),
        ("data/scan.py", "from transferkit.data.sources import open_images", True),
        ("cli.py", "from transferkit import __version__, commands", True),
        ("extractor.py", "from transferkit.data import sources", False),  # floor-mates
        ("probe.py", "import transferkit.training", False),  # upward
        ("files.py", "def later():\n    from transferkit import images", False),  # lazy
        ("files.py", "from .errors import UserError", False),  # relative
        ("files.py", "from transferkit.unknown import x", False),
    ],
)
def test_the_rule_itself(module: str, source: str, downward: bool) -> None:
    assert (violations(module, source) == []) is downward
