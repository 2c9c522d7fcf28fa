"""Records by their number, against TensorFlow's own writer."""

import pickle

import pytest

from kd_jax.data.tfrecord import TFRecords
from kd_jax.errors import InputError
from kd_jax.quiet_tensorflow import import_tensorflow

RECORDS = [[b"first", b"", b"x" * 70_000], [], [b"last"]]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    tf = import_tensorflow()
    paths = [str(tmp_path_factory.mktemp("records") / f"{number}.tfrecord") for number in range(len(RECORDS))]
    for path, records in zip(paths, RECORDS, strict=True):
        with tf.io.TFRecordWriter(path) as writer:
            for record in records:
                writer.write(record)
    return paths


def test_each_record_of_all_files_has_its_number(files):
    records = TFRecords(files)
    assert [records[number] for number in range(len(records))] == [record for own in RECORDS for record in own]


def test_they_go_to_another_process_without_what_they_hold(files):
    content = pickle.dumps(TFRecords(files))
    assert len(content) < 2000
    assert pickle.loads(content)[3] == b"last"


@pytest.mark.parametrize("kept", [1, 12, 20])
def test_a_file_that_ends_within_a_record_is_named(files, tmp_path, kept):
    with open(files[0], "rb") as whole:
        (tmp_path / "cut").write_bytes(whole.read()[:kept])
    with pytest.raises(InputError, match="cut ends within a record; expected a whole file"):
        TFRecords([str(tmp_path / "cut")])
