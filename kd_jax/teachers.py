"""Teachers: one function of (variables, batch, rng), so that the step does not know which it has."""

import jax

from kd_jax.types import Network, Teacher


def live(network: Network) -> Teacher:
    """The network itself, in inference mode, on the very images that the student sees."""

    def teacher(variables, batch, rng):
        del rng
        return jax.lax.stop_gradient(network.apply(variables, batch.images, train=False)[0])

    return teacher


def batch_statistics(network: Network) -> Teacher:
    """The network as in training: normalised by the batch's own statistics, with dropout.

    The running averages of the teacher stay as they are. In evaluation, where there is no `rng`, it is `live`.
    """

    def teacher(variables, batch, rng):
        return jax.lax.stop_gradient(network.apply(variables, batch.images, train=rng is not None, rng=rng)[0])

    return teacher
