"""``completion``: a script that completes commands in a shell."""

from typing import Literal

from transferkit.cli.parsing import call


def main(arguments: list[str]) -> int:
    """Run the command; return the exit status."""
    return call(completion, arguments)


def completion(shell: Literal["bash", "zsh"]) -> int:
    """Print a script that completes commands, options, their words and file names in bash or zsh.

    Save it where the shell finds it, and again after an update of transferkit. For bash:
    transferkit completion bash > ~/.local/share/bash-completion/completions/transferkit (with the package
    bash-completion; otherwise source the file in ~/.bashrc). For zsh: into a file _transferkit in a folder of $fpath.

    Args:
        shell: for which shell.
    """
    from transferkit.cli import completion as scripts

    print(scripts.bash() if shell == "bash" else scripts.zsh(), end="")
    return 0
