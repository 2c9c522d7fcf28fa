"""`python -m kd_jax` is the command `kd_jax`."""

from kd_jax.cli import command

if __name__ == "__main__":
    command()
