"""The containers and contracts that every layer shares: what a network reports, what a method sees, what a run carries.

Shapes: B images, H x W pixels, C channels, K classes, D embedding width, S stages (the stem counts as the first).
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import flax.struct
import jax
import jax.numpy as jnp

from kd_jax.errors import InputError


class _Unchecked:
    """Stands for jaxtyping's types where that is not installed: shapes are documentation, which the tests check."""

    def __getitem__(self, item: Any) -> Any:
        return item[0]


if TYPE_CHECKING:
    from jaxtyping import Float, Int, UInt8
else:
    try:
        from jaxtyping import Float, Int, UInt8
    except ModuleNotFoundError:
        Float = Int = UInt8 = _Unchecked()

Array = jax.Array
Variables = Mapping[str, Any]  # {"params": tree, "batch_stats": tree}
Terms = dict[str, jax.Array]


def at_least_float32(x: Array) -> Array:
    """x in float32, or in its own type where that is wider."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


class Split(NamedTuple):
    """The images of one split, on the host or on the devices."""

    images: Any  # [N, h, w, C] uint8
    labels: Any  # [N] int32, -1 where the image has no label


class RawBatch(NamedTuple):
    """Images as they are stored, before augmentation."""

    images: UInt8[Array, "B h w C"]
    labels: Int[Array, " B"]  # -1 where the image has no label
    ids: Int[Array, " B"]  # position in the training set
    taught: Any = None  # what the teacher says of each view, [Outputs], where it need not be asked in the step


class Batch(NamedTuple):
    """Images as a network reads them, with what a loss may know about them."""

    images: Float[Array, "B H W C"]  # normalized; before they are prepared for a network, pixels from 0 to 255
    labels: Int[Array, " B"]  # -1 where the image has no label
    targets: Float[Array, "B K"]  # the label's distribution (smoothed, mixed); a zero row where there is no label
    ids: Int[Array, " B"]  # position in the training set
    crop: Int[Array, " B"]  # in [0, 162): which crop and flip was taken
    weights: Float[Array, " B"] | None = None  # of images in terms that read labels, mixed as the targets are; None: 1


class Head(NamedTuple):
    """The final linear layer."""

    kernel: Float[Array, "D K"]
    bias: Float[Array, " K"]


class Norm(NamedTuple):
    """The affine part of a batch normalization."""

    scale: Float[Array, " c"]
    bias: Float[Array, " c"]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Missing:
    """In the place of what is not there, of a teacher or of a network: whoever reads it gets an InputError."""

    what: str  # "the teacher's logits"

    def refuse(self, *_: Any) -> Any:
        """Raises InputError."""
        raise InputError(f"it reads {self.what}")

    __bool__ = __len__ = __iter__ = __getitem__ = __contains__ = __jax_array__ = refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __matmul__ = refuse

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self.refuse()


NO_LOGITS: Any = Missing(  # what a network without classes reports
    "the logits, and a network without classes has none; expected a method of embeddings, such as 'embedding'"
)


class Outputs(NamedTuple):
    """What a network reports for a batch. Logits and embedding are at least float32, whatever the compute precision.

    All but the logits may be missing: a method that needs more names what it lacks. Those of a network without classes
    are `NO_LOGITS`.
    """

    logits: Float[Array, "B K"]
    features: tuple[Array, ...] = ()  # S post-activation maps [B, h, w, c]: what the next stage reads
    preactivations: tuple[Array, ...] = ()  # the same S maps before their last ReLU (for the stem, before pooling)
    pooled: Float[Array, "B c"] | None = None  # global average of the map that the backbone ends with
    embedding: Float[Array, "B D"] | None = None  # the input of the final linear layer
    head: Head | None = None
    norms: tuple[Norm, ...] = ()  # each stage's last batch normalization
    # The map that the backbone ends with, where the final linear layer reads its global average.
    last: Float[Array, "B h w c"] | None = None
    members: Any = None  # of an ensemble, or of a network with several heads: {name: what each reports}

    @property
    def num_classes(self) -> int:
        """K; 0 where there are no logits."""
        return 0 if isinstance(self.logits, Missing) else self.logits.shape[-1]


class NetworkInit(Protocol):
    def __call__(self, rng: Array, images: Array) -> Variables:
        """The initial variables, for images [B, H, W, C]."""


class NetworkApply(Protocol):
    def __call__(
        self,
        variables: Variables,
        images: Array,
        *,
        train: bool,
        rng: Array | None = None,
        perturbations: tuple[Array | None, ...] | None = None,
    ) -> tuple[Outputs, Any]:
        """What the network reports for normalized images [B, H, W, C], and its batch statistics after them.

        Args:
          train: normalize by the batch's statistics, and drop out.
          rng: for dropout.
          perturbations: None, or one array or None per stage, added to that stage's map before the next reads it.
        """


class Preprocessing(NamedTuple):
    """How the images were prepared that published weights of a network were trained on; by default as torchvision."""

    size: int = 224  # pixels
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # of pixels in [0, 1]
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    crop: float = 0.875  # of the side of an image that was resized, what the central crop of evaluation keeps
    interpolation: str = "bilinear"  # or "bicubic"


class Network(NamedTuple):
    """A pair of pure functions, and what a family knows of its parameters."""

    init: NetworkInit
    apply: NetworkApply
    head: tuple[str, ...] = ()  # top-level modules behind the pooled features; the last is the final linear layer
    torch_key: Callable[[tuple[str, ...]], str] | None = None  # path in the variables -> PyTorch's key; None: no names
    name: str = "the network"  # for people
    num_classes: int | None = None  # K, where it is known
    published: Preprocessing | None = None  # of its published weights, where there are some
    other_key: Callable[[str], str] | None = None  # a key of another layout of its weights -> that of `torch_key`


class Networks(NamedTuple):
    """Student and teacher as they are in a step, each with its variables, for a method that runs them itself.

    Gradients flow to the student's parameters; the teacher's have none.
    """

    student: tuple[Network, Variables]
    teacher: tuple[Network, Variables] | None  # None without a teacher, and for one that is not a single network
    teacher_images: Array | None = None  # of the first view, as the teacher reads them


class View(NamedTuple):
    """One augmentation of the batch's images, and what both networks report for it."""

    batch: Batch  # as the student reads it
    student: Outputs
    teacher: Outputs | None  # None without a teacher; it carries no gradient

    @property
    def teacher_outputs(self) -> Outputs:
        """What the teacher reports; for methods that need one."""
        assert self.teacher is not None, "a method with needs_teacher is never run without one"
        return self.teacher


