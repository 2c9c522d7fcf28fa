"""Published accuracies: whole tables, of pairs and methods that there are, the authors' own first."""

import collections

import pytest

from kd_jax.config.numbers import NUMBERS, Number, of
from kd_jax.config.pairs import PAIRS, in_words
from kd_jax.config.published import PUBLISHED

LARGE = [pair for pair in PAIRS if PAIRS[pair].data != "cifar10"]


@pytest.mark.parametrize("pair", LARGE)
def test_a_pair_has_the_accuracies_of_its_teacher_its_student_alone_and_kd(pair):
    teacher, alone, kd = (of(pair, method)[0].accuracy for method in ("teacher", "cross_entropy", "kd"))
    assert alone < kd < teacher or pair == "resnet32x4-wrn_40_2"  # of two networks that are nearly as good


def test_a_number_is_of_a_pair_and_a_method_that_there_are():
    for number in NUMBERS:
        assert number.pair in LARGE
        assert number.method in {*PUBLISHED, "teacher"}
        assert number.chosen in ("last", "best")
        assert 55 < number.accuracy < 85
        assert number.deviation is None or 0 < number.deviation < 1


def test_a_source_has_one_number_for_a_method_and_a_pair():
    counts = collections.Counter((number.pair, number.method, number.source) for number in NUMBERS)
    assert [key for key, count in counts.items() if count > 1] == []


def test_the_table_of_tian_et_al_is_whole():
    rows = collections.Counter(number.method for number in NUMBERS if number.source == "HobbitLong/RepDistiller")
    assert rows.pop("fsp") == 6  # of networks of the same widths
    assert (rows.pop("teacher"), rows.pop("cross_entropy")) == (17, 17)  # of the pairs that others added too
    assert rows == dict.fromkeys(("kd", "fitnet", "at", "sp", "cc", "vid", "rkd", "pkt", "ab", "ft", "nst", "crd"), 13)


def test_the_table_of_sun_et_al_is_whole():
    own = "sunshangquan/logit-standardization-KD"
    rows = collections.Counter(number.method for number in NUMBERS if number.source == own)
    assert {method: rows[method] for method in ("kd_ls", "dkd_ls", "mlkd", "mlkd_ls")} == dict.fromkeys(
        ("kd_ls", "dkd_ls", "mlkd", "mlkd_ls"), 14
    )


def test_the_first_and_the_last_cell_of_a_table_are_of_the_pair_above_them():
    assert of("wrn_40_2-wrn_16_2", "kd") == (
        Number("wrn_40_2-wrn_16_2", "kd", 74.92, "HobbitLong/RepDistiller", None, "last"),
    )
    assert [number.accuracy for number in of("vgg13-vgg8", "crd")] == [73.94]
    assert [number.accuracy for number in of("resnet50-mobilenetv1", "crd")] == [71.40]  # behind an empty cell


def test_a_cell_that_is_empty_in_the_source_is_no_number():
    assert of("wrn_40_2-wrn_40_1", "fsp") == ()


def test_a_methods_own_authors_stand_first():
    first, *others = of("wrn_40_2-wrn_40_1", "dist")
    assert first == Number("wrn_40_2-wrn_40_1", "dist", 74.43, "hunto/DIST_KD", 0.24, "best")
    assert [number.source for number in others] == ["zkxufo/TTM", "WangYZ1608/Knowledge-Distillation-via-ND"]
    assert of("resnet34-resnet18", "crd")[0].source == "papers, as yoshitomo-matsubara/torchdistill quotes them"
    assert [of("resnet34-resnet18", name)[0].accuracy for name in ("teacher", "cross_entropy")] == [73.31, 69.76]


def test_what_the_papers_say_and_what_torchdistill_has_are_two_numbers():
    assert [number.accuracy for number in of("resnet34-resnet18", "ickd")] == [72.19, 68.34]


def test_every_pair_has_words():
    words = [in_words(pair) for pair in PAIRS]
    assert len(set(words)) == len(PAIRS)
    assert "CIFAR-10, ResNet-56 to ResNet-8" in words
