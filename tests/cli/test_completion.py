"""Completion in real shells: what the scripts offer for words that somebody types, and what TAB writes."""

import os
import pty
import re
import select
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.running import transferkit
from transferkit.cli import fit_help
from transferkit.cli.completion import verbs
from transferkit.cli.dispatch import VERBS

NEEDS_ZSH = pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh here")
SHELLS = ["bash", pytest.param("zsh", marks=NEEDS_ZSH)]


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both scripts, and an empty PATH's worth of a transferkit that says when it is started."""
    folder = tmp_path_factory.mktemp("completion")
    for shell in ("bash", "zsh"):
        done = transferkit("completion", shell)
        assert done.status == 0 and done.err == ""
        (folder / shell).write_text(done.out, encoding="utf-8")
    command = folder / "transferkit"
    command.write_text("#!/bin/sh\ntouch started\n")
    command.chmod(0o755)
    return folder


def offered(scripts: Path, *words: str) -> list[str]:
    """What bash offers for the last word, split as readline splits a line."""
    line = f"""source {scripts}/bash; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _transferkit
    printf '%s\\n' "${{COMPREPLY[@]}}" """
    done = subprocess.run(
        ["bash", "--norc", "-c", line, "bash", "transferkit", *words], capture_output=True, text=True, timeout=20
    )
    assert done.returncode == 0 and done.stderr == ""
    return done.stdout.split()


# A key that writes the line as it stands into a file.
READY = {
    "bash": """PS1=; source {}/bash; bind -x '"\\C-t": printf %s "$READLINE_LINE" >line'""",
    "zsh": "PS1=; autoload -U compinit; compinit -u -D; source {}/zsh; "
    "keep() {{ print -rn -- $BUFFER >line }}; zle -N keep; bindkey '^T' keep",
}
PLAIN = {"bash": ["--norc", "--noprofile", "-i"], "zsh": ["-f", "-i"]}


def typed(shell: str, scripts: Path, keys: str, folder: Path) -> str:
    """The line after keys have been typed in an interactive shell."""
    environment = {"PATH": f"{scripts}:{os.environ['PATH']}", "TERM": "dumb", "HOME": str(folder)}
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(folder)
        os.execvpe(shell, [shell, *PLAIN[shell]], environment)
    try:
        os.write(terminal, f"{READY[shell].format(scripts)}; touch ready\n".encode())
        wait_for(folder / "ready", terminal)
        time.sleep(0.2)  # until the next prompt
        os.write(terminal, f"{keys}\x14".encode())
        return wait_for(folder / "line", terminal)
    finally:
        os.kill(child, signal.SIGKILL)
        os.close(terminal)
        os.waitpid(child, 0)


def wait_for(file: Path, terminal: int, limit: float = 20) -> str:
    """The content of a file that the shell writes."""
    shown, end = b"", time.monotonic() + limit
    while not file.exists():
        assert time.monotonic() < end, shown
        if select.select([terminal], [], [], 0.05)[0]:
            shown += os.read(terminal, 4096)
    time.sleep(0.05)
    return file.read_text(encoding="utf-8")


def test_verbs(scripts: Path) -> None:
    assert offered(scripts, "") == [*VERBS, "--help", "--version"]
    assert offered(scripts, "sc") == ["scan"]
    assert offered(scripts, "zzz") == []


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_that_the_help_names_and_no_other(verb: str, scripts: Path) -> None:
    named = set(re.findall(r"^  (--[\w.]+)", transferkit(verb, "--help").out, re.MULTILINE))
    found = set(offered(scripts, verb, "--"))
    if verb in fit_help.VERBS:
        named |= set(re.findall(r"^  (--[\w.]+)", transferkit(verb, "--help-trainer").out, re.MULTILINE))
        named |= {"--help"} | {option for option in found if option.startswith("--model.")}  # of a classifier
    assert found == named


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["embed", "--features", ""], ["pooled", "tokens", "map"]),
        (["embed", "--features", "=", "to"], ["tokens"]),
        (["embed", "--features", "="], ["pooled", "tokens", "map"]),
        (["embed", "photos", "--on_error", "s"], ["skip"]),
        (["fit", "--model.regime", "f"], ["frozen", "full"]),
        (["cache", "c"], ["clear"]),
        (["completion", ""], ["bash", "zsh"]),
        (["embed", "--ext"], ["--extractor"]),
        (["embed", "pho"], []),  # readline completes file names
        (["embed", "--out", ""], []),
        (["no-such-verb", "--"], []),
    ],
)
def test_words_and_options(words: list[str], expected: list[str], scripts: Path) -> None:
    assert offered(scripts, *words) == expected


def test_a_tab_takes_a_fiftieth_of_a_second(scripts: Path) -> None:
    line = f"source {scripts}/bash; COMP_WORDS=(transferkit fit --model.); COMP_CWORD=2; TIMEFORMAT=%U"
    line += "; time for i in {1..50}; do _transferkit; done"
    done = subprocess.run(["bash", "--norc", "-c", line], capture_output=True, text=True)
    assert float(done.stderr) / 50 < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ("transferkit simi\t", "transferkit similarity"),
        ("transferkit embed --feat\t", "transferkit embed --features"),
        ("transferkit embed --features po\t", "transferkit embed --features pooled"),
        ("transferkit embed --features=po\t", "transferkit embed --features=pooled"),
        ("transferkit embed my\t", r"transferkit embed my\ photos/"),
        ("transferkit embed --out my\t", r"transferkit embed --out my\ photos/"),
    ],
)
def test_tab_in_a_real_shell(shell: str, keys: str, line: str, scripts: Path, tmp_path: Path) -> None:
    (tmp_path / "my photos").mkdir()
    assert typed(shell, scripts, keys, tmp_path).rstrip() == line
    assert not (tmp_path / "started").exists()


def test_choices_are_written_for_a_shell() -> None:
    for known in verbs().values():
        for option in (*known.positional, *known.options):
            assert all(re.fullmatch(r"[\w.-]+", word) for word in option.choices)
