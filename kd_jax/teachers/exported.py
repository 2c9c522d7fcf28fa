"""A teacher that is a program: what `jax.export` made of any network, in a folder with its weights.

The folder holds `teacher.json`, `weights.safetensors`, and a program for each precision, `float32.jax` and
`bfloat16.jax`: StableHLO for a CPU, CUDA and TPU, of a batch of any size, without the weights. `kd_jax import-teacher`
writes one of a PyTorch network, `write` one of a function.

A program is code, if only for the device: it can compute anything, and nothing else. What runs Python, a pickle, is not
in the format. Only a folder that a config names is read, and each file has to be what `teacher.json` says it is.
"""

import datetime
import functools
import importlib.metadata
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from kd_jax import augment, checksums, networks, registry, runs, stopping
from kd_jax.errors import InputError, first_few, one_line
from kd_jax.types import NO_LOGITS, Array, Batch, Head, Outputs, Preprocessing, Teacher, Variables, at_least_float32

if TYPE_CHECKING:
    from kd_jax.teachers import Setting

FORMAT = 1
ABOUT, WEIGHTS = "teacher.json", "weights.safetensors"
PLATFORMS = ("cpu", "cuda", "tpu")
PRECISIONS = ("float32", "bfloat16")
NAMES = {"gpu": "cuda"}  # of a platform, where an export calls it otherwise

# (weights, image [H, W, C]) -> {"logits" [K], and where there is one "embedding" [D] and "features" ([h, w, c], ...)};
# of a network without classes no logits
Function = Callable[[Mapping[str, Array], Array], Mapping[str, Any]]


class About(NamedTuple):
    """What is known of a network."""

    name: str
    preprocessing: Preprocessing
    num_classes: int  # 0 where it reports no logits
    class_names: Sequence[str] | None = None  # None: not known
    head: tuple[str, str] | None = None  # the names of the final layer's weight [K, D] and bias, where it is linear
    again: str = ""  # the command that makes the folder
    packages: Sequence[str] = ()  # whose versions matter beside JAX's