@dataclasses.dataclass(frozen=True)
class Context:
    """All that a method sees of a step. What a later method needs is one more field, and changes no other method."""

    views: tuple[View, ...]  # as many as the method asks for, at least one
    step: Array | int = 0  # [] int32, updates done
    rng: Array | None = None  # of this method at this step
    networks: Networks | None = None
    num_examples: int = 0  # images of the training set
    steps_per_epoch: int = 1
    train_labels: Array | None = None  # [num_examples] int32, -1 for none; None where the set does not lie in memory
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # in the place of `Method.traced`, where given

    @property
    def key(self) -> Array:
        """`rng`; for methods that draw."""
        assert self.rng is not None, "a step gives every method its key"
        return self.rng

    @property
    def batch(self) -> Batch:
        return self.views[0].batch

    @property
    def student(self) -> Outputs:
        return self.views[0].student

    @property
    def teacher(self) -> Outputs:
        """What the teacher reports; for methods that need one."""
        return self.views[0].teacher_outputs


class MethodVariables(NamedTuple):
    """What a method carries from step to step."""

    params: Any  # trained: adapters, a discriminator
    state: Any  # not trained: memory banks, running statistics, a copied head


class MethodInit(Protocol):
    def __call__(self, rng: Array, context: Context) -> MethodVariables:
        """The initial variables. `context` holds the real outputs of a first batch; `jit` drops what is not used."""


class MethodApply(Protocol):
    def __call__(self, variables: MethodVariables, context: Context) -> tuple[Terms, Any]:
        """Scalar loss terms by name (the method's own, or NAME/PART), and the next state."""


def nobody_waits(step: Array | int) -> Mapping[str, Any]:
    """The default `Method.trains`: no group of parameters waits."""
    del step
    return {}


def student_logits(variables: MethodVariables, outputs: Outputs) -> Array:
    """The default `Method.predict`: the student's own logits [B, K]."""
    del variables
    return outputs.logits


def no_others(variables: MethodVariables, context: Context) -> Mapping[str, Array]:
    """The default `Method.others`: nothing but the student predicts."""
    del variables, context
    return {}


