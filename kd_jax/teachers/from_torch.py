"""Makes an exported teacher of a PyTorch network, for which it needs PyTorch, torchax and, for those of timm, timm."""

import contextlib
import copy
import difflib
import math
import os
import runpy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from kd_jax import weights
from kd_jax.errors import InputError, choose, one_line
from kd_jax.teachers import exported
from kd_jax.types import Array, Outputs, Preprocessing

IMAGES = 4  # that the program is compared with PyTorch on
LARGEST_ERROR = 1e-4  # of the largest number
STAGES = 4  # maps that are kept of a network whose blocks all have maps of one shape


class Source(NamedTuple):
    """A PyTorch network, and what is known of it."""

    name: str
    module: Any  # a torch.nn.Module with its weights, in inference mode
    preprocessing: Preprocessing
    embeds: bool = False  # whether it returns an embedding and no logits


def import_teacher(
    source: str,
    folder: str,
    *,
    weights_file: str | None = None,
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    embedding: bool | None = None,
    again: str = "",
    **changes: Any,
) -> None:
    """Writes the folder of a teacher, see `teachers.exported`.

    Args:
      source: timm/NAME[.TAG], or FILE.py:FUNCTION.
      folder: a new one.
      weights_file: a file of safetensors or of PyTorch; None for those of timm's, from the hub; "none" for random ones.
      num_classes: of the weights, for a network of timm's.
      class_names: of its classes, in order.
      embedding: whether it returns an embedding and no logits; None for what timm knows, and else logits.
      again: the command that makes the folder, which the folder names.
      changes: what of the `Preprocessing` is otherwise than timm says; for an own network, than torchvision's.
    Raises:
      InputError: for a network that does not exist or cannot be converted, weights that are not its own, a folder that
        exists.
    """
    if os.path.exists(folder):
        raise InputError(f"--to is {folder!r}, which already exists; expected a new folder")
    torch, torchax = _torch()
    of_timm = source.startswith("timm/")
    size = changes.get("size")
    found = _of_timm(source, weights_file, num_classes, size) if of_timm else _of_file(source, weights_file)
    embeds = found.embeds if embedding is None else embedding
    preprocessing = found.preprocessing._replace(**changes)
    if len(preprocessing.mean) != len(preprocessing.std):
        raise InputError(
            f"--mean has {len(preprocessing.mean)} numbers and --std {len(preprocessing.std)}; expected as many"
        )
    size, channels = preprocessing.size, len(preprocessing.mean)
    images = torch.from_numpy(np.random.default_rng(0).standard_normal((IMAGES, channels, size, size), np.float32))
    said = "embedding" if embeds else "logits"  # of what it returns
    reports, expected = _reports(torch, found.module, images, source, said)
    classes = 0 if embeds else expected["logits"].shape[-1]
    if class_names is not None and len(class_names) != classes:
        raise InputError(f"--class_names names {len(class_names)} classes; expected the {classes} of {source}")
    print(f"{found.name}: {_described(expected, found.module)}; converting", flush=True)
    about = exported.About(
        name=found.name,
        preprocessing=preprocessing,
        num_classes=classes,
        class_names=class_names,
        head=reports.head,
        again=again,
        packages=("torch", "torchax", *(("timm",) if of_timm else ())),
    )
    try:
        arrays, _ = torchax.extract_jax(copy.deepcopy(reports))
    except Exception as error:  # of torchax, for what it does not know
        raise InputError(f"{source} cannot be converted by torchax: {one_line(error, 160)}") from error
    arrays = {key.removeprefix("module."): np.asarray(array) for key, array in arrays.items()}

    def report(own: Mapping[str, Array], image: Array) -> Mapping[str, Any]:
        _, function = torchax.extract_jax(copy.deepcopy(reports))  # some keep what they computed, of another trace
        state = {f"module.{key}": array for key, array in own.items()}
        with _linear_by_place(torch):
            reported = function(state, (image.transpose(2, 0, 1)[None],))
        maps = {}
        if "features" in reported:
            maps = {"features": tuple(x[0].transpose(1, 2, 0) for x in reported["features"])}
        return {key: reported[key][0] for key in reported if key != "features"} | maps

    def check(say: Callable[[Array], Outputs]) -> Mapping[str, float]:
        own = getattr(say(jnp.asarray(images.permute(0, 2, 3, 1).numpy())), said)
        theirs, what = expected[said].numpy(), "number" if embeds else "logit"
        difference, largest = float(np.abs(own - theirs).max()), float(np.abs(theirs).max())
        does = "embedding differs" if embeds else "logits differ"
        print(f"its {does} from PyTorch's by {difference:.2g}; the largest {what} is {largest:.3g}", flush=True)
        if not difference <= LARGEST_ERROR * largest:
            raise InputError(
                f"{source} is not converted exactly; expected at most {LARGEST_ERROR:g} of the largest {what}"
            )
        return {"images": IMAGES, "difference": difference, f"largest_{what}": largest}

    try:
        exported.write(folder, report, arrays, about, check)
    except (InputError, OSError):  # of the disk
        raise
    except Exception as error:  # of torchax, while it traces
        raise InputError(f"{source} cannot be exported: {one_line(error, 160)}") from error
    print(f"wrote {folder}: teacher.kind=exported teacher.path={folder}")


