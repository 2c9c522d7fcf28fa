"""`python -m kd_jax COMMAND`, as `kd_jax COMMAND`."""

from kd_jax import cli

if __name__ == "__main__":
    cli.command()
