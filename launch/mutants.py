"""Faults that are put into the package one at a time, each of which the tests named beside it must notice.

usage: python launch/mutants.py [--check] [--only=NAME,...] [--jobs=2] [--results=FILE]

The faults are those of mutants/, by file: `old`, a text that occurs once in the file, becomes `new`, and one of `tests`
must fail; `equivalent` in the place of tests says why none can. Take the quickest test that has the fault for its
reason. `--check` only says which of them do not apply any more, and a test of the suite runs it. Otherwise each runs in
a copy of the tree, in a process that has imported the libraries already. Results are added to a file of JSON lines, so
that the same command goes on where it was stopped; what has changed since then, in the fault, its file or its tests, is
run again. The exit status is 1 where a fault survives that is not said to be equivalent.
"""

import argparse
import ast
import collections
import compileall
import contextlib
import functools
import hashlib
import importlib
import json
import os
import runpy
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
LISTS = Path(__file__).with_name("mutants")
COPIED = ("configs", "docs", "examples", "kd_jax", "launch", "tests", "README.md", "pyproject.toml")
LIBRARIES = (  # that tests import, and that take time
    *("jax", "flax.linen", "optax", "orbax.checkpoint", "scipy.stats", "ml_collections", "PIL.Image"),
    *("tensorflow", "tensorflow_datasets", "clu.metric_writers"),
)
LIMIT = 180  # seconds; a test that hangs has noticed the fault
KILLED, SURVIVED, EQUIVALENT, BROKEN = "killed", "survived", "equivalent", "broken"


class Mutant(NamedTuple):
    """A fault."""

    file: str
    name: str
    old: str
    new: str
    tests: tuple[str, ...]  # files, or FILE::TEST
    equivalent: str  # why no test can notice it; "" where one must


def read() -> list[Mutant]:
    """The faults of the list."""
    return [
        Mutant(file, one["name"], one["old"], one["new"], tuple(one.get("tests", ())), one.get("equivalent", ""))
        for path in sorted(LISTS.glob("*.toml"))
        for file, group in tomllib.loads(path.read_text()).items()
        for one in group
    ]


def problems(mutants: list[Mutant]) -> Iterator[str]:
    """What is wrong with the list, a line each."""
    for name, count in collections.Counter(mutant.name for mutant in mutants).items():
        if count > 1:
            yield f"{name}: the name of {count} mutants; expected one"
    for mutant in mutants:
        if (count := source(mutant.file).count(mutant.old)) != 1:
            yield f"{mutant.name}: its text occurs {count} times in {mutant.file}; expected once"
        if mutant.old == mutant.new:
            yield f"{mutant.name}: its text is replaced by itself"
        if bool(mutant.tests) == bool(mutant.equivalent):
            yield f"{mutant.name}: expected either tests or why it is equivalent"
        for test in mutant.tests:
            file, _, function = test.partition("::")
            if function.partition("[")[0] not in {"", *functions(file)}:
                yield f"{mutant.name}: there is no test {test}"


@functools.cache
def source(file: str) -> str:
    """A file's text as it is when it is first read; "" where there is none."""
    return (ROOT / file).read_text() if (ROOT / file).is_file() else ""


@functools.cache
def functions(file: str) -> set[str]:
    """The functions of a file."""
    return {node.name for node in ast.parse(source(file)).body if isinstance(node, ast.FunctionDef)}


def key(mutant: Mutant) -> str:
    """SHA-256 of all that decides the outcome, but for what the file and the tests import."""
    files = sorted({mutant.file, *(test.partition("::")[0] for test in mutant.tests)})
    return hashlib.sha256(repr((mutant, *map(source, files))).encode()).hexdigest()


def outcomes(path: Path) -> dict[str, dict[str, Any]]:
    """{key: line} of a file of results, whose last line may have been cut short."""
    found = {}
    for text in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            line = json.loads(text)
            found[line["key"]] = line
    return found


def copy_of_the_tree(folder: Path) -> Path:
    """A copy to put faults into, compiled, so that every process reads the same bytecode."""
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(ROOT / name, folder / name)
    compileall.compile_dir(folder / "kd_jax", quiet=1)
    return folder


def start(tree: Path, tests: tuple[str, ...], *options: str) -> int:
    """Starts pytest in a copy of the tree, and returns the number of its process."""
    if process := os.fork():
        return process
    try:
        os.setsid()
        os.chdir(tree)
        log = os.open(tree / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1), os.dup2(log, 2)
        os.environ |= {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
        sys.dont_write_bytecode = True
        own = {ROOT, LISTS.parent}
        sys.path[:] = [str(tree), *(entry for entry in sys.path if Path(entry).resolve() not in own)]
        import pytest

        status = int(
            pytest.main(["-q", "-p", "no:cacheprovider", f"--basetemp={tree / 'temporary'}", *options, *tests])
        )
        sys.stdout.flush()
    except BaseException as error:
        print(error, file=sys.stderr, flush=True)
        status = 4
    os._exit(status)


def wait(processes: dict[int, float]) -> tuple[int, int]:
    """(process, status) of the next that ends; one that takes too long is ended. `processes`: when each began."""
    while True:
        for process, began in processes.items():
            done, status = os.waitpid(process, os.WNOHANG)
            if done or time.monotonic() - began > LIMIT:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process, signal.SIGKILL)  # of a group of its own, with what it has started
                return process, os.waitstatus_to_exitcode(status if done else os.waitpid(process, 0)[1])
        time.sleep(0.02)