def _torch() -> tuple[Any, Any]:
    try:
        import torch

        with warnings.catch_warnings(action="ignore"):
            import torchax
    except ImportError as error:
        raise InputError(
            f'{error.name} is not installed; expected the extra of this command alone: pip install "kd_jax[torch]"'
        ) from error
    return torch, torchax


@contextlib.contextmanager
def _linear_by_place(torch: Any) -> Iterator[None]:
    """Gives torch.nn.functional.linear its arguments by place: torchax does not know the names that timm uses."""
    linear = torch.nn.functional.linear
    torch.nn.functional.linear = lambda input, weight, bias=None: linear(input, weight, bias)
    try:
        yield
    finally:
        torch.nn.functional.linear = linear


def _of_timm(source: str, weights_file: str | None, num_classes: int | None, size: int | None) -> Source:
    """A network of timm's, for images of another size where that is given."""
    try:
        import timm
    except ImportError as error:
        raise InputError('timm is not installed; expected it: pip install "kd_jax[torch]"') from error
    except RuntimeError as error:  # of torchvision, whose operators do not load
        raise InputError(
            f"timm cannot be imported ({one_line(error, 80)}); expected a torchvision of the same build as PyTorch"
        ) from error
    name = source.removeprefix("timm/")
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise InputError(f"timm {timm.__version__} has no network {architecture!r}{hint}")
    if tag:
        tags = [full.partition(".")[2] for full in timm.list_models(f"{architecture}.*", pretrained=True)]
        choose(f"the weights of {architecture}", tag, tags)
    options = {} if num_classes is None else {"num_classes": num_classes}
    module = timm.create_model(name, pretrained=False, **options)
    known = module.pretrained_cfg
    if weights_file is None:
        hub = known.get("hf_hub_id") or ""
        if not hub:
            raise InputError(f"{source} has no weights on the hub; expected --weights=FILE")
        _load(module, hub if "/" in hub else f"timm/{hub}", source)
    elif weights_file != "none":
        _load(module, weights_file, source)
    preprocessing = Preprocessing(
        size=known["input_size"][-1],
        mean=tuple(map(float, known["mean"])),
        std=tuple(map(float, known["std"])),
        crop=float(known["crop_pct"]),
        interpolation=known["interpolation"],
    )
    if size not in (None, preprocessing.size) and hasattr(module, "set_input_size"):  # else it reads images of any size
        try:
            module.set_input_size(img_size=(size, size))  # by which positions are interpolated
        except Exception as error:  # of the sizes that its patches or windows do not divide
            raise InputError(f"{source} does not read images of {size} pixels: {one_line(error, 160)}") from error
    is_tower = "clip" in name and "_ft_" not in name and num_classes is None  # CLIP's, which returns a projection
    return Source(f"timm/{name}", module.eval(), preprocessing, embeds=not module.num_classes or is_tower)


def _of_file(source: str, weights_file: str | None) -> Source:
    """The network that a function of a Python file returns."""
    import torch

    path, _, function = source.rpartition(":")
    if not path.endswith(".py") or not function.isidentifier():
        raise InputError(f"the network is {source!r}; expected timm/NAME, or FILE.py:FUNCTION")
    path = os.path.expanduser(path)
    if not os.path.isfile(path):
        raise InputError(f"there is no file {path!r}; expected the Python file of a network")
    try:
        names = runpy.run_path(path)
    except Exception as error:
        raise InputError(f"{path} cannot be run: {type(error).__name__}: {one_line(error, 160)}") from error
    own = {key: value for key, value in names.items() if callable(value) and not key.startswith("_")}
    build = choose(f"a function of {path}", function, own)
    try:
        module = build()
    except Exception as error:
        raise InputError(f"{source} cannot be called: {type(error).__name__}: {one_line(error, 160)}") from error
    if not isinstance(module, torch.nn.Module):
        raise InputError(f"{source} returns a {type(module).__name__}; expected a torch.nn.Module")
    if weights_file is None:
        raise InputError('--weights is missing; expected the file of the network\'s weights, or "none" if it has them')
    if weights_file != "none":
        _load(module, weights_file, source)
    return Source(os.path.basename(source), module.eval(), Preprocessing())


