"""Two virtual CPU devices, and a compilation cache that the workers of the suite share."""

import contextlib
import os
import signal
import tempfile

import pytest

collect_ignore_glob = ["record_*.py", "*/record_*.py"]  # need what the tests do not

os.environ["JAX_PLATFORMS"] = "cpu"
# Compiling takes most of the time of networks this small, hence the lowest optimization level. One thread is enough for
# it, as every core has a worker of the suite. The older generator of fused loops takes a third of the newer one's time.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
    " --xla_cpu_parallel_codegen_split_count=1 --xla_cpu_use_fusion_emitters=false"
)
# XLA's threads, by default as many as cores: with two cores the two devices can wait for each other for ever.
os.environ.setdefault("NPROC", "8")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(tempfile.gettempdir(), "kd_jax_test_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")  # to read even the smallest takes less

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # of a suite that runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def no_tensorflow(tmp_path_factory):
    """A folder for PYTHONPATH, by which a process finds no TensorFlow: importing it takes longer than most tests."""
    folder = tmp_path_factory.mktemp("no_tensorflow")
    (folder / "tensorflow.py").write_text("raise ModuleNotFoundError('no', name='tensorflow')")
    return str(folder)


@pytest.fixture(scope="session")
def call():
    """(exit status, stdout, stderr) of call(MODULE, *ARGUMENTS, **ENVIRONMENT), each a process, see `forks`."""
    from tests import forks  # behind what is set above

    with contextlib.closing(forks.Forks()) as call:
        yield call
