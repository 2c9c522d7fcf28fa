"""The command `python -m kd_jax.table` under its old name."""

from kd_jax import cli, table

if __name__ == "__main__":
    cli.run(table.main, table.__doc__)
