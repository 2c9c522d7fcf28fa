"""Names of files, classes and splits."""

import json

import pytest

from kd_jax import data, identity
from kd_jax.data import names
from kd_jax.errors import InputError
from tests import tiny


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("imagenet1k-train-0003.tar", "train"),
        ("TRAIN_0.tar", "train"),
        ("val.tar.gz", "validation"),
        ("pets.testing.tar", "test"),
        ("pets.tar", ""),
        ("trains-0.tar", ""),
    ],
)
def test_the_split_of_a_file_is_a_word_of_its_name(name, split):
    assert names.split_of_file(f"train/{name}") == split


@pytest.fixture
def section():
    return tiny.config()["dataset"]


def test_the_names_of_classes_are_those_of_a_file(tmp_path, section):
    (tmp_path / "names").write_text("\n".join(f"digit {i}" for i in range(10)) + "\n\n")
    (tmp_path / "names").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "names").read_bytes())  # as a Windows editor may
    plain, named = data.load(section), data.load({**section, "class_names": str(tmp_path / "names")})
    assert named.class_names[::3] == ("digit 0", "digit 3", "digit 6", "digit 9")
    assert (plain.class_names[3], plain.fingerprint) == ("3", named.fingerprint)


def test_the_names_of_classes_are_no_part_of_a_runs_identity(tmp_path):
    (tmp_path / "names").write_text("\n".join(map(str, range(10))))
    plain, named = (tiny.config(**{"dataset.class_names": path}) for path in ("", str(tmp_path / "names")))
    assert json.dumps(identity.identify(plain)) == json.dumps(identity.identify(named))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a\nb\n", "dataset.class_names has 2 names; expected 10, in the order of 0, 1, 2, 3, 4 and 5 more"),
        ("a\nb\na\n", "which names 'a' twice"),
        (None, "which cannot be read; expected a text file"),
    ],
)
def test_a_file_of_other_names_is_refused(tmp_path, section, text, said):
    if text is not None:
        (tmp_path / "names").write_text(text)
    with pytest.raises(InputError, match=said):
        data.load({**section, "class_names": str(tmp_path / "names")})
