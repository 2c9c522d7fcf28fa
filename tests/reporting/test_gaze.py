"""What kd_jax.explain left in the folders of runs is part of the report."""

import json

from kd_jax.reporting import gaze
from kd_jax.reporting.page import Image
from tests.reporting.made_up import groups, row, text, write_run

PNG = b"\x89PNG\r\n\x1a\n"


def test_numbers_are_shown_where_they_were_measured(tmp_path):
    write_run(tmp_path / "kd")
    cosine = {"mean": 0.8125, "low": 0.75, "high": 0.875}
    found = {"images": 300, "students": [{"name": "kd", "agreement": {"all": {"cosine": cosine}}}], "note": "text"}
    (tmp_path / "kd" / "gaze.json").write_text(json.dumps(found))
    said = text(gaze.blocks(groups(tmp_path)))
    assert row(said, "students, kd, agreement, all, cosine")[1] == "0.812 (0.750 to 0.875)"


def test_pictures_are_shown(tmp_path):
    write_run(tmp_path / "kd")
    (tmp_path / "kd" / "gaze.png").write_bytes(PNG)
    assert gaze.blocks(groups(tmp_path)) == [Image(PNG, f"Grad-CAM: {tmp_path / 'kd'}")]
