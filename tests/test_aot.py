"""What compiling for a TPU that is not there shows of a step, and how it is read from the program's text."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch import aot, hlo

ROOT = Path(__file__).parent.parent
# In a loop of five: 1500 cycles, an exchange, and a conditional whose second branch is the cheaper one. Then a copy.
PROGRAM = """HloModule jit_train_steps, is_scheduled=true

%cheap (p.1: f32[4]) -> f32[4] {
  ROOT %p.1 = f32[4]{0} parameter(0)
}

%dear (p.2: f32[4]) -> f32[4] {
  %p.2 = f32[4]{0} parameter(0)
  ROOT %all-reduce.2 = f32[4]{0} all-reduce(%p.2), replica_groups={{0,1}}, to_apply=%add
}

%condition (p.3: (s32[], f32[4])) -> pred[] {
  %p.3 = (s32[], f32[4]{0}) parameter(0)
  %get.3 = s32[] get-tuple-element(%p.3), index=0
  %five = s32[]{:T(128)} constant(5)
  ROOT %less = pred[] compare(%get.3, %five), direction=LT
}

%body (p.4: (s32[], f32[4])) -> (s32[], f32[4]) {
  %p.4 = (s32[], f32[4]{0}) parameter(0)
  %x.4 = f32[4]{0} get-tuple-element(%p.4), index=1
  %fusion.4 = (bf16[8,3]{1,0:T(8,128)(2,1)}, f32[4]{0}) fusion(%x.4), kind=kLoop, calls=%fused, METADATA
  %y.4 = f32[4]{0} get-tuple-element(%fusion.4), index=1
  %all-reduce.4 = f32[4]{0} all-reduce(%y.4), replica_groups={{0,1}}, to_apply=%add
  %far.4 = pred[] constant(false)
  %conditional.4 = f32[4]{0} conditional(%far.4, %all-reduce.4, %all-reduce.4), branch_computations={%dear, %cheap}
  ROOT %tuple.4 = (s32[], f32[4]{0}) tuple(%x.4, %conditional.4)
}

