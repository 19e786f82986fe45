"""What fit takes, sorted by channel."""

import numpy as np
import pytest
import scipy.sparse

from rayfm.sagemaker.channels import channels_of
from rayfm.sagemaker.records import FileSystemRecordSet, RecordSet, TrainingInput

TRAIN = RecordSet("s3://b/train/.amazon.manifest", num_records=10, feature_dim=7)
TEST = RecordSet("s3://b/test/", num_records=10, feature_dim=7, s3_data_type="S3Prefix", channel="test")


def channels(records, labels=None, weights=None, validation=None, test=None):
    return channels_of(records, labels, weights, validation, test)


def test_record_set__gives_its_files_and_its_width():
    found = channels(TRAIN)
    assert (found.train, found.feature_dim) == ([TRAIN.s3_data], 7)
    assert (found.validation, found.test) == (None, None)


def test_record_sets__are_sorted_by_their_channels():
    found = channels([TEST, TRAIN])
    assert (found.train, found.test, found.feature_dim) == ([TRAIN.s3_data], [TEST.s3_data], 7)


def test_file_system_record_set__gives_its_folder():
    found = channels(FileSystemRecordSet("fs-1", "EFS", "/data/train", 10, 5))
    assert (found.train, found.feature_dim) == (["/data/train"], 5)


def test_dict__may_hold_any_kind():
    matrix, labels = scipy.sparse.eye(3, format="csr"), np.zeros(3)
    found = channels({"test": TrainingInput("s3://b/test/"), "train": (matrix, labels), "validation": "v.libsvm"})
    assert found.train is matrix
    assert found.labels is labels
    assert (found.validation, found.test, found.feature_dim) == ("v.libsvm", ["s3://b/test/"], None)


def test_arguments__may_name_channels_too():
    found = channels(TRAIN, validation=TEST, test="t.libsvm")
    assert (found.validation, found.test) == ([TEST.s3_data], "t.libsvm")


@pytest.mark.parametrize("data", ["a.pbr", ["a.pbr", "b.pbr"], ("a.pbr", "b.pbr"), np.eye(2)], ids=repr)
def test_anything_else__is_the_training_data_as_it_is(data):
    assert channels(data).train is data


def test_matrix_that_is_a_mapping__is_a_matrix():
    class Matrix(dict):
        shape = (2, 2)

    matrix = Matrix()
    assert channels(matrix).train is matrix


@pytest.mark.parametrize("records", [TEST, [TEST], {"test": "t.pbr"}, {"train": None}, None], ids=repr)
def test_no_training_data__is_an_error_with_the_sdks_text(records):
    with pytest.raises(ValueError, match=r"^Must provide train channel\.$"):
        channels(records)


def test_channel__must_be_known_and_given_once():
    with pytest.raises(ValueError, match="must be one of train, validation, test, got 'valid'"):
        channels({"train": "a.pbr", "valid": "b.pbr"})
    with pytest.raises(ValueError, match="the channel train must be given once"):
        channels([TRAIN, TRAIN])
    with pytest.raises(ValueError, match="the channel test must be given once"):
        channels([TRAIN, TEST], test="t.pbr")


def test_list__must_not_mix_record_sets_and_uris():
    with pytest.raises(TypeError, match="all record sets or all URIs"):
        channels([TRAIN, "a.pbr"])
