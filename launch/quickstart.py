"""The command `python -m kd_jax.quickstart` under its old name."""

from kd_jax import cli, quickstart

if __name__ == "__main__":
    cli.run(quickstart.main, quickstart.__doc__)
