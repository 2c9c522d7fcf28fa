"""The command `kd_jax`, and what all commands share: flags, one line per error, exit codes.

0 done, 1 failed while running, 2 bad input, 130 interrupted, 143 preempted (saved, to be started again).
"""

import errno
import gc
import io
import json
import os
import re
import runpy
import sys
import warnings
from collections.abc import Callable
from typing import Any

from absl import flags, logging

import kd_jax
from kd_jax import registry, stopping
from kd_jax.config.checks import OLD_KEYS
from kd_jax.errors import TOLD, InputError, Preempted, TrainingError, choose, one_line
from kd_jax.terminal import style
from kd_jax.usage import row as help_row
from kd_jax.usage import text as help_text

COMMANDS = {  # each is a module of this package
    "plan": "Say what a run would take, without training: size, memory, time, and what suits the images.",
    "evaluate": "Evaluate a finished run on its test set.",
    "predict": "Classify images with a finished run.",
    "probe": "Measure the embeddings of a finished run by a linear probe.",
    "explain": "Compare where students and their teacher look, by Grad-CAM.",
    "report": "Write a report on runs, as HTML and Markdown.",
    "compare": "Print a table of finished runs over seeds, with paired differences.",
    "export": "Write a student for other programs: safetensors, StableHLO, SavedModel, TFLite, ONNX.",
    "benchmark-export": "Compare the formats of a student: size, accuracy, latency.",
    "import-teacher": "Make a teacher of a PyTorch network, which trains without PyTorch.",
    "table": "Run a table of experiments over seeds.",
    "sweep": "Run a grid of values of a config's keys over seeds.",
    "tune": "Search for values of a config's keys by Optuna, and stop the trials that fall behind.",
    "quickstart": "Train and distill on handwritten digits, and print a table.",
    "completion": "Print what completes commands, flags and keys in bash, zsh or fish.",
}
MANY = re.compile("--?(sweep|seeds)(=|$)")  # flags that make one config many runs
USAGE = """Trains small image classifiers from large ones.

usage:
  kd_jax --config=NAME|FILE[:ARGUMENT] [FLAGS]     train, as --config=kd:smoke
  kd_jax --config=... --seeds=N [--sweep=KEY=A,B]  over seeds and values
  kd_jax COMMAND [FLAGS]                           anything else, see below
  kd_jax --version

commands (each has a --help, as training has: kd_jax --config=kd --help):"""

# What the system says about the disk, whatever library met it: errno -> what people are told.
DISK = {
    errno.ENOSPC: "the disk is full; make room and start the same command again",
    errno.EDQUOT: "the disk quota is used up; make room and start the same command again",
    errno.EIO: "the disk fails (input/output error); see the system's log, and start the same command again elsewhere",
    errno.EROFS: "the file system has become read-only; make it writable and start the same command again",
}


class PathParser(flags.ArgumentParser):
    """Of flags that are paths: `~` is the home folder, also where the shell leaves it."""

    syntactic_help = "a path"

    def parse(self, argument: str) -> str:
        return os.path.expanduser(argument)


def define_path(name: str, default: str | None, what: str) -> Any:
    """Defines a flag that is a path."""
    return flags.DEFINE(PathParser(), name, default, what, serializer=flags.ArgumentSerializer())


def define_paths(name: str, what: str) -> Any:
    """Defines a flag that is a path, and may be given more than once."""
    return flags.DEFINE_multi(PathParser(), flags.ArgumentSerializer(), name, [], what)


# Flags of more than one command; each declares those it has with `flags.declare_key_flag`. `usage` has what they say.
WORKDIR = define_path("workdir", None, "The run's folder.")
RUNS = define_path("runs", "runs", "The folder of all runs; teachers are kept in its folder `teachers`.")
PATH = define_path("path", None, "The data's path, if it has moved since training.")
TO = define_path("to", None, "Where to write.")
AGAINST = define_paths("against", "What to compare with.")
SEEDS = flags.DEFINE_integer("seeds", None, "Seeds 0, 1, ... of every row.", lower_bound=1)
ROWS = flags.DEFINE_list("rows", None, "Which rows.")
JSON = flags.DEFINE_bool("json", False, "Print JSON.")
IMPORT = define_paths(
    "import", "A Python file that registers what a run needs, before anything else; may be given more than once."
)
flags.disclaim_key_flags()  # what other modules define by `define_path` is theirs


def command() -> None:
    """Runs the command that the command line names first; without one, training."""
    first, *others = sys.argv[1:] or ["--help"]
    if first in ("--help", "-h", "-help"):
        print("\n".join([USAGE, *(help_row(name, what, 20) for name, what in COMMANDS.items())]))
    elif first.startswith("-"):
        _run_module("sweep" if any(MANY.match(argument) for argument in sys.argv[1:]) else "main", [first, *others])
    elif first in COMMANDS:
        _run_module(first, others)
    else:
        sys.exit(_exit_code(lambda: choose("the command", first, COMMANDS)))


