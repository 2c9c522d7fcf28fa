"""kd_jax: knowledge distillation of image classifiers in JAX and Flax, as pure functions."""

__version__ = "0.1.0"


def load(run: str):
    """Loads a finished run: (network, variables, class_names). See `kd_jax.experiment.load`."""
    from kd_jax import experiment  # `import kd_jax.steps` stays light

    return experiment.load(run)
