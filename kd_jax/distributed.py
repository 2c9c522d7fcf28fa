"""Many processes that train one run: how they find each other, and what only the first of them does.

All run the same program, each on its own devices. What reads or changes a folder is up to the first (`first`), so that
no two of them see it in two states; what one of them meets before it trains, all learn (`together`).
"""

import contextlib
import itertools
import json
import os
import pickle
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from kd_jax import sharding, stopping
from kd_jax.errors import TOLD, InputError, Preempted, TrainingError, one_line

T = TypeVar("T")

HEARTBEAT = 30  # seconds of silence after which a process counts as gone, which ends the others
LEAVES = 5  # seconds that a process which fails waits for the others to learn of it
# By which variables a scheduler tells a process how many there are. A number of 1 is a plain process.
SCHEDULERS = {"Slurm": "SLURM_STEP_NUM_TASKS", "Open MPI": "OMPI_COMM_WORLD_SIZE"}
TPU_HOSTS = "TPU_WORKER_HOSTNAMES"  # of a slice on GKE, with commas between them
ERRORS = {kind.__name__: kind for kind in (InputError, TrainingError, Preempted, KeyboardInterrupt)}
LOST = ("Gloo", "NCCL", "oordination service")  # of errors that tell that another process is gone
CHUNK = 2**26  # bytes that are sent at a time
_turns = itertools.count()  # of what the processes tell each other: all count alike
_each_alone = False  # while what each process does may fail on some, nothing inside waits for others


def _client() -> Any:
    """By which the processes tell each other what does not lie on devices; None in a plain process."""
    from jax._src import distributed  # there is no public name for it

    return distributed.global_state.client


def count() -> int:
    """How many processes train the run."""
    return 1 if _client() is None else jax.process_count()


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return count() == 1 or jax.process_index() == 0


def given(
    coordinator: str | None = None, processes: int | None = None, process_id: int | None = None, find: bool = False
) -> dict[str, Any] | None:
    """The arguments of `jax.distributed.initialize`; None for a plain process. See `group`."""
    variables: dict[str, Any] = {
        "coordinator_address": coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS"),
        "num_processes": _number(processes, "JAX_NUM_PROCESSES"),
        "process_id": _number(process_id, "JAX_PROCESS_ID"),
    }
    asked = {name: value for name, value in variables.items() if value is not None}
    find = find or "," in os.environ.get(TPU_HOSTS, "")
    find = find or any((_number(None, variable) or 1) > 1 for variable in SCHEDULERS.values())
    if not asked and not find:
        return None
    if len(asked) < len(variables) and not find:
        there = ", ".join(f"{name} {value}" for name, value in asked.items())
        raise InputError(
            f"of many processes only {there} is given; expected --coordinator=HOST:PORT, --processes and --process_id,"
            " or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID"
        )
    if len(asked) == len(variables):
        number, own = (int(variables[name]) for name in ("num_processes", "process_id"))
        if own >= number:
            raise InputError(f"--process_id is {own}; expected 0 to {number - 1}, as --processes is {number}")
        if not str(variables["coordinator_address"]).rpartition(":")[2].isdecimal():
            raise InputError(f"--coordinator is {variables['coordinator_address']!r}; expected HOST:PORT")
        if number == 1:
            return None
    return asked


def _number(value: int | None, variable: str) -> int | None:
    text = os.environ.get(variable) if value is None else None
    if text is None:
        return value
    if not text.isdecimal():
        raise InputError(f"{variable} is {text!r}; expected a number")
    return int(text)


@contextlib.contextmanager
def group(
    coordinator: str | None = None, processes: int | None = None, process_id: int | None = None, find: bool = False
) -> Iterator[None]:
    """Joins the processes that train one run, if there are any. Only the first says what happens inside.

    Args:
      coordinator: HOST:PORT of the first process.
      processes: how many there are.
      process_id: which one this is, from 0. None, of each, for what JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
        JAX_PROCESS_ID say, or Slurm, Open MPI or GKE; where nothing does, this is a plain process.
      find: whether JAX asks for them where it can, as on a TPU pod.
    Raises:
      InputError: for a part of these, or numbers that cannot be. TrainingError: another process is gone.
    """
    arguments = given(coordinator, processes, process_id, find)
    if arguments is None:
        yield
        return
    try:
        jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM away from kd_jax.stopping
        jax.distributed.initialize(**arguments, heartbeat_timeout_seconds=HEARTBEAT, shutdown_timeout_seconds=HEARTBEAT)
    except Exception as error:
        raise TrainingError(
            f"the {arguments.get('num_processes', '')} processes do not meet: {one_line(error)}"
        ) from error
    with contextlib.ExitStack() as quiet:
        if is_first():
            print(f"{count()} processes, {jax.device_count()} devices", flush=True)
        else:
            nowhere = quiet.enter_context(open(os.devnull, "w"))
            quiet.enter_context(contextlib.redirect_stdout(nowhere))
            quiet.enter_context(contextlib.redirect_stderr(nowhere))
        try:
            yield
        except BaseException as error:
            _leave(error)
            if isinstance(error, Exception) and any(words in str(error) for words in LOST):
                lost = one_line(error, 80)
                raise TrainingError(
                    f"another process is gone; the same command goes on from the last checkpoint ({lost})"
                ) from error
            raise
    jax.distributed.shutdown()