def parsed(text: str) -> Any:
    """The value of KEY=VALUE: JSON, or the text itself."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _run_module(name: str, arguments: list[str]) -> None:
    sys.argv[1:] = arguments
    runpy.run_module(f"kd_jax.{name.replace('-', '_')}", run_name="__main__", alter_sys=True)


def run(
    main: Callable[[list[str]], None],
    usage: str,
    complete: Callable[[list[str]], list[str]] = lambda arguments: arguments,
    loads: bool = True,
) -> None:
    """Parses the flags, calls `main`, and exits with the code of how it ended.

    Args:
      main: takes the positional arguments.
      usage: the text of --help, above the list of flags.
      complete: rewrites the command line before it is parsed.
      loads: whether it imports what takes seconds, as JAX does, and says so.
    """
    if {"--help", "-h", "-help"} & set(sys.argv[1:]):
        print(help_text(usage, sys.modules["__main__"]))
        sys.exit(0)
    if "--version" in sys.argv[1:]:
        print(f"kd_jax {kd_jax.__version__}")
        sys.exit(0)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files need not be UTF-8
    # Imports and traces make many objects that stay; looking through them again and again takes a fifth of a start.
    gc.set_threshold(200_000)
    logging.use_absl_handler()
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
    sys.unraisablehook = _unraisable_hook
    # Of Orbax, where a disk is full: the error that it raises is what people are told.
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)

    def call() -> None:
        sys.argv[1:] = complete(sys.argv[1:])  # in place: ml_collections looks for its overrides there
        arguments = _parse(sys.argv)
        if loads and sys.stderr.isatty():
            print(style(f"kd_jax {kd_jax.__version__}, loading ...", "dim", sys.stderr), file=sys.stderr, flush=True)
        for path in IMPORT.value:
            registry.import_file(path)
        main([os.path.expanduser(argument) for argument in arguments])  # they are paths

    with stopping.listening(stopping.leave_at_once, last=True):
        stopping.end_with_parent()
        code = _exit_code(call)
        if stopping.leaves_alone:
            sys.stdout.flush()
            stopping.remove_unfinished()
            os._exit(code)
        sys.exit(code)


def _unraisable_hook(unraisable: Any) -> None:
    """Suppresses Orbax's background tracebacks for a checkpoint that is already reported."""
    text = f"{unraisable.exc_value} {unraisable.object!r}"
    if "Event loop is closed" not in text and "_read_array_index" not in text:
        sys.__unraisablehook__(unraisable)


def _parse(argv: list[str]) -> list[str]:
    """Parses the flags and returns the positional arguments. Config files run here and may raise anything."""
    try:
        arguments = flags.FLAGS(argv)[1:]
    except Exception as error:
        cause = _root_cause(error)
        key = rf"\.{cause.args[0]}(=|\.|$)" if isinstance(cause, KeyError) else "$^"
        given = next((a for a in argv if re.search(key, a)), None)
        if given:
            near = re.search('Did you mean "(.+?)"', str(error))
            hint = f"; did you mean {near[1]!r}?" if near else ""
            if new := next((new for old, new in OLD_KEYS.items() if f".{old}" in given.partition("=")[0]), None):
                raise InputError(f"{given} is a key of an older version; it is now {new}") from error
            raise InputError(f"{given}: there is no key {cause.args[0]!r}; see kd_jax/keys.py{hint}") from error
        raise InputError(one_line(cause if isinstance(cause, InputError) else error)) from error
    own = {flag.name for flag in flags.FLAGS.get_key_flags_for_module(sys.modules["__main__"])}
    others = [
        flag.name for name, found in flags.FLAGS.flags_by_module_dict().items() if "kd_jax" in name for flag in found
    ]
    if alien := [name for name in others if flags.FLAGS[name].present and name not in own]:
        hint = ", or `kd_jax sweep`" if MANY.match(f"--{alien[0]}") else ""
        raise InputError(f"--{alien[0]} is no flag of this command; expected those of its --help{hint}")
    return arguments


def _root_cause(error: BaseException) -> BaseException:
    """The exception that all others were raised from."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    return error


def _exit_code(call: Callable[[], None]) -> int:
    try:
        call()
    except InputError as error:
        return _report(error, one_line(error), 2)
    except TrainingError as error:
        return _report(error, one_line(error), 1)
    except Preempted as error:
        return _report(error, one_line(error), 143)
    except KeyboardInterrupt as error:
        return _report(
            error, str(error) or "interrupted; the same command starts again, a run from its last checkpoint", 130
        )
    except BrokenPipeError:  # of `| head`, which has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered goes there
        return 0
    except Exception as error:
        if _is_told(error):
            return 1
        if found := next((text for number, text in DISK.items() if _is_of(error, number)), None):
            return _report(error, found, 1)
        raise
    return 0


def _report(error: BaseException, line: str, code: int) -> int:
    if not _is_told(error):
        print(style("error: ", "red", sys.stderr) + line if code in (1, 2) else line, file=sys.stderr)
    return code


def _is_told(error: BaseException) -> bool:
    return TOLD in getattr(error, "__notes__", ())


def _is_of(error: BaseException | None, number: int) -> bool:
    """Whether an error, or one that it was raised from, is that of the system with this number."""
    while error is not None:
        if getattr(error, "errno", None) == number or os.strerror(number) in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