class Method(NamedTuple):
    """A distillation method. The loss is the sum of its terms, each times its weight and its schedule.

    What holds for a term holds for its parts, TERM/PART, unless they are named themselves. A term that `weights` does
    not name has weight 1. `Hyper.weights` starts as `weights` and is traced: changing a weight does not recompile.
    So are the options of `traced`, as `Hyper.options`.
    """

    init: MethodInit
    apply: MethodApply
    needs_teacher: bool = False
    views: int = 1  # how many augmentations of each image it compares
    weights: Mapping[str, float] = {}
    schedules: Mapping[str, Callable[[Array | int], Any]] = {}  # of a term: step -> factor on its weight
    # step -> {"student" or a term: whether its parameters move at this step}; True for those that are not named
    trains: Callable[[Array | int], Mapping[str, Any]] = nobody_waits
    optimizers: Mapping[str, Mapping[str, Any]] = {}  # of a term: what differs from the student's optimizer
    predict: Callable[[MethodVariables, Outputs], Array] = student_logits
    # {name: logits [B, K]} of what else it trains to predict, a peer or an exit; each is evaluated beside the student,
    # in a context whose teacher has logits alone
    others: Callable[[MethodVariables, Context], Mapping[str, Array]] = no_others
    # {name: [B]} of what an evaluation reports beside accuracies: of each image, a distance from its teacher; in a
    # context whose teacher has an embedding
    measures: Callable[[MethodVariables, Context], Mapping[str, Array]] = no_others
    needs_labels: frozenset[str] = frozenset()  # the terms that read labels
    phases: bool = False  # whether terms count in some epochs only: what no open term reads then waits
    distills: frozenset[str] = frozenset()  # the terms that need a teacher; the others are the task's
    carries: bool = True  # whether it has variables; one that has none is given no views to start from
    # {option: number} of those options that `Context.options` may have otherwise; of several methods, {term: these}.
    traced: Mapping[str, Any] = {}


class TeacherApply(Protocol):
    def __call__(self, variables: Variables, batch: Batch, rng: Array, train: bool) -> Outputs:
        """What the teacher says of a batch, without gradient. `train`: in a training step, not in an evaluation."""


class Teacher(NamedTuple):
    """A teacher of any kind. Its variables are an argument of the step: never trained, never saved with the student."""

    apply: TeacherApply
    load: Callable[[], tuple[Variables, dict[str, Any] | None]]  # (variables, its run's result or None)
    shapes: Variables  # of the variables, for tracing
    name: str  # for people
    source: str  # the folder of its run, or the file of its weights
    network: Network | None = None  # where it is one network: what the variables belong to
    config_hash: str | None = None  # of its run, where it is one
    untrained: Any = None  # the Experiment whose run `source` holds when it has been trained
    members: Any = None  # of an ensemble: {name: Teacher}
    # Pixels from 0 to 255 [B, h, w, C] -> the images of the batch that `apply` gets; None: what the student reads.
    prepare: Callable[[Array], Array] | None = None
    is_average: bool = False  # whether its variables are the moving average of the student's, see `TrainState.ema`


class Hyper(flax.struct.PyTreeNode):
    """Traced scalars: changing one does not recompile. A group is "student" or a term that trains parameters."""

    learning_rate: Mapping[str, Array]  # of each group, the schedule's peak
    weight_decay: Mapping[str, Array]  # of each group
    weights: Mapping[str, Array]  # of each term
    # {term: {option: number}}, see `Method.traced`; as Python's numbers, they leave the type of what they meet as it is
    options: Mapping[str, Any] = flax.struct.field(default_factory=dict)


class TrainState(flax.struct.PyTreeNode):
    """All that a run needs to go on, and all that a checkpoint holds."""

    step: Array  # [] int32, updates done
    params: dict[str, Any]  # {"student", and a group for each term}
    stats: dict[str, Any]  # {"student": batch statistics, and each term's state}
    optimizer_state: dict[str, Any]  # of each group
    ema: dict[str, Any] | None  # {"params", "batch_stats"} of the student, averaged; None when off
    rng: Array  # key; randomness is fold_in(rng, step), then a named stream


class Feed(NamedTuple):
    """Training data as the loop and the step see it, whether it lies in memory or streams."""

    steps_per_epoch: int
    constants: Any  # on the devices for the whole run: the images themselves, or nothing
    calls: Callable[[int], Iterator[tuple[Any, int]]]  # step -> ((rows of a call, step after it), ...) to the end
    fetch: Callable[[Any, Any], RawBatch]  # (constants, one row) -> a batch, inside the step
    example: RawBatch  # a first batch, for initialization
    labels: Array | None = None  # [N] of the whole training set, where it lies in memory
