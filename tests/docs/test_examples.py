"""The scripts and the notebook under docs/examples run as they stand; the pages show the scripts as they are."""

import json
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs/examples"
SCRIPTS = sorted(path.name for path in EXAMPLES.glob("*.py"))
NEEDS = {"trackers.py": "mlflow", "tables.py": "duckdb", "trackio_logger.py": "trackio"}
NOTEBOOK = json.loads((EXAMPLES / "notebook.ipynb").read_text(encoding="utf-8"))
PAGES = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").rglob("*.md"))


@pytest.mark.docs
@pytest.mark.usefixtures("filled_caches")
@pytest.mark.parametrize("script", [name for name in SCRIPTS if name != "sweep.py"])  # a page runs that
def test_a_script_runs(script: str, photo_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(NEEDS.get(script, "torch"))
    monkeypatch.chdir(photo_folder.parent)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for the commands that it starts
    monkeypatch.setenv("TRACKIO_DIR", str(photo_folder.parent / "trackio"))
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS", "WANDB_MODE", "MLFLOW_ALLOW_FILE_STORE"):
        monkeypatch.setenv(name, "")  # so that what it sets is undone
        monkeypatch.delenv(name)
    runpy.run_path(str(EXAMPLES / script), run_name="__main__")


@pytest.mark.docs
@pytest.mark.usefixtures("filled_caches")
def test_the_notebook_runs(photo_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photo_folder.parent)
    names: dict[str, object] = {}
    for cell in NOTEBOOK["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    assert (photo_folder.parent / "runs/notebook/0/report.html").is_file()


def test_the_notebook_is_committed_without_outputs() -> None:
    code = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    assert code and all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert (NOTEBOOK["nbformat"], len({cell["id"] for cell in NOTEBOOK["cells"]})) == (4, len(NOTEBOOK["cells"]))


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_page_names_every_script(script: str) -> None:
    assert f"examples/{script}" in PAGES


def test_the_sweep_is_short_and_shown_as_it_is() -> None:
    source = (EXAMPLES / "sweep.py").read_text(encoding="utf-8").split('"""\n', 1)[1]
    assert source.strip() in PAGES
    lines = [line for line in source.splitlines() if line.strip() and not line.strip().startswith('"""')]
    assert len([line for line in lines if not line.startswith(("import", "from"))]) <= 15
