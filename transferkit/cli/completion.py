"""Scripts that complete commands, options, words and file names in a shell.

Everything is written into the script: nothing of transferkit is started while somebody types.
"""

import importlib
import shlex
from collections.abc import Sequence
from itertools import chain
from string import Template
from typing import NamedTuple

from transferkit.cli import fit_help
from transferkit.cli.dispatch import VERBS
from transferkit.cli.help_layout import Option
from transferkit.cli.verb_help import EVERY, options_by_group

LONGEST = 70  # letters of a description

BASH = Template(
    """\
# Completes transferkit in bash; `transferkit completion bash` wrote it.
_transferkit() {
    local IFS=$$' \\t\\n' word=$${COMP_WORDS[COMP_CWORD]} before=$${COMP_WORDS[COMP_CWORD - 1]} found=
    if [[ $$before == = ]]; then  # --option=word comes as three words
        before=$${COMP_WORDS[COMP_CWORD - 2]}
    elif [[ $$word == = ]]; then
        word=
    fi
    if ((COMP_CWORD == 1)); then
        found=$verbs
    elif [[ $$word == -* ]]; then
        case "$${COMP_WORDS[1]}" in
$options
        esac
    else
        case "$${COMP_WORDS[1]} $$before" in
$choices
        esac
    fi
    COMPREPLY=($$(compgen -W "$$found" -- "$$word"))
}
complete -o default -F _transferkit transferkit
"""
)
ZSH = Template(
    """\
#compdef transferkit
# Completes transferkit in zsh; `transferkit completion zsh` wrote it.
_transferkit() {
    local -a found
    local before=$$words[CURRENT-1]
    if (( CURRENT == 2 )); then
        found=($verbs)
        _describe command found
        return
    fi
    if [[ $$PREFIX == --*=* ]]; then
        before=$${PREFIX%%=*}
        compset -P '*='
    fi
    if [[ $$PREFIX == -* ]]; then
        case "$$words[2]" in
$options
        esac
        _describe -o option found
        return
    fi
    case "$$words[2] $$before" in
$choices
    esac
    if (( $$#found )); then
        compadd -a found
    else
        _files
    fi
}
if [[ $$funcstack[1] == _transferkit ]]; then
    _transferkit "$$@"
else
    compdef _transferkit transferkit
fi
"""
)


class Verb(NamedTuple):
    """What is completed after a verb.

    Attributes:
        positional: its arguments.
        options: its options.
    """

    positional: Sequence[Option]
    options: Sequence[Option]


def verbs() -> dict[str, Verb]:
    """Return verb -> what is completed after it."""
    found = {}
    for name, (module, _) in VERBS.items():
        if name in fit_help.VERBS:
            found[name] = Verb([], [*fit_help.every_option(name), Option("help", "")])
        else:
            command = getattr(importlib.import_module(f"transferkit.cli.commands.{module}"), name)
            groups = options_by_group(command)
            found[name] = Verb(groups.pop(""), [*chain.from_iterable(groups.values()), *EVERY])
    return found


def choices(verb: str, known: Verb) -> dict[str, Sequence[str]]:
    """Return the word before -> the words that may follow it: an option, or the verb itself."""
    first = {verb: known.positional[0].choices} if known.positional else {}
    given = first | {f"--{option.name}": option.choices for option in known.options}
    return {before: words for before, words in given.items() if words}


def bash() -> str:
    """Return the script for bash."""
    known = verbs()
    words = {
        f"{verb} {before}": " ".join(found)
        for verb, each in known.items()
        for before, found in choices(verb, each).items()
    }
    options = {verb: " ".join(f"--{option.name}" for option in each.options) for verb, each in known.items()}
    return BASH.substitute(
        verbs=shlex.quote(" ".join([*known, "--help", "--version"])),
        choices="\n".join(f"            {shlex.quote(case)}) found={shlex.quote(w)} ;;" for case, w in words.items()),
        options="\n".join(f"            {verb}) found={shlex.quote(text)} ;;" for verb, text in options.items()),
    )


def zsh() -> str:
    """Return the script for zsh, where options have descriptions."""
    known = verbs()
    words = {
        f"{verb} {before}": shlex.join(found)
        for verb, each in known.items()
        for before, found in choices(verb, each).items()
    }
    options = {
        verb: shlex.join(described(f"--{option.name}", option.text) for option in each.options)
        for verb, each in known.items()
    }
    return ZSH.substitute(
        verbs=shlex.join(described(verb, text) for verb, (_, text) in VERBS.items()),
        choices="\n".join(f"        ({shlex.quote(case)}) found=({found}) ;;" for case, found in words.items()),
        options="\n".join(f"            ({verb}) found=({found}) ;;" for verb, found in options.items()),
    )


def described(word: str, text: str) -> str:
    """Return a word with its description, cut short, as zsh's `_describe` takes it."""
    plain = text.replace("``", "").replace("\\", "")
    return f"{word}:{plain if len(plain) <= LONGEST else plain[: LONGEST - 1].rstrip() + '…'}"