ENTRY %main (p.5: (s32[], f32[4]), p.6: u8[50,3,128]) -> (s32[], f32[4]) {
  %p.5 = (s32[], f32[4]{0}) parameter(0)
  %p.6 = u8[50,3,128]{2,1,0} parameter(1)
  %copy.5 = u8[50,3,128]{0,2,1} copy(%p.6), backend_config={"estimated_cycles":"300"}
  ROOT %while.5 = (s32[], f32[4]{0}) while(%p.5), condition=%condition, body=%body
}
""".replace(
    "METADATA",
    'metadata={op_name="jit(train_steps)/transpose(jvp(student))/conv"}, backend_config={"estimated_cycles":"1500"}',
)


@pytest.fixture(scope="module")
def found():
    return aot.analyze(PROGRAM, aot.CHIPS["TPU v5 lite"], chips=2, steps=5, images=50 * 3 * 128, flops=1000.0)


def test_a_loops_ops_count_as_often_as_it_runs(found):
    assert found["scopes"]["student backward"] == pytest.approx(1500 / 1.5e6)  # at 1.5 GHz, of one step
    assert found["collectives"]["all-reduce"]["count"] == 1


def test_a_branch_that_is_not_the_cheapest_is_told_apart(found):
    assert found["collectives"]["all-reduce in a branch that is not the cheapest"]["count"] == 1
    exchange = 1e3 * (2 * 0.5 * 16 / 200e9 + 2e-6)  # both ways, of 4 float32 of which half travel
    assert found["ms"] == pytest.approx((1500 + 300 / 5) / 1.5e6 + exchange)


def test_a_copy_of_the_image_set_is_seen(found):
    assert found["copies_of_the_images"] == pytest.approx({"count": 0.2, "bytes": 3840, "ms": 60 / 1.5e6})


def test_it_says_what_the_chips_exchange_and_what_the_program_does_not_have(found):
    line = aot.exchange(found | {"exchanged": {"gradients": 12}})
    assert line.startswith(
        "all-reduce 1, 16 bytes; of these gradients 12, statistics and counts 4; not in the program: "
    )
    assert line.endswith("program: " + ", ".join(hlo.COLLECTIVES[1:]))


def test_a_collective_inside_a_fusion_is_not_said_to_be_missing():
    fused = "%fused (p.7: f32[4]) -> f32[8] {\n  ROOT %g.7 = f32[8]{0} all-gather(%p.7), dimensions={0}\n}\n\nENTRY"
    text = PROGRAM.replace("ENTRY", fused)
    found = aot.analyze(text, aot.CHIPS["TPU v5 lite"], chips=2, steps=5, images=50 * 3 * 128)
    assert "all-gather" not in found["collectives"]
    assert found["kinds_of_collectives"] == ["all-gather", "all-reduce"]


@pytest.mark.parametrize(
    ("call", "operands"),
    [
        ("Forward", "bf16[2,16,16,16]{3,2,1,0} parameter(0), bf16[32,3,3,16]{3,2,1,0} parameter(1)"),
        ("BackwardInput", "bf16[2,8,8,32]{3,2,1,0} parameter(0), bf16[32,3,3,16]{3,2,1,0} parameter(1)"),
        ("BackwardFilter", "bf16[2,16,16,16]{3,2,1,0} parameter(0), bf16[2,8,8,32]{3,2,1,0} parameter(1)"),
    ],
)
def test_a_gpus_convolution_of_stride_2_takes_its_products_in_each_direction(call, operands):
    results = {"Forward": "bf16[2,8,8,32]", "BackwardInput": "bf16[2,16,16,16]", "BackwardFilter": "bf16[32,3,3,16]"}
    x, y = operands.split(", bf16")
    op = hlo.Op("conv", results[call], "custom-call", f'%x, %y), custom_call_target="__cudnn$conv{call}"')
    run = hlo.Run(op, 1, True, {"x": x, "y": f"bf16{y}"})
    assert aot.kernel(run, aot.CHIPS["NVIDIA H100 80GB HBM3"])[1] == 2 * (2 * 8 * 8) * (32 * 3 * 3 * 16)


def test_sizes_of_types():
    assert hlo.sizes("(pred[8]{0}, bf16[2,3]{1,0:T(8,128)(2,1)}, u8[]{:T(128)}, f8e4m3fn[5]{0}, s4[4]{0})") == [
        *(("pred", 8), ("bf16", 12), ("u8", 1), ("f8e4m3fn", 5), ("s4", 2))
    ]


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="needs libtpu, of the extra `aot`")
def test_on_a_tpu_nothing_travels_but_sums_and_the_image_set_stays_as_it_lies(tmp_path):
    path = tmp_path / "report.json"
    small = ["--config=kd:smoke", "--topology=v5e:2x2", "--batch=64", "dataset.augment=crop_flip"]
    own = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    subprocess.run(
        [sys.executable, "-m", "launch.aot", *small, f"--json={path}"],
        cwd=ROOT,
        env=own | {"PYTHONPATH": str(ROOT), "JAX_ENABLE_COMPILATION_CACHE": "false"},
        check=True,
        timeout=600,
    )
    found = json.loads(path.read_text())
    assert {kind.split()[0] for kind in found["collectives"]} == {"all-reduce"}
    assert found["kinds_of_collectives"] == ["all-reduce"]
    assert found["copies_of_the_images"]["count"] == 0
    # Gradients, the statistics on the way forward where no two of them are one, and two counts.
    travels, bound = found["collectives"]["all-reduce"]["bytes"], found["exchanged"]
    assert bound["gradients"] < travels <= bound["gradients"] + bound["statistics"] + 16
    assert found["collectives"]["all-reduce"]["count"] <= 2 * 9  # forward and backward, of nine normalizations
