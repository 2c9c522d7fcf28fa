"""What the commands share: flags, one line per error, exit codes; and `kd_jax COMMAND`, which runs them.

0 done, 1 failed while running, 2 bad input, 130 interrupted, 143 preempted (saved, to be started again).
"""

import errno
import importlib
import os
import re
import sys
import warnings
from collections.abc import Callable
from types import ModuleType

from absl import flags, logging

import kd_jax
from kd_jax import registry
from kd_jax.config.checks import OLD_KEYS
from kd_jax.errors import InputError, Preempted, TrainingError, choose, one_line

# Flags of more than one command, which names those it has by `flags.declare_key_flag`.
WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder.")
RUNS = flags.DEFINE_string("runs", "runs", "The folder of all runs; those of teachers lie in its folder `teachers`.")
PATH = flags.DEFINE_string("path", None, "Where the data lies now, if not where it lay in training.")
TO = flags.DEFINE_string(
    "to",
    None,
    "export: the new file to write; explain, report: the folder to write into, instead of the run's or of `report`.",
)
AGAINST = flags.DEFINE_multi_string(
    "against", [], "explain: the folders of runs to compare with; compare: the name of the runs, by default `student`."
)
SEEDS = flags.DEFINE_integer(
    "seeds", None, "Seeds 0, 1, ... of every row; by default quickstart has 1, table 3.", lower_bound=1
)
ROWS = flags.DEFINE_list("rows", None, "quickstart: the rows of its table; table: which table, by default `original`.")
IMPORT = flags.DEFINE_multi_string(
    "import", [], "A Python file that registers what a run needs, before anything else; may be given more than once."
)

COMMANDS = {
    "train": "main",
    **{name: name for name in ("evaluate", "predict", "explain", "report", "export", "compare", "table", "quickstart")},
}
USAGE = """kd_jax trains small image classifiers from large ones.

usage: kd_jax [train] [--config=NAME[:ARGUMENT]] [--config.KEY=VALUE ...]
       kd_jax COMMAND [--help] ...

commands:
"""


def command() -> None:
    """Runs the command that the first argument names, or trains."""
    given = sys.argv[1:]
    if given[:1] in (["--help"], ["-h"], ["-help"], ["help"]):
        lines = (f"  {name:<11}{_summary(module)}" for name, module in COMMANDS.items())
        print(USAGE + "\n".join(lines) + "\n\n`kd_jax COMMAND --help` lists the flags of a command.")
        sys.exit(0)
    if given and not given[0].startswith("-") and given[0] not in COMMANDS:
        try:
            choose("the command", given[0], COMMANDS)
        except InputError as error:
            sys.exit(_report(str(error), 2))
    name = given[0] if given and given[0] in COMMANDS else "train"
    sys.argv[1:] = given[1:] if given and given[0] == name else given
    module = importlib.import_module(f"kd_jax.{COMMANDS[name]}")
    run(module.main, module.__doc__ or "", getattr(module, "complete", lambda arguments: arguments), module=module)


def _summary(module: str) -> str:
    """The first line of a command's docstring, which is read and not imported."""
    with open(os.path.join(os.path.dirname(__file__), f"{module}.py")) as file:
        return file.readline().strip().lstrip('"')


def run(
    main: Callable[[list[str]], None],
    usage: str,
    complete: Callable[[list[str]], list[str]] = lambda arguments: arguments,
    *,
    module: ModuleType | None = None,
) -> None:
    """Parses the flags, calls `main` with what remains of the command line, and exits with its code.

    Args:
      main: takes the positional arguments.
      usage: the text of --help, above the list of flags.
      complete: adds to the command line before it is parsed.
      module: of the command, whose flags --help lists; by default that which Python runs.
    """
    if {"--version", "-version"} & set(sys.argv[1:]):
        print(f"kd_jax {kd_jax.__version__}")
        sys.exit(0)
    if {"--help", "-h", "-help"} & set(sys.argv[1:]):
        print(f"{usage.strip()}\n\nflags:{flags.FLAGS.module_help(module or sys.modules['__main__'])}")
        sys.exit(0)
    logging.use_absl_handler()
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
    sys.unraisablehook = _unraisable
    cache = os.path.join(os.path.expanduser("~"), ".cache", "kd_jax")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", cache)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

    def call():
        sys.argv[1:] = complete(sys.argv[1:])  # in place: ml_collections looks for its overrides there
        arguments = _parse(sys.argv)
        for path in IMPORT.value:
            registry.import_file(path)
        main(arguments)

    sys.exit(_exit_code(call))


def _unraisable(raised) -> None:
    """Suppresses Orbax's background tracebacks for a checkpoint that is already reported."""
    said = f"{raised.exc_value} {raised.object!r}"
    if "Event loop is closed" not in said and "_read_array_index" not in said:
        sys.__unraisablehook__(raised)


def _parse(argv: list[str]) -> list[str]:
    """Positional arguments. A config file runs while flags are parsed, so any exception may come out of it."""
    try:
        return flags.FLAGS(argv)[1:]
    except Exception as error:
        first = _first(error)
        key = rf"\.{first.args[0]}(=|\.|$)" if isinstance(first, KeyError) else "$^"
        given = next((a for a in argv if re.search(key, a)), None)
        if given:
            near = re.search('Did you mean "(.+?)"', str(error))
            hint = f"; did you mean {near[1]!r}?" if near else ""
            old = next((new for old, new in OLD_KEYS.items() if f".{old}" in given.partition("=")[0]), None)
            if old:
                raise InputError(f"{given} is a key of an older version; it is now {old}") from error
            raise InputError(f"{given}: there is no key {first.args[0]!r}; see kd_jax/config/base.py{hint}") from error
        raise InputError(one_line(first if isinstance(first, InputError) else error)) from error


def _first(error: BaseException) -> BaseException:
    """The exception that others were raised from."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    return error


def _exit_code(call: Callable[[], None]) -> int:
    try:
        call()
    except InputError as error:
        return _report(one_line(error), 2)
    except TrainingError as error:
        return _report(one_line(error), 1)
    except Preempted as error:
        return _report(one_line(error), 143)
    except KeyboardInterrupt:
        return _report("interrupted; the same command starts again, a run from its last checkpoint", 130)
    except Exception as error:
        if _disk_is_full(error):
            return _report("the disk is full; make room and start the same command again", 1)
        raise
    return 0


def _report(line: str, code: int) -> int:
    print(f"error: {line}" if code in (1, 2) else line, file=sys.stderr)
    return code


def _disk_is_full(error: BaseException | None) -> bool:
    while error is not None:
        if getattr(error, "errno", None) == errno.ENOSPC or os.strerror(errno.ENOSPC) in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