def _leave(error: BaseException) -> None:
    """Waits a moment for the others to leave; of what all say, the first says it.

    A process that leaves alone does not end in order: others may wait for it, and would be waited for.
    """
    client, key = _client(), "kd_jax/leaves"
    try:
        client.key_value_set(f"{key}/{jax.process_index()}", _of_error(error))
        client.wait_at_barrier(key, LEAVES * 1000)
        if client.blocking_key_value_get(f"{key}/0", 1000) == _of_error(error):
            _said(error)
        jax.distributed.shutdown()
    except Exception:
        stopping.leaves_alone = True


def first(decide: Callable[..., T], *arguments: Any) -> T:
    """What a function returns on the first process, which alone calls it; it has to be what JSON can hold.

    Raises what it raises there, on all.
    """
    client = _client()
    if client is None or _each_alone:
        return decide(*arguments)
    key = f"kd_jax/{next(_turns)}"
    if is_first():
        try:
            text = json.dumps({"value": decide(*arguments)})
        except BaseException as error:
            client.key_value_set(key, _of_error(error))
            raise
        client.key_value_set(key, text)
    else:
        text = _wait(client, key)
    said = json.loads(text)
    if "error" in said:
        raise _error(said)
    return said["value"]


def sent(load: Callable[[], T]) -> T:
    """What a function returns on the first process, which alone calls it: any tree. Its arrays are numpy's.

    Raises what it raises there, on all. In a plain process it is called, and nothing else.
    """
    if _client() is None or _each_alone:
        return load()
    content = np.zeros(0, np.uint8)

    def size() -> int:
        nonlocal content
        content = np.frombuffer(pickle.dumps(jax.device_get(_alone(load))), np.uint8)
        return len(content)

    length = first(size)
    content = content if is_first() else np.zeros(length, np.uint8)
    parts = [multihost_utils.broadcast_one_to_all(content[at : at + CHUNK]) for at in range(0, length, CHUNK)]
    return pickle.loads(b"".join(part.tobytes() for part in parts))


def _alone(make: Callable[[], T]) -> T:
    """Calls a function in which nothing waits for other processes."""
    global _each_alone
    before, _each_alone = _each_alone, True
    try:
        return make()
    finally:
        _each_alone = before


def together(make: Callable[[], T], same: Callable[[T], str] = lambda made: "") -> T:
    """What `make` returns, which every process calls, once all have it; `same` of it has to be the same on all.

    Raises what it raises on any of them, on all.
    """
    client = _client()
    if client is None or _each_alone:
        return make()
    key = f"kd_jax/{next(_turns)}"
    made: T | None = None
    own: BaseException | None = None
    try:
        made = _alone(make)
        text = json.dumps({"value": same(made)})
    except BaseException as error:
        own, text = error, _of_error(error)
    client.key_value_set(f"{key}/{jax.process_index()}", text)
    said = [json.loads(_wait(client, f"{key}/{process}")) for process in range(count())]
    failed = next((process for process, one in enumerate(said) if "error" in one), None)
    if failed is not None:
        raise own if own is not None and failed == 0 == jax.process_index() else _error(said[failed], failed)
    if different := [str(process) for process, one in enumerate(said) if one != said[0]]:
        raise _said(
            InputError(
                f"process {', '.join(different)} has another config, or other images or weights, than the first;"
                " expected the same command and the same files on all"
            )
        )
    return cast(T, made)


def _of_error(error: BaseException) -> str:
    return json.dumps({"error": type(error).__name__, "text": one_line(error)})


def _error(said: dict[str, Any], process: int = 0) -> BaseException:
    return _said(ERRORS.get(said["error"], RuntimeError)((f"process {process}: " if process else "") + said["text"]))


def _said(error: BaseException) -> BaseException:
    """An error that all processes raise, and the first one says."""
    if not is_first():
        error.add_note(TOLD)
    return error


def _wait(client: Any, key: str) -> str:
    """The text of a key, waited for as long as it takes."""
    while True:
        try:
            return client.blocking_key_value_get(key, 1000)  # so that a signal is handled in between
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise


class Agreement:
    """The largest number that any process had: each learns the same, one call later, without waiting for its devices.

    So all of them stop at the same step.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._most = jax.jit(jnp.max, out_shardings=sharding.replicated(mesh))
        self._before: jax.Array | None = None

    def __call__(self, own: int) -> int:
        if count() == 1:
            return own
        numbers = jax.make_array_from_callback(
            (self._mesh.size,), sharding.split(self._mesh), lambda _: np.full(1, own, np.int32)
        )
        before, self._before = self._before, self._most(numbers)
        return 0 if before is None else int(before)