def write(
    folder: str,
    function: Function,
    weights: Mapping[str, np.ndarray],
    about: About,
    check: Callable[[Callable[[Array], Outputs]], Mapping[str, float]] | None = None,
) -> None:
    """Writes the folder of a teacher.

    Args:
      folder: a new one.
      function: says what the network reports of one image.
      weights: its first argument, floating or whole numbers.
      about: the network.
      check: compares with the original what the program in float32, read back, says of normalized images [B, H, W, C],
        and returns what it found, for `teacher.json`.
    Raises:
      InputError: when the folder exists or cannot be written.
    """
    from safetensors.numpy import save

    folder = os.path.normpath(os.path.expanduser(folder))
    if os.path.exists(folder):
        raise InputError(f"--to is {folder!r}, which already exists; expected a new folder")
    partial, parity = f"{folder}.{os.getpid()}.tmp", None
    try:
        with stopping.unfinished(partial):
            os.makedirs(partial)
            with open(os.path.join(partial, WEIGHTS), "xb") as file:
                file.write(save({key: np.array(array, order="C") for key, array in weights.items()}))
            for precision in PRECISIONS:
                program = _export(function, weights, about.preprocessing, precision)
                with open(os.path.join(partial, f"{precision}.jax"), "xb") as file:
                    file.write(program.serialize(vjp_order=0))
                if check and precision == "float32":
                    own = jax.export.deserialize(program.serialize(vjp_order=0))
                    parity = check(jax.jit(lambda images, own=own: apply(own, weights, images, about.head)))
            files = {name: registry.digest(os.path.join(partial, name)) for name in sorted(os.listdir(partial))}
            said = {
                "format": FORMAT,
                **about._asdict(),
                "preprocessing": about.preprocessing._asdict(),
                "parity": parity,
                "packages": {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", *about.packages)},
                "calling_convention": program.calling_convention_version,
                "platforms": list(PLATFORMS),
                "date": datetime.date.today().isoformat(),
                "files": files,
            }
            runs.write_json(os.path.join(partial, ABOUT), said)
            os.rename(partial, folder)
    except OSError as error:
        raise runs.refused(f"--to is {folder!r}, which cannot be written", error) from error


def _export(
    function: Function, weights: Mapping[str, np.ndarray], preprocessing: Preprocessing, precision: str
) -> jax.export.Exported:
    """The program of one precision; its weights are as they are stored."""
    dtype = jnp.dtype(precision)

    def narrow(x: Array) -> Array:
        return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

    def report(weights: Mapping[str, Array], images: Array) -> Mapping[str, Any]:
        said = jax.vmap(functools.partial(function, jax.tree.map(narrow, dict(weights))))(images)
        return {key: x if key == "features" else at_least_float32(x) for key, x in said.items()}

    (batch,) = jax.export.symbolic_shape("batch")
    size, channels = preprocessing.size, len(preprocessing.mean)
    shapes = {key: jax.ShapeDtypeStruct(x.shape, jax.dtypes.canonicalize_dtype(x.dtype)) for key, x in weights.items()}
    images = jax.ShapeDtypeStruct((batch, size, size, channels), dtype)
    return jax.export.export(jax.jit(report), platforms=PLATFORMS)(shapes, images)


def read(folder: str) -> dict[str, Any]:
    """What `teacher.json` says.

    Raises:
      InputError: for a folder that is not one of a teacher, or of a later version.
    """
    path = os.path.join(os.path.expanduser(folder), ABOUT)
    try:
        with open(path) as file:
            said = json.load(file)
        checksums.take(said)
        fields: dict[str, Any] = said["preprocessing"]
        said["preprocessing"] = Preprocessing(**{**fields, "mean": tuple(fields["mean"]), "std": tuple(fields["std"])})
        known, files = said["format"], said["files"]
        assert {WEIGHTS, *(f"{precision}.jax" for precision in PRECISIONS)} == files.keys()
    except OSError as error:
        raise InputError(
            f"teacher.path is {folder!r}, and {path} cannot be read ({error.strerror}); expected a folder of"
            " `kd_jax import-teacher`"
        ) from error
    except (ValueError, TypeError, KeyError, AssertionError) as error:
        raise InputError(f"{path} is damaged; expected a folder of `kd_jax import-teacher`") from error
    if known != FORMAT:
        raise InputError(f"{path} is of format {known!r}; expected {FORMAT}, or a later version of kd_jax")
    return said


def program(folder: str, said: Mapping[str, Any], precision: str) -> jax.export.Exported:
    """The program of a precision.

    Raises:
      InputError: when it is damaged, or this JAX does not read it.
    """
    if precision not in PRECISIONS:
        raise InputError(
            f"precision is {precision!r}; expected one of {', '.join(PRECISIONS)} with an exported teacher"
        )
    data = _checked(folder, said, f"{precision}.jax")
    try:
        return jax.export.deserialize(bytearray(data))
    except Exception as error:  # of several kinds, by what it does not understand
        raise InputError(
            f"the program in {folder!r} is of JAX {said['packages']['jax']} (calling convention"
            f" {said['calling_convention']}), and JAX {jax.__version__} does not read it: {one_line(error, 100)}. Make"
            f" it again: {said['again'] or 'kd_jax import-teacher'}"
        ) from error


def variables(folder: str, said: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The weights; raises InputError when they are damaged."""
    from safetensors.numpy import load

    return load(_checked(folder, said, WEIGHTS))


def _checked(folder: str, said: Mapping[str, Any], name: str) -> bytes:
    """A file, which has to be what teacher.json says."""
    path = os.path.join(os.path.expanduser(folder), name)
    try:
        if registry.digest(path) != said["files"][name]:
            raise InputError(f"{path} is not the file that {ABOUT} describes; make the folder again, or copy it whole")
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); expected a whole folder") from error


def apply(
    exported: jax.export.Exported, variables: Variables, images: Array, head: tuple[str, str] | None = None
) -> Outputs:
    """What the program says of normalized images [B, H, W, C]; `head` as in `About`."""
    said = dict(exported.call(dict(variables), images))
    features = tuple(said.get("features", ()))
    return Outputs(
        logits=said.get("logits", NO_LOGITS),
        features=features,
        pooled=at_least_float32(features[-1]).mean((1, 2)) if features else None,
        embedding=said.get("embedding"),
        head=Head(variables[head[0]].T, variables[head[1]]) if head else None,
    )


def from_folder(setting: "Setting") -> Teacher:
    """The teacher in the folder `teacher.path`."""
    section, dataset = setting.config["teacher"], setting.dataset
    folder = os.path.expanduser(section["path"])
    if not folder:
        raise InputError("teacher.path is empty; expected a folder of `kd_jax import-teacher`")
    if section["mode"] != "eval":
        raise InputError(f"teacher.mode is {section['mode']!r}; expected 'eval' with an exported teacher")
    said = read(folder)
    _check_classes(folder, said, dataset.class_names)
    preprocessing: Preprocessing = said["preprocessing"]
    theirs, own = len(preprocessing.mean), dataset.train.images.shape[-1]
    if theirs != own:
        raise InputError(f"the teacher {folder!r} reads images of {theirs} channels; expected the student's {own}")
    exported = program(folder, said, setting.config["precision"])
    platform = jax.default_backend()
    if NAMES.get(platform, platform) not in exported.platforms:
        raise InputError(f"the teacher {folder!r} runs on {', '.join(exported.platforms)}; expected {platform}")
    shapes = jax.tree.unflatten(exported.in_tree, exported.in_avals)[0][0]

    def say(variables: Variables, batch: Batch, rng: Array, train: bool) -> Outputs:
        del rng, train
        return apply(exported, variables, batch.images, said["head"] and tuple(said["head"]))

    mean, std = (np.asarray(x, np.float32) for x in (preprocessing.mean, preprocessing.std))
    return Teacher(
        apply=say,
        load=lambda: (variables(folder, said), None),
        shapes={key: jax.ShapeDtypeStruct(x.shape, x.dtype) for key, x in shapes.items()},
        name=said["name"],
        source=folder,
        prepare=functools.partial(
            augment.prepare, size=preprocessing.size, mean=mean, std=std, dtype=networks.precision(setting.config)
        ),
    )


def _check_classes(folder: str, said: Mapping[str, Any], own: Sequence[str]) -> None:
    names = said["class_names"]
    if not said["num_classes"] or not own:  # then nobody compares logits
        return
    if said["num_classes"] == len(own) and (names is None or list(names) == list(own)):
        return
    theirs = f"{said['num_classes']} classes" + (f" ({first_few(names)})" if names else "")
    raise InputError(
        f"the teacher {folder!r} knows {theirs}; expected the student's {len(own)} ({first_few(list(own))})"
    )


def identify(section: Mapping[str, Any]) -> dict[str, Any]:
    """What of the folder affects a student's result."""
    return {"exported": read(section["path"])["files"]}


def is_there(saved: Mapping[str, Any]) -> bool:
    """Whether the folder that taught a finished run is where it was, and the same; where not, a line says so."""
    source = saved["config"]["teacher"]["path"]
    try:
        if identify(saved["config"]["teacher"]) == saved["identity"]["teacher"]["run"]:
            return True
        why = f"the teacher in {source!r} is not the one that taught the run any more"
    except InputError as error:
        why = f"the teacher is gone ({one_line(error)})"
    print(f"{why}: what compares with the teacher is left out", file=sys.stderr, flush=True)
    return False
