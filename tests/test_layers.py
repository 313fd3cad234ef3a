"""The house: imports go strictly downward, also lazy ones; no circles; short files, each name once."""

import ast
import statistics
from collections import Counter
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "transferkit"
FLOORS = (  # from the ground up; a room is a folder of modules, or a module beside the folders
    {"errors"},
    {"runtime", "similarity"},
    {"images"},
    {"backbones"},
    {"data", "extractor"},
    {"embed", "reports"},
    {"evaluation", "probe", "search"},
    {"training"},
    {"cli"},
    {"__init__", "__main__"},
)
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
AVOIDED = {"utils", "helpers", "common", "manager"}
MODULES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}


def room_of(module: str) -> str:
    """The room of a file in the package: ``data/image_table.py`` is in ``data``."""
    return module.split("/")[0].removesuffix(".py")


def imports(source: str) -> Iterator[tuple[int, str]]:
    """Line and room of each import from transferkit, lazy ones too; its version is free to all."""
    for line, name in imported(source):
        if name != "transferkit.__version__":
            yield line, name.split(".")[1]


def imported(source: str) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything imported from transferkit: ``transferkit.errors.UserError``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.startswith("transferkit.")]
        elif isinstance(node, ast.ImportFrom) and node.level:
            names = ["transferkit.a_relative_import"]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "transferkit":
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from ((node.lineno, name) for name in names)


def violations(module: str, source: str) -> list[str]:
    """Every import of a file that does not go downward, as ``file:line imports room``."""
    room = room_of(module)
    return [
        f"{module}:{line} imports {other}"
        for line, other in imports(source)
        if other != room and not LEVEL.get(other, len(FLOORS)) < LEVEL[room]
    ]


def module_of(name: str) -> str | None:
    """The file that a dotted name is found in, as a key of ``MODULES``."""
    parts = name.split(".")[1:]
    while parts:
        for path in (f"{'/'.join(parts)}.py", f"{'/'.join(parts)}/__init__.py"):
            if path in MODULES:
                return path
        parts.pop()
    return None


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_downward(module: str) -> None:
    assert room_of(module) in LEVEL, f"{module}: give {room_of(module)} a floor in tests/test_layers.py"
    assert violations(module, MODULES[module].read_text()) == []


def test_no_files_import_each_other() -> None:  # not even for type checking
    graph = {
        module: {module_of(name) for _, name in imported(path.read_text())} - {None, module, "__init__.py"}
        for module, path in MODULES.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_a_name_stands_once() -> None:  # a command may be called as the noun it works on
    stems = Counter(
        path.stem for path in MODULES.values() if path.stem != "__init__" and path.parent.name != "commands"
    )
    assert [stem for stem, count in stems.items() if count > 1] == []


def test_files_are_short() -> None:
    assert statistics.median(len(path.read_text().splitlines()) for path in MODULES.values()) <= 125


@pytest.mark.parametrize("module", MODULES)
def test_a_file_is_short_and_well_named(module: str) -> None:
    lines = len(MODULES[module].read_text().splitlines())
    assert lines <= 400, f"{module} has {lines} lines: split it"
    assert not AVOIDED & set(module.removesuffix(".py").split("/")), f"{module}: say what it does in its name"


@pytest.mark.parametrize(
    ("module", "source", "downward"),
    [
        ("extractor/core.py", "from transferkit.backbones.base import Backbone", True),
        ("data/scan/scan.py", "from transferkit.data.image_table import open_images", True),
        ("cli/dispatch.py", "from transferkit import __version__, training", True),
        ("extractor/core.py", "from transferkit.data import image_table", False),  # floor-mates
        ("probe/protocol.py", "import transferkit.training", False),  # upward
        ("runtime/files.py", "def later():\n    from transferkit import images", False),  # lazy
        ("runtime/files.py", "from .errors import UserError", False),  # relative
        ("runtime/files.py", "from transferkit.unknown import x", False),
    ],
)
def test_the_rule_itself(module: str, source: str, downward: bool) -> None:
    assert (violations(module, source) == []) is downward
