"""What the commands share: flags, one line per error, exit codes.

0 done, 1 failed while running, 2 bad input, 130 interrupted, 143 preempted (saved, to be started again).
"""

import errno
import os
import re
import sys
import warnings
from collections.abc import Callable

from absl import flags, logging

from kd_jax.errors import InputError, Preempted, TrainingError

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


def run(
    main: Callable[[list[str]], None],
    usage: str,
    complete: Callable[[list[str]], list[str]] = lambda arguments: arguments,
) -> None:
    """Parses the flags, calls `main` with what remains of the command line, and exits with its code.

    Args:
      main: takes the positional arguments.
      usage: the text of --help, above the list of flags.
      complete: adds to the command line before it is parsed.
    """
    if {"--help", "-h", "-help"} & set(sys.argv[1:]):
        print(f"{usage.strip()}\n\nflags:{flags.FLAGS.module_help(sys.modules['__main__'])}")
        sys.exit(0)
    logging.use_absl_handler()
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
    sys.unraisablehook = _unraisable
    cache = os.path.join(os.path.expanduser("~"), ".cache", "kd_jax")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", cache)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

    def call():
        sys.argv[1:] = complete(sys.argv[1:])  # in place: ml_collections looks for its overrides there
        main(_parse(sys.argv))

    sys.exit(_exit_code(call))


def _unraisable(raised) -> None:
    """Python's own, but for threads of Orbax, which go on about a damaged checkpoint that the error's line names."""
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
            raise InputError(f"{given}: there is no key {first.args[0]!r}; see kd_jax/config/base.py{hint}") from error
        raise InputError(_one_line(first if isinstance(first, InputError) else error)) from error


def _first(error: BaseException) -> BaseException:
    """The exception that others were raised from."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    return error


def _exit_code(call: Callable[[], None]) -> int:
    try:
        call()
    except InputError as error:
        return _report(_one_line(error), 2)
    except TrainingError as error:
        return _report(_one_line(error), 1)
    except Preempted as error:
        return _report(_one_line(error), 143)
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


def _one_line(error: BaseException) -> str:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(text.split()) or type(error).__name__


def _disk_is_full(error: BaseException | None) -> bool:
    while error is not None:
        if getattr(error, "errno", None) == errno.ENOSPC or os.strerror(errno.ENOSPC) in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
