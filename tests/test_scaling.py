"""The cost of data parallel training: laws that it keeps for all numbers, and what was worked out by hand."""

import json

import jax
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kd_jax.errors import InputError
from launch import aot, scaling

laws = settings(derandomize=True, deadline=None, max_examples=50, database=None)
CHIPS = st.integers(1, scaling.MOST)
BYTES = st.floats(0, 1e12)
EXCHANGES = st.builds(scaling.Exchange, BYTES, st.integers(0, 1000))
NOTHING = scaling.Exchange(0, 0)
V5E = scaling.MACHINES["v5e"]
MACHINES = st.sampled_from(list(scaling.MACHINES.values()))


@st.composite
def cases(draw):
    """Arguments of `scaling.row` that it takes."""
    chips, images, seconds = draw(CHIPS), draw(st.integers(1, 4096)), draw(st.floats(1e-6, 1e3))
    step = scaling.Step(draw(st.integers(1, 4096)), seconds, seconds * draw(st.floats(0, 1)))
    exchanges = draw(EXCHANGES), draw(EXCHANGES)
    return (step, *exchanges, draw(MACHINES)), {"batch": chips * images, "chips": chips}


@laws
@given(cases())
def test_no_time_is_negative(case):
    row = scaling.row(*case[0], **case[1])
    assert min(row.sent, row.computing, row.exchanging, row.plain, row.overlapped) >= 0


@laws
@given(cases())
@example(((scaling.Step(46, 0.2, 0.0), NOTHING, NOTHING, V5E), {"batch": 249 * 62, "chips": 249}))  # it rounds to above
def test_an_efficiency_is_above_0_and_at_most_1(case):
    row = scaling.row(*case[0], **case[1])
    assert 0 < row.efficiency <= 1
    assert 0 < row.efficiency_overlapped <= 1


@laws
@given(cases())
def test_overlap_is_never_slower_and_never_hides_the_computing(case):
    row = scaling.row(*case[0], **case[1])
    assert row.computing <= row.overlapped <= row.plain


@laws
@given(EXCHANGES, CHIPS, MACHINES, st.floats(1, 1e3))
def test_more_bandwidth_is_never_slower(exchange, chips, machine, factor):
    faster = tuple(links._replace(bandwidth=factor * links.bandwidth) for links in machine.links)
    time = scaling.all_reduce(exchange, chips, machine)
    assert scaling.all_reduce(exchange, chips, machine._replace(links=faster)) <= time


@laws
@given(EXCHANGES, MACHINES)
def test_one_chip_exchanges_nothing(exchange, machine):
    assert scaling.all_reduce(exchange, 1, machine) == scaling.sent(exchange.nbytes, 1) == 0


@laws
@given(st.integers(1, 10**12), st.integers(1, scaling.MOST - 1))
def test_what_a_chip_sends_nears_twice_the_bytes_from_below(nbytes, chips):
    less, more = scaling.sent(nbytes, chips), scaling.sent(nbytes, chips + 1)
    assert less < more < 2 * nbytes
    assert more == pytest.approx(2 * nbytes, rel=1 / chips)


@laws
@given(cases(), st.integers(2, scaling.MOST), st.integers(1, 1000))
def test_a_batch_that_the_chips_do_not_divide_is_refused(case, chips, rest):
    batch = chips * rest + 1 + rest % (chips - 1)
    with pytest.raises(InputError, match=f"^--batch is {batch}; expected a multiple of {chips}, the number of chips$"):
        scaling.row(*case[0], batch=batch, chips=chips)


@pytest.mark.parametrize("chips", [-1, 0, 257])
def test_a_number_of_chips_that_the_model_does_not_cover_is_refused(chips):
    with pytest.raises(InputError, match=f"^--chips has {chips}; expected numbers from 1 to 256$"):
        scaling.check(256, chips)


