"""The Python of the README runs as it stands there, in one script."""

import os
import re
import subprocess
import sys
from pathlib import Path

from kd_jax import runs

ROOT = Path(__file__).parent.parent
SHORT = """
from kd_jax.configs import quickstart
original = quickstart.get_config
def short(row):
    config = original(row)
    for part in (config, config.teacher.config):
        part.train.epochs, part.train.steps = 1, 2
    return config
quickstart.get_config = short
"""


def test_the_example_of_the_readme_trains_a_new_loss(tmp_path, no_tensorflow):
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (tmp_path / "example.py").write_text(SHORT + block)
    done = subprocess.run(
        [sys.executable, "example.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([no_tensorflow, str(ROOT)])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "(1, 10) ('0', '1', '2', '3', '4', '5', '6', '7', '8', '9')" in done.stdout
    assert runs.read_json(str(tmp_path / "runs" / "hellinger"), "result.json")["model"] == "resnet8"
