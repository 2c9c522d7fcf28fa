"""A network as a teacher: on the very images that the student sees."""

import jax

from kd_jax.errors import choose
from kd_jax.types import Array, Batch, Network, Outputs, TeacherApply, Variables

MODES = ("eval", "train")


def network_teacher(network: Network, mode: str = "eval") -> TeacherApply:
    """Returns a teacher's `apply`.

    Args:
      network: the teacher.
      mode: "eval"; or "train", where in training it is normalized by the batch's own statistics and drops out, and its
        running averages stay as they are. An evaluation always has it in inference mode.
    Raises:
      InputError: for an unknown mode.
    """
    choose("teacher.mode", mode, MODES)

    def apply(variables: Variables, batch: Batch, rng: Array, train: bool) -> Outputs:
        in_training = train and mode == "train"
        outputs, _ = network.apply(variables, batch.images, train=in_training, rng=rng if in_training else None)
        return jax.lax.stop_gradient(outputs)

    return apply
