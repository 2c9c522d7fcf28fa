"""Ten steps of methods by a pair of processes: python -m tests.methods.pair_of_steps FILE METHOD... COORDINATOR..."""

import pickle
import sys
from pathlib import Path

import jax
import numpy as np

from kd_jax import distributed, sharding
from tests import pair
from tests.methods import side_by_side
from tests.methods.examples import ALL
from tests.methods.test_training import group


def states(names):
    """{method: what `side_by_side.of_method` takes of the state after ten steps on the devices of all processes}."""
    found = {}
    for name in names:
        if name not in found:
            of_group, widths = group(name)
            step = side_by_side.create({one: ALL[one] for one in of_group}, widths, jax.numpy.float64, accumulate=2)
            run, state = side_by_side.compiled(step, sharding.mesh())
            ended, _ = run(state, side_by_side.STEPS)
            trained = side_by_side.Trained(list(of_group), {}, [], None, ended, None)
            found |= {one: jax.tree.map(np.asarray, side_by_side.of_method(trained, ended, one)) for one in of_group}
    return found


if __name__ == "__main__":
    file, *names = sys.argv[1:-3]
    with distributed.group(*pair.place(sys.argv[-3:])):
        with jax.enable_x64(True):
            found = states(names)
        if distributed.is_first():
            Path(file).write_bytes(pickle.dumps(found))
