"""The benchmark: that it measures what it is asked for, and what its table makes of the figures. No time is judged."""

import json
import math

import pytest

from launch import benchmark, contestants

STAMP = {"date": "2026-01-01", "hardware": "1 x chip", "versions": {"jax": "1"}}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """(the lines of the file, what was printed) of a tiny step without PyTorch."""
    path = tmp_path_factory.mktemp("benchmark") / "lines.jsonl"
    wanted = [name for name in benchmark.MEASURES if name != "start_up"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(benchmark.STEPS, "tiny", contestants.Step("resnet8", "resnet14", 8, 16, width=1 / 16))
        patch.setattr(contestants, "PIXELS", 8)
        patch.setattr(benchmark, "device_peak", lambda precision: benchmark.Peak(1e12, 1e11, "made up"))
        said = []
        patch.setattr("builtins.print", lambda text, **_: said.append(text))
        benchmark.main(
            [
                "--steps=tiny",
                f"--measures={','.join(wanted)}",
                "--torch=/bin/false",
                "--rounds=2",
                "--seconds=0",
                "--images=80",
                f"--results={path}",
            ]
        )
    return [json.loads(line) for line in path.read_text().splitlines()], said


def test_every_measure_is_a_line(measured):
    lines, _ = measured
    names = ["step", "end_to_end", "teacher", "evaluation", "gradcam"]
    found = {own: [line["measure"] for line in lines if line["contestant"] == own] for own in benchmark.VARIANTS}
    assert found == {"kd_jax": names, "recorded teacher": names[:2], "student alone": names[:1]}
    for line in lines:
        assert (line["step"], line["batch"], line["precision"]) == ("tiny", 16, "float32")
        assert math.isfinite(line["value"])
        assert line["value"] > 0
        assert line["versions"].keys() >= {"jax", "python"}


def test_use_of_the_device_follows_from_speed_and_costs(measured):
    step = next(line for line in measured[0] if line["measure"] == "step")
    assert len(step["rounds"]) == 2
    assert step["mfu"] == pytest.approx(step["value"] * step["model_flops"] / 1e12)
    least = max(step["flops"] / 1e12, step["bytes accessed"] / 1e11)
    assert step["roofline"] == pytest.approx(least * step["value"] / 16)


def test_a_teacher_that_is_not_asked_is_no_part_of_what_a_step_needs(measured):
    asked, recorded, alone = (line["model_flops"] for line in measured[0] if line["measure"] == "step")
    assert 0 < recorded < asked
    assert recorded == alone


def test_a_missing_pytorch_is_said_and_no_column(measured):
    said = measured[1]
    assert any("/bin/false has no PyTorch, so its columns are left out" in text for text in said)
    assert "| recorded teacher, images/s | student alone, images/s | recorded teacher / student alone | MFU" in said[-1]
    assert "PyTorch" not in said[-1]
    assert "| tiny | 16 |" in said[-1]


def line(contestant, measure, value, step="a", **others):
    return {
        "step": step,
        "batch": 8,
        "precision": "float32",
        "contestant": contestant,
        "measure": measure,
        "value": value,
        **others,
        **STAMP,
    }


def test_a_variant_of_the_config_is_a_column_more(monkeypatch):
    monkeypatch.setitem(benchmark.VARIANTS, "other", {"train.label_smoothing": 0.1})
    lines = [line("kd_jax", "step", 3.0), line("other", "step", 6.0), line("fair", "step", 4.0)]
    _, speed, _ = benchmark.markdown(lines, None).split("\n\n")
    ratios = "kd_jax / PyTorch | other / PyTorch"
    assert f"| kd_jax, images/s | other, images/s | PyTorch, images/s | {ratios} |" in speed
    assert "| a | 8 | 3 | 6 | 4 | 0.75 | 1.50 |" in speed


def test_the_table_has_ratios_and_no_column_without_a_figure():
    lines = [
        line("kd_jax", "step", 1500.0, mfu=0.25, roofline=0.5, mib=None),
        line("fair", "step", 1000.0, mfu=0.125),
        line("kd_jax", "teacher", 0.4),
        line("kd_jax", "step", 10.0, step="b"),
    ]
    head, speed, around = benchmark.markdown(lines, benchmark.Peak(2e12, 1e9, "as published")).split("\n\n")
    assert head == "2026-01-01, 1 x chip, float32, peak 2.00 TFLOP/s, 1 GB/s (as published); jax 1."
    assert speed.splitlines() == [
        "| step | batch | kd_jax, images/s | PyTorch, images/s | kd_jax / PyTorch | MFU of kd_jax | MFU of PyTorch |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| a | 8 | 1,500 | 1,000 | 1.50 | 25.0% | 12.5% |",
        "| b | 8 | 10 | - | - | - | - |",
    ]
    assert around.splitlines() == [
        "| step | batch | roofline | teacher |",
        "| --- | --- | --- | --- |",
        "| a | 8 | 50.0% | 40% |",
        "| b | 8 | - | - |",
    ]


def test_an_unknown_step_is_refused_with_those_that_are_known(capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["--steps=resnet19"])
    assert "'resnet19'; expected some of: resnet56-resnet20, resnet20" in capsys.readouterr().err
