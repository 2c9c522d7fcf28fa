"""Where compiled programs are kept from one process to the next."""

import os

import jax

# JAX's settings: (its own default, ours). A program that compiles in less than its default of a second is kept too.
SETTINGS = {
    "jax_compilation_cache_dir": (None, os.path.join("~", ".cache", "kd_jax")),
    "jax_persistent_cache_min_compile_time_secs": (1.0, 0.0),
}


def keep_programs() -> None:
    """Turns on JAX's persistent compilation cache, but for what the user has set, by `jax.config` or the environment.

    JAX_ENABLE_COMPILATION_CACHE=0 turns it off.
    """
    for name, (default, ours) in SETTINGS.items():
        if name.upper() not in os.environ and getattr(jax.config, name) == default:
            jax.config.update(name, os.path.expanduser(ours) if isinstance(ours, str) else ours)
