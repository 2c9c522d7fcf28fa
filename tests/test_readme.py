"""The Python of the README runs as it stands there, in one script."""

import os
import re
import subprocess
import sys
from pathlib import Path

from kd_jax import runs

ROOT = Path(__file__).parent.parent
SHORT = """
from configs import quickstart
original = quickstart.get_config
def short(row):
    config = original(row)
    for part in (config, config.teacher.config):
        part.train.epochs, part.train.steps = 1, 2
    return config
quickstart.get_config = short
"""


def test_the_examples_of_the_readme_train_a_new_loss_and_a_new_network(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    (tmp_path / "example.py").write_text(SHORT + "\n".join(blocks))
    done = subprocess.run(
        [sys.executable, "example.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "(1, 10) [(1, 16, 16, 4), (1, 16, 16, 4), (1, 8, 8, 8), (1, 4, 4, 16)]" in done.stdout
    assert runs.read_json(str(tmp_path / "runs" / "plain"), "result.json")["model"] == "plain"
