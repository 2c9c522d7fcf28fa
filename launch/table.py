"""`python -m kd_jax.table`, for those who start it from a checkout by this name."""

import runpy

if __name__ == "__main__":
    runpy.run_module("kd_jax.table", run_name="__main__", alter_sys=True)
