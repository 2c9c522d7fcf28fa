"""The first page: from 200 photographs to an exported student, by the commands that stand there."""

import re
import shlex
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parent.parent
(BLOCK,) = re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / "start.md").read_text(), re.DOTALL)
COMMANDS = BLOCK.splitlines()


def test_there_are_six_commands_and_the_first_installs():
    assert len(COMMANDS) <= 6
    assert COMMANDS[0] == "bash launch/install.sh && . .venv/bin/activate"
    assert (ROOT / "launch" / "install.sh").is_file()


def test_the_commands_make_a_student_of_200_photographs(call, tmp_path):
    rng = np.random.default_rng(0)
    for index in range(200):
        folder = tmp_path / "photos" / ("cat", "dog")[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        light = 100 * (index % 2)
        Image.fromarray(rng.integers(light, light + 150, (24, 30, 3), dtype=np.uint8)).save(folder / f"{index}.jpg")
    said = {}
    for command in COMMANDS[1:]:
        # Small networks in the place of those that a hub has.
        program, *arguments = shlex.split(command.replace("--config=photos", "--config=photos:smoke"))
        assert program == "kd_jax"
        status, out, err = call("kd_jax", *arguments, cwd=tmp_path)
        assert status == 0, err
        said[arguments[0]] = out
    assert "144 images of" in said["plan"]
    assert len(said["predict"].splitlines()) == 100
    assert (tmp_path / "report" / "index.html").exists()
    assert (tmp_path / "student.tflite").stat().st_size > 1000
