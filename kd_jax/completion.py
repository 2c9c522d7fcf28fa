"""Completes commands, flags, experiments and keys in a shell.

usage: kd_jax completion bash|zsh|fish

  bash, in ~/.bashrc:                  eval "$(kd_jax completion bash)"
  zsh, in ~/.zshrc:                    eval "$(kd_jax completion zsh)"
  fish, in ~/.config/fish/config.fish: kd_jax completion fish | source
"""

import importlib
from collections.abc import Iterable

from absl import flags

from kd_jax import cli
from kd_jax.errors import InputError, choose

BREAKS = "=:"  # behind the last of these bash replaces a word
BASH = """\
_kd_jax() {
    local IFS=$'\\n'
    COMPREPLY=($(kd_jax completion words "${COMP_LINE:0:$COMP_POINT}" 2>/dev/null))
    [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *= ]] && compopt -o nospace
}
complete -o default -F _kd_jax kd_jax
"""
SCRIPTS = {
    "bash": BASH,
    "zsh": "autoload -U +X bashcompinit && bashcompinit\n" + BASH.replace("compopt", "compopt 2>/dev/null"),
    "fish": "complete -c kd_jax -a '(kd_jax completion words (commandline -cp | string collect) whole 2>/dev/null)'\n",
}


def main(arguments: list[str]) -> None:
    if len(arguments) in (2, 3) and arguments[0] == "words":  # what the scripts call
        found = words(arguments[1])
        typed = arguments[1].split(" ")[-1]
        cut = 0 if len(arguments) == 3 else max(typed.rfind(mark) for mark in BREAKS) + 1
        print("\n".join(word[cut:] for word in found))
    elif len(arguments) == 1:
        print(choose("the shell", arguments[0], SCRIPTS), end="")
    else:
        raise InputError(f"expected one shell: {', '.join(SCRIPTS)}")


def words(line: str) -> list[str]:
    """What the last word of a command line that begins with `kd_jax` may be; none where it is a path.

    >>> words("kd_jax --config=rk"), words("kd_jax ex"), words("kd_jax --config=kd --config.optimizer.nest")
    (['--config=rkd'], ['explain', 'export'], ['--config.optimizer.nesterov='])
    """
    *before, typed = line.split(" ")
    command = next((word for word in before[1:] if word), "--")
    return sorted(word for word in _candidates(command, typed) if word.startswith(typed))


def _candidates(command: str, typed: str) -> Iterable[str]:
    from kd_jax.config import shipped
    from kd_jax.keys import KEYS

    if command == "--" and not typed.startswith("-"):
        return cli.COMMANDS
    if typed.startswith("--config="):
        return [f"--config={name}" for name in shipped()]
    if command == "completion":
        return SCRIPTS
    module = f"kd_jax.{'main' if command.startswith('-') else command.replace('-', '_')}"
    if module.rpartition(".")[2] not in {name.replace("-", "_") for name in ("main", *cli.COMMANDS)}:
        return ()
    own = flags.FLAGS.get_key_flags_for_module(importlib.import_module(module))
    if typed.startswith("--config.") and any(flag.name == "config" for flag in own):
        return [f"--config.{part}{key}=" for key in KEYS for part in ("", "teacher.config.")]
    given = (f"--{flag.name}" + ("" if flag.boolean else "=") for flag in own)
    of_many = ("--seeds=", "--sweep=") if command.startswith("-") else ()  # see `cli.MANY`
    return [*given, *of_many, "--help", *(["--config."] if any(flag.name == "config" for flag in own) else [])]


def _after_dashes(arguments: list[str]) -> list[str]:
    """So that absl takes no word that is to be completed for a flag."""
    return ["--", *arguments] if arguments[:1] == ["words"] else arguments


if __name__ == "__main__":
    cli.run(main, __doc__ or "", _after_dashes, loads=False)  # each new shell calls it
