"""What --help says: the flags of one command, in groups, as wide as the terminal."""

import functools
import re
import shutil
import textwrap
from types import ModuleType

from absl import flags

GROUPS = {
    "many runs": ("jobs", "results", "on", "engine_options", "restart"),
    "stopping early": ("prune", "prune_trials", "prune_epochs"),
    "many processes": ("coordinator", "processes", "process_id", "distributed"),
}
# Of flags that several commands have: what they say in each.
OF_COMMAND = {
    "to": {
        "export": "A new file; its end says which format.",
        "explain": "A folder; by default the run's.",
        "report": "A folder; by default `report`.",
        "import-teacher": "A new folder.",
        "benchmark-export": "A new folder.",
    },
    "against": {
        "explain": "The folder of a run to compare with; may be given more than once.",
        "compare": "The name of the row to compare with; by default `student`.",
    },
    "rows": {"quickstart": "The rows of its table.", "table": "Which table, a name or FILE.py; by default `original`."},
    "json": {
        "plan": "Print all figures as JSON, in bytes and seconds.",
        "predict": "Print a line of JSON for each image.",
    },
    "seeds": {
        "quickstart": "Seeds 0, 1, ... of every row; by default 1.",
        "table": "Seeds 0, 1, ... of every row; by default 3.",
        "sweep": "Seeds 0, 1, ... of every row; by default 3.",
    },
}
VALUES = {"config": "NAME|FILE", "term": "TERM:KEY=X", "sweep": "KEY=A,B,C", "search": "KEY=LOW..HIGH"}
ADDED = re.compile(r"^<[^>]*>: |;\s+repeat this option to specify a list of values$")  # to a help, by absl
LEFT = 30  # columns of the flags' names


def text(usage: str, module: ModuleType) -> str:
    """The help of a command: its usage, and the flags that its module defines or declares as its own."""
    command = (module.__spec__.name if module.__spec__ else module.__name__).rpartition(".")[2].replace("_", "-")
    own = {flag.name: flag for flag in flags.FLAGS.get_key_flags_for_module(module)}
    grouped = {heading: [own.pop(name) for name in names if name in own] for heading, names in GROUPS.items()}
    usage = re.sub(r"python -m kd_jax\.(\w+)", lambda found: _as_command(found[1]), usage)
    parts = [filled(usage.strip(), _width())]
    for heading, members in {"flags": list(own.values()), **grouped}.items():
        if members:
            parts.append("\n".join([f"{heading}:", *(_line(flag, command) for flag in members)]))
    others = [row("--help", "This text."), row("--version", "The version of kd_jax.")]
    return "\n\n".join([*parts, "\n".join(others)])


def _as_command(module: str) -> str:
    return "kd_jax" + f" {module.replace('_', '-')}" * (module != "main")


def filled(text: str, width: int) -> str:
    """A text of a width: paragraphs are filled anew, a usage and what is indented are folded by the line."""
    fill = functools.partial(textwrap.fill, width=width, break_long_words=False, break_on_hyphens=False)
    parts = []
    for part in text.split("\n\n"):
        lines = part.splitlines()
        if part.startswith("usage:") or any(line.startswith(" ") for line in lines):
            parts += ["\n".join(fill(line, subsequent_indent=" " * (11 if line else 0)) for line in lines)]
        else:
            parts += [fill(" ".join(lines))]
    return "\n\n".join(parts)


def row(left: str, right: str, indent: int = LEFT) -> str:
    """A line of a list: two spaces, a name, and from the column `indent` on what it is, folded."""
    lines = textwrap.wrap(right, _width() - indent)
    fits = len(left) <= indent - 4
    first = [f"  {left:{indent - 2}}{lines[0]}"] if fits else [f"  {left}", f"{'':{indent}}{lines[0]}"]
    return "\n".join([*first, *(f"{'':{indent}}{line}" for line in lines[1:])])


def _line(flag: flags.Flag, command: str) -> str:
    said = OF_COMMAND.get(flag.name, {}).get(command) or ADDED.sub("", flag.help or "")
    if isinstance(flag.default, int | str) and flag.default != "" and flag.default is not False:
        said = f"{said} [{flag.default}]"
    return row(f"--{flag.name}{_value(flag)}", said)


def _value(flag: flags.Flag) -> str:
    """What stands behind a flag's name."""
    if flag.boolean:
        return ""
    if isinstance(flag.parser, flags.EnumParser):
        return "=" + "|".join(value for value in flag.parser.enum_values if value)
    kinds = {flags.IntegerParser: "=N", flags.FloatParser: "=X", flags.ListParser: "=A,B,..."}
    text = "=PATH" if flag.parser.syntactic_help == "a path" else f"={VALUES.get(flag.name, flag.name.upper())}"
    return next((said for kind, said in kinds.items() if isinstance(flag.parser, kind)), text)


def _width() -> int:
    return max(min(shutil.get_terminal_size().columns, 120), LEFT + 30)
