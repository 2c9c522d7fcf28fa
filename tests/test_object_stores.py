"""Runs in object stores on this machine, S3 by moto and Google's by its emulator, with processes that are killed."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import pair, tiny

pytestmark = pytest.mark.slow
fsspec = pytest.importorskip("fsspec")

RUN = [
    "--config=configs/student.py:smoke",
    *(f"--config.{key}={value}" for key, value in tiny.CHANGES.items() if key != "name"),
    *("--config.train.epochs=400", "--config.checkpoint.every_epochs=5"),
]
# A lease that ends sooner, and writing that begins sooner, than a user's.
QUICK = "; ".join(
    [
        "import runpy, sys",
        "from kd_jax import remote",
        "remote.LEASE, remote.RENEW, remote.EVERY = 4, 1, 0.2",
        "runpy.run_module('kd_jax.main', run_name='__main__', alter_sys=True)",
    ]
)
SERVERS = {  # (the program, its environment), by protocol
    "s3": (
        "from moto.server import main; main(['-p', '{port}'])",
        {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"},
        "AWS_ENDPOINT_URL",
    ),
    "gs": (
        "from gcp_storage_emulator.__main__ import main; main(['start', '--port={port}', '--default-bucket=bucket'])",
        {},
        "STORAGE_EMULATOR_HOST",
    ),
}


class Server:
    """An object store on loopback with a bucket `bucket`; Google's emulator keeps what it has when it is stopped."""

    def __init__(self, protocol, folder):
        for package in {"s3": ("moto", "s3fs"), "gs": ("gcp_storage_emulator", "gcsfs")}[protocol]:
            pytest.importorskip(package)
        program, environment, variable = SERVERS[protocol]
        self.protocol, self._folder, port = protocol, folder, pair.free_port()
        self._program = program.format(port=port)
        self.environment = environment | {variable: f"http://127.0.0.1:{port}"}
        self.start()

    def start(self):
        self._process = subprocess.Popen(
            [sys.executable, "-c", self._program],
            cwd=self._folder,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        address = next(reversed(self.environment.values())).removeprefix("http://").split(":")
        end = time.monotonic() + 60
        while True:
            try:
                socket.create_connection((address[0], int(address[1]))).close()
                return
            except OSError:
                assert time.monotonic() < end
                time.sleep(0.1)

    def stop(self):
        self._process.kill()
        self._process.wait()

    def files(self):
        """{path below the bucket: what it is} of all files, asked for by another process."""
        program = (
            "import fsspec, json, sys\n"
            f"store = fsspec.filesystem('{self.protocol}', use_listings_cache=False)\n"
            "paths = store.find('bucket')\n"
            "text = ('config.json', 'metrics.jsonl', 'result.json')\n"
            "json.dump({p[7:]: store.cat_file(p).decode() if p.endswith(text) else '' for p in paths}, sys.stdout)"
        )
        return json.loads(
            subprocess.check_output(
                [sys.executable, "-c", program], env=os.environ | self.environment, stderr=subprocess.DEVNULL
            )
        )


@pytest.fixture(params=SERVERS)
def server(request, tmp_path, monkeypatch):
    found = Server(request.param, tmp_path)
    if request.param == "s3":
        program = "import fsspec; fsspec.filesystem('s3').mkdir('bucket')"
        subprocess.check_call([sys.executable, "-c", program], env=os.environ | found.environment)
    yield found
    found.stop()


@pytest.fixture
def start(server):
    """Starts the run with its folder in the store; or two processes of it."""

    def run(*arguments, **options):
        arguments = [
            *RUN,
            f"--workdir={server.protocol}://bucket/run",
            f"--runs={server.protocol}://bucket",
            *arguments,
        ]
        return pair.process(QUICK, *arguments, **server.environment, **options)

    return run


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """(lines of metrics, result) of the run in a folder."""
    folder = tmp_path_factory.mktemp("here")
    ((code, _, errors),) = pair.ended([pair.process("kd_jax.main", *RUN, f"--workdir={folder / 'run'}")])
    assert code == 0, errors
    return numbers({path.name: path.read_text() for path in (folder / "run").glob("*.json*")})


def numbers(texts):
    """What a run wrote, but for times and what it ran on."""
    lines = [json.loads(line) for line in texts["metrics.jsonl"].splitlines()]
    kept = [{k: v for k, v in line.items() if k not in ("seconds", "checksum")} for line in lines]
    return kept, json.loads(texts["result.json"])["test"]


def of_run(files):
    return {name.removeprefix("run/"): text for name, text in files.items() if name.startswith("run/")}


def until(true, process, seconds=120):
    end = time.monotonic() + seconds
    while not true():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.2)


def has_checkpoint(server):
    return lambda: any(name.endswith("/checkpoint.json") for name in server.files())


def test_a_run_that_is_killed_goes_on_and_a_second_one_is_refused(server, start, expected):
    first = start()
    until(has_checkpoint(server), first)
    ((code, _, errors),) = pair.ended([start()])
    assert code == 2
    assert errors.splitlines()[-1].endswith("/run' is in use by another process; expected a free one")
    first.send_signal(signal.SIGKILL)
    first.communicate()
    ((code, said, errors),) = pair.ended([start()])
    assert code == 0, errors
    assert "is held by another process, or was by one that is gone: waiting" in said
    assert "going on with resnet8 from step" in said
    files = of_run(server.files())
    assert numbers(files) == expected
    assert ".lease" not in files


def test_a_store_that_is_gone_for_a_while_costs_no_run(server, start, expected):
    if server.protocol == "s3":
        pytest.skip("moto forgets everything when it is stopped")
    process = start()
    until(has_checkpoint(server), process)
    server.stop()
    said = ""
    while "cannot be written" not in said:
        said = process.stdout.readline()
        assert said
    server.start()
    ((code, said, errors),) = pair.ended([process])
    assert code == 0, errors
    assert "can be written again, and has everything" in said
    assert numbers(of_run(server.files())) == expected


def test_two_processes_need_no_folder_in_common(server, start, tmp_path):
    """Each has its own copies; the first alone writes."""
    both = pair.start(
        *(QUICK, *RUN[:-2], "--config.train.epochs=6", f"--workdir={server.protocol}://bucket/run"),
        **server.environment,
    )
    found = pair.ended(both)
    assert [code for code, _, _ in found] == [0, 0], found
    ((code, _, errors),) = pair.ended(
        [
            pair.process(
                *("kd_jax.main", *RUN[:-2], "--config.train.epochs=6", f"--workdir={tmp_path / 'run'}"),
                XLA_FLAGS=pair.ENVIRONMENT["XLA_FLAGS"] + " --xla_force_host_platform_device_count=2",
            )
        ]
    )
    assert code == 0, errors
    here = numbers({path.name: path.read_text() for path in Path(tmp_path / "run").glob("*.json*")})
    assert numbers(of_run(server.files())) == here
