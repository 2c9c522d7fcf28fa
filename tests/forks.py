"""Commands in processes that begin with everything imported, which takes most of the time of a short one.

Each is a fork of `python -m tests.forks`, which runs nothing itself, and ends as `python -m MODULE` does.
"""

import gc
import json
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.pair import ENVIRONMENT, ROOT


class Forks:
    """A process that forks one for every call; `close` ends it."""

    def __init__(self):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._server = subprocess.Popen([sys.executable, "-m", "tests.forks"], cwd=ROOT, env=ENVIRONMENT, **pipes)

    def __call__(self, module, *arguments, cwd=ROOT, **environment):
        """(exit status, stdout, stderr) of a module, started in the folder `cwd`."""
        with tempfile.TemporaryDirectory() as folder:
            request = [folder, str(cwd), [module, *map(str, arguments)], environment]
            print(json.dumps(request), file=self._server.stdin, flush=True)
            status = int(self._server.stdout.readline())
            return status, *((Path(folder) / name).read_text() for name in ("out", "err"))

    def close(self):
        self._server.communicate()


def main():
    import scipy.stats  # noqa: F401

    import kd_jax.training  # noqa: F401

    gc.freeze()
    for line in iter(sys.stdin.readline, ""):
        folder, cwd, (module, *arguments), environment = json.loads(line)
        process = os.fork()
        if not process:
            for descriptor, name in ((1, "out"), (2, "err")):
                os.dup2(os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CREAT), descriptor)
            os.environ |= environment
            os.chdir(cwd)
            sys.path[1:1] = environment.get("PYTHONPATH", "").split(os.pathsep)
            sys.argv[1:] = arguments
            runpy.run_module(module, run_name="__main__", alter_sys=True)
            return
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
