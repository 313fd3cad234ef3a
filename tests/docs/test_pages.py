"""Every command and all Python of the documentation's pages, run as they stand; every link leads somewhere."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from transferkit import cli

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {path.relative_to(DOCS).as_posix(): path for path in sorted(DOCS.rglob("*.md"))}
BLOCK = re.compile(r"^```(bash|python|yaml)\n(.*?)^```", re.DOTALL | re.MULTILINE)
RUN = [name for name, path in PAGES.items() if BLOCK.search(path.read_text(encoding="utf-8"))]


@pytest.mark.docs
@pytest.mark.usefixtures("filled_caches")
@pytest.mark.parametrize("page", RUN)
def test_its_code_runs(
    page: str, photo_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(photo_folder.parent)
    Path("boxes.csv").write_text("path,x1,y1,x2,y2,label\ntrain/apples/0.jpg,0,0,20,20,spot\n")
    names: dict[str, object] = {}
    for language, code in BLOCK.findall(PAGES[page].read_text(encoding="utf-8")):
        if language == "bash":
            for line in code.replace("\\\n", " ").splitlines():
                run(line, monkeypatch, capsys)
        elif language == "python":
            exec(compile(code, page, "exec"), names)
        elif named := re.match(r"# (\S+\.yaml)\n", code):
            Path(named[1]).write_text(code, encoding="utf-8")


def run(line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Run a command line of transferkit's here; it must end with status 0."""
    program, *arguments = shlex.split(line)
    assert program == "transferkit", line
    monkeypatch.setattr(sys, "argv", [program, *arguments])
    status = cli.run(arguments)
    assert status == 0, f"{line}: {capsys.readouterr().err[-2000:]}"


@pytest.mark.parametrize("page", PAGES)
def test_its_links_lead_somewhere(page: str) -> None:
    path = PAGES[page]
    for target in re.findall(r"\]\(([^)#]+)", path.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (path.parent / target).resolve().is_file() or target == "reference/commands.md", target