def run(mutants: list[Mutant], jobs: int) -> Iterator[dict[str, Any]]:
    """The outcome of each."""
    with tempfile.TemporaryDirectory(prefix="mutants") as folder:
        free = [copy_of_the_tree(Path(folder) / str(number)) for number in range(jobs)]
        left, running = collections.deque(mutants), {}
        try:
            while left or running:
                while left and free:
                    mutant, tree = left.popleft(), free.pop()
                    (tree / mutant.file).write_text(source(mutant.file).replace(mutant.old, mutant.new))
                    running[start(tree, mutant.tests, "-x", "-n0")] = mutant, tree, time.monotonic()
                process, status = wait({process: began for process, (_, _, began) in running.items()})
                mutant, tree, began = running.pop(process)
                shutil.copy2(ROOT / mutant.file, tree / mutant.file)
                free.append(tree)
                yield {
                    "name": mutant.name,
                    "key": key(mutant),
                    "outcome": {0: SURVIVED, 1: KILLED}.get(status, KILLED if status < 0 else BROKEN),
                    "by": killed_by((tree / "log").read_text(errors="replace")),
                    "seconds": round(time.monotonic() - began, 1),
                }
        finally:
            for process in running:
                os.killpg(process, signal.SIGKILL)


def killed_by(log: str) -> str:
    """The test that failed, of pytest's output."""
    lines = [line for line in log.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    return lines[-1].partition(" - ")[0].split(" ", 1)[1] if lines else ""


def passes_without_faults(mutants: list[Mutant], jobs: int) -> bool:
    """Whether the tests pass on the tree as it is; otherwise they notice nothing."""
    tests = tuple(sorted({test for mutant in mutants for test in mutant.tests}))
    print(f"{len(tests)} tests or files of tests without a fault", flush=True)
    with tempfile.TemporaryDirectory(prefix="mutants") as folder:
        tree = copy_of_the_tree(Path(folder) / "tree")
        process = start(tree, tests, f"-n{jobs if jobs > 1 else 0}", "--dist=loadfile")
        passed = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
        if not passed:
            print((tree / "log").read_text(errors="replace")[-5000:])
    return passed


def import_libraries() -> None:
    """Imports what a forked process then has; as JAX reads its environment when it is imported, after conftest.py."""
    runpy.run_path(str(ROOT / "tests" / "conftest.py"))
    errors = os.dup(2)
    with open(os.devnull, "w") as nowhere:  # TensorFlow's C++ writes to the descriptor
        os.dup2(nowhere.fileno(), 2)
        for name in LIBRARIES:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
    os.dup2(errors, 2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only say which do not apply")
    parser.add_argument("--only", default="", help="names, or the beginnings of names or files")
    parser.add_argument("--jobs", type=int, default=2, help="at a time")
    parser.add_argument("--results", type=Path, default=ROOT / "runs" / "mutants.jsonl", help="JSON lines")
    options = parser.parse_args()
    mutants = read()
    if wrong := list(problems(mutants)):
        print(*wrong, sep="\n")
        return 1
    if options.check:
        print(f"{len(mutants)} mutants apply")
        return 0
    if options.only:
        wanted = tuple(options.only.split(","))
        mutants = [mutant for mutant in mutants if mutant.name.startswith(wanted) or mutant.file.startswith(wanted)]
    done = outcomes(options.results)
    left = [mutant for mutant in mutants if not mutant.equivalent and key(mutant) not in done]
    if left:
        import_libraries()
        if not passes_without_faults(left, options.jobs):
            return 1
    options.results.parent.mkdir(parents=True, exist_ok=True)
    with options.results.open("a") as file:
        for number, line in enumerate(run(left, options.jobs), start=1):
            done[line["key"]] = line
            print(json.dumps(line), file=file, flush=True)
            print(f"{number}/{len(left)} {line['outcome']} {line['seconds']:5.1f} s  {line['name']}", flush=True)
    return summarize(mutants, done)


def summarize(mutants: list[Mutant], done: dict[str, dict[str, Any]]) -> int:
    """Prints the table, and returns the exit status."""
    groups: dict[str, list[str]] = collections.defaultdict(list)
    for mutant in mutants:
        outcome = EQUIVALENT if mutant.equivalent else done[key(mutant)]["outcome"]
        groups[outcome].append(f"{mutant.name} ({mutant.equivalent or mutant.file})")
    for outcome in (EQUIVALENT, BROKEN, SURVIVED):
        print(*(f"{outcome}: {name}" for name in groups[outcome]), sep="\n", end="\n" if groups[outcome] else "")
    print(", ".join(f"{len(groups[outcome])} {outcome}" for outcome in (KILLED, EQUIVALENT, BROKEN, SURVIVED)))
    return 1 if groups[SURVIVED] or groups[BROKEN] else 0


if __name__ == "__main__":
    sys.exit(main())