def _load(module: Any, path: str, source: str) -> None:
    """Loads weights, each accounted for."""
    import torch

    from kd_jax.models import torch_names

    state = torch_names.without_prefix(weights.read(path))
    torch_names.check_keys(state, module.state_dict(), source)
    try:
        module.load_state_dict({key: torch.from_numpy(np.array(array)) for key, array in state.items()}, strict=False)
    except RuntimeError as error:  # of shapes
        raise InputError(f"the weights are not those of {source}: {one_line(error, 200)}") from error


def _reports(torch: Any, module: Any, images: Any, source: str, returns: str) -> tuple[Any, dict[str, Any]]:
    """A module that reports all that a network gives, with its attribute `head`, and what it says of images.

    What it `returns` is "logits" or "embedding". Beside logits, the embedding is what the network's final linear layer
    reads, where its logits are what that returns; the maps are those of timm's networks.
    """
    calls: list[tuple[str, Any, Any]] = []
    hooks = [
        linear.register_forward_hook(lambda linear, given, out, name=name: calls.append((name, linear, out)))
        for name, linear in module.named_modules()
        if isinstance(linear, torch.nn.Linear)
    ]
    try:
        with torch.no_grad():
            returned = module(images)
    except Exception as error:  # whatever it raises
        raise InputError(f"{source} does not read images {tuple(images.shape[1:])}: {one_line(error, 160)}") from error
    finally:
        for hook in hooks:
            hook.remove()
    if not isinstance(returned, torch.Tensor) or returned.ndim != 2:
        is_tensor = isinstance(returned, torch.Tensor)
        what = f"a tensor of shape {tuple(returned.shape)}" if is_tensor else type(returned).__name__
        expected = "logits [B, K]" if returns == "logits" else "embeddings [B, D]"
        raise InputError(f"{source} returns {what}; expected a tensor of {expected}")
    last = next(((name, linear) for name, linear, out in calls if out is returned and returns == "logits"), None)

    class Reports(torch.nn.Module):
        def __init__(self, maps: bool) -> None:
            super().__init__()
            self.module, self.maps = module, maps
            self.head = last and (f"{last[0]}.weight", f"{last[0]}.bias") if last and last[1].bias is not None else None

        def forward(self, images: Any) -> dict[str, Any]:
            read: list[Any] = []
            network = self.module  # a copy's own
            final_layer = last and network.get_submodule(last[0])
            hook = final_layer and final_layer.register_forward_pre_hook(lambda layer, given: read.append(given[0]))
            try:
                if not self.maps:
                    found = {returns: network(images)}
                else:
                    final, maps = network.forward_intermediates(images)
                    found = {returns: network.forward_head(final), "features": _of_stages(maps)}
                    if not final_layer and returns == "logits":
                        read.append(network.forward_head(final, pre_logits=True))
            finally:
                if hook:
                    hook.remove()
            return {**found, "embedding": read[-1]} if read else found

    plain = Reports(maps=False).eval()
    with torch.no_grad(), contextlib.suppress(Exception):  # a network that has such functions, and others in them
        staged = Reports(maps=True).eval()
        said = staged(images)
        same = torch.allclose(said[returns], returned, rtol=1e-4, atol=1e-5)
        if same and all(x.ndim == 4 for x in said["features"]):
            return staged, said
    with torch.no_grad():
        return plain, plain(images)


def _of_stages(maps: Sequence[Any]) -> tuple[Any, ...]:
    """The last map of each shape; of maps of one shape, a transformer's, those at quarters of the depth."""
    shapes = [tuple(x.shape[1:]) for x in maps]
    ends = [i for i, shape in enumerate(shapes) if [shape] != shapes[i + 1 : i + 2]]
    if len(ends) == 1:
        ends = sorted({math.ceil(len(maps) * k / STAGES) - 1 for k in range(1, STAGES + 1)})
    return tuple(maps[i] for i in ends)


def _described(said: Mapping[str, Any], module: Any) -> str:
    count = sum(x.numel() for x in module.parameters())
    maps = [f"{x.shape[2]}x{x.shape[3]}" for x in said.get("features", ())]
    parts = [f"{count:,} parameters", f"{said['logits'].shape[-1]} classes" if "logits" in said else "no classes"]
    parts += [f"an embedding of {said['embedding'].shape[-1]}"] if "embedding" in said else []
    return ", ".join([*parts, f"maps {', '.join(maps)}" if maps else "no maps"])