def test_a_row_worked_out_by_hand():
    """A 4x4 torus of 100 GB/s and 1 us, 1.6 GB of gradients, ten exchanges of no bytes; 20 ms of 100 for every chip."""
    machine = scaling.Machine("torus", 1e12, 1e12, (scaling.Links(16, 100e9, 1e-6, 2),))
    row = scaling.row(
        scaling.Step(64, 0.1, 0.02),
        scaling.Exchange(1.6e9, 1),
        scaling.Exchange(0, 10),
        machine,
        batch=1024,
        chips=16,
    )
    assert row.images == 64
    assert row.sent == pytest.approx(3e9)  # 2 * 15/16 * 1.6e9
    assert row.exchanging == pytest.approx(0.030 + 12e-6 + 120e-6)  # 3e9 / 100e9; 2 * (3 + 3) hops, eleven times
    assert row.plain == pytest.approx(0.130132)
    assert row.overlapped == pytest.approx(0.100120)
    assert row.efficiency == pytest.approx(1.3 / 2.082112)  # one chip: 20 ms and 16 * 80 ms
    assert row.efficiency_overlapped == pytest.approx(1.3 / 1.60192)


def test_hops_of_a_ring_a_torus_and_a_switch():
    assert [scaling.hops(8, 1), scaling.hops(64, 3), scaling.hops(8, 0)] == pytest.approx([14, 18, 6])


@pytest.mark.parametrize(("bfloat16", "kernels"), [(False, 4), (True, 2)])
def test_the_bytes_of_a_resnet_18_follow_from_its_published_size(resnet18, bfloat16, kernels):
    channels = 64 + 4 * 64 + 5 * (128 + 256 + 512)  # of its 20 normalizations
    parameters = 11_689_512 - 1000 * 513 + 10 * 513  # torchvision's, with a head of 10 classes
    small = 2 * channels + 10  # scales and biases
    expected = kernels * (parameters - small) + 4 * small
    assert aot.exchanged(resnet18, bfloat16=bfloat16) == (expected, 2 * 4 * channels, 20)


@pytest.fixture(scope="module")
def resnet18():
    from kd_jax import config

    tree = config.experiment("student").get_config("")
    tree.model.name = "resnet18"
    return aot.create(tree, jax.devices()[:1], images=256, shape=(32, 32, 3), classes=10)


SMALL = ("--config=student:smoke", "--batch=64", "--images=64", "--chips=1,64")


@pytest.fixture
def report(tmp_path):
    """Of 16 chips, whose step of 4 images computes for 2 ms."""
    collectives = {"all-reduce": {"ms": 1.0}, f"all-reduce {aot.RARE}": {"ms": 9.0}}
    found = {"config": "student", "device": "TPU v5 lite", "topology": "v5e:4x4", "chips": 16, "batch": 64, "ms": 3.0}
    path = tmp_path / "report.json"
    path.write_text(json.dumps(found | {"collectives": collectives}))
    return path


def test_the_table_starts_from_a_report_and_says_that_it_is_computed(report, capsys):
    scaling.main([*SMALL, "--chips=16", f"--report={report}"])
    lines = capsys.readouterr().out.splitlines()
    title, heads, row = (next(line for line in lines if line.startswith(x)) for x in ("Computed", "| chips", "| 16 "))
    assert "not measured" in title
    assert all(head.strip().startswith("computed: ") for head in heads.split("|")[2:-1])
    assert [cell.strip() for cell in row.split("|")[2:5:2]] == ["4", "2.00"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--chips=3"], "--batch is 64; expected a multiple of 3"),
        (["--chips=a"], "--chips is 'a'; expected numbers"),
        (["--machine=v0"], "--machine is 'v0'; expected one of: h100, "),
        (["--mfu=0"], "--mfu is 0.0; expected a share"),
        (["--shape=32"], "--shape is '32'; expected height"),
        (["--report=missing"], "--report is 'missing' (No such file or directory); expected what"),
        (
            ["--machine=v4", "--report=REPORT"],
            "--report is of student on TPU v5 lite; expected one of student on TPU v4",
        ),
    ],
)
def test_wrong_input_is_one_line(wrong, said, report, capsys):
    with pytest.raises(SystemExit) as exit:
        scaling.main([*SMALL, *(argument.replace("REPORT", str(report)) for argument in wrong)])
    assert exit.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {said}")
    assert error.count("\n") == 1
