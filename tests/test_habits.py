"""What keeps the project in order: CI, hooks, versions and formats that are written down are those in use."""

import importlib
import re
import tomllib
from pathlib import Path

import pytest
import yaml

import transferkit

ROOT = Path(__file__).parents[1]
CHANGELOG = (ROOT / "docs/changelog.md").read_text(encoding="utf-8")
FORMATS = re.findall(r"^\|.*\| (\d+) \| `(\S+)\.py` `(\w+)` \|$", CHANGELOG, flags=re.MULTILINE)
PAGES = [*(ROOT / ".github").glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "README.md"]


def read(path: str) -> dict[str, object]:
    content: dict[str, object] = yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))
    return content


def test_ci_runs_what_the_ci_script_runs() -> None:
    jobs: dict[str, dict[str, object]] = read(".github/workflows/ci.yml")["jobs"]  # type: ignore[assignment]
    steps = {name: [step["run"] for step in job["steps"] if "run" in step] for name, job in jobs.items()}  # type: ignore[attr-defined]
    assert steps == {"test": [".ci/run"], "floors": ["make floors"]}
    versions = jobs["test"]["strategy"]["matrix"]["python"]  # type: ignore[index]
    requires = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert versions[0] == requires.removeprefix(">=") and versions == ["3.11", "3.12", "3.13"]


def test_hooks_check_style_on_commit_and_types_on_push() -> None:
    (repo,) = read(".pre-commit-config.yaml")["repos"]  # type: ignore[misc]
    hooks = {hook["entry"]: hook["stages"] for hook in repo["hooks"]}
    assert hooks == {"make style": ["pre-commit"], "make types": ["pre-push"]}


def test_the_citation_has_the_version() -> None:
    citation = read("CITATION.cff")
    assert citation["version"] == transferkit.__version__ and citation["license"] == "Apache-2.0"


@pytest.mark.parametrize(("number", "module", "name"), FORMATS, ids=[module for _, module, _ in FORMATS])
def test_a_format_number_is_the_one_in_use(number: str, module: str, name: str) -> None:
    assert getattr(importlib.import_module(f"transferkit.{module.replace('/', '.')}"), name) == int(number)


def test_every_format_number_is_listed() -> None:
    package, number = ROOT / "transferkit", re.compile(r"^(FORMAT|PROTOCOL) = \d", re.MULTILINE)
    found = {path.relative_to(package) for path in package.rglob("*.py") if number.search(path.read_text())}
    assert found == {Path(f"{module}.py") for _, module, _ in FORMATS}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []
