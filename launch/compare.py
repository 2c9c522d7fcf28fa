"""The command `python -m kd_jax.compare` under its old name."""

from kd_jax import cli, compare

if __name__ == "__main__":
    cli.run(compare.main, compare.__doc__)
