"""What fit takes, sorted by channel."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from rayfm.errors import DataError
from rayfm.reading import ReadOptions
from rayfm.sagemaker.channels import channels_of
from rayfm.sagemaker.inputs import FileSystemInput, TrainingInput
from rayfm.sagemaker.records import FileSystemRecordSet, RecordSet
from rayfm.training.sources import FilesSource

TRAIN = RecordSet("s3://b/train/.amazon.manifest", num_records=10, feature_dim=7)
TEST = RecordSet("s3://b/test/", num_records=10, feature_dim=7, s3_data_type="S3Prefix", channel="test")


def channels(records, labels=None, weights=None, validation=None, test=None, options=None):
    return channels_of(records, labels, weights, validation, test, options)


def sdk_input(uri, data_type="S3Prefix", **more):
    """An object with what the SDK's TrainingInput, or version 1's s3_input, has: nothing but its configuration."""
    source = {"S3DataType": data_type, "S3Uri": uri, "S3DataDistributionType": "FullyReplicated"}
    return SimpleNamespace(config={"DataSource": {"S3DataSource": source}, **more})


def sdk_folder(path):
    source = {"FileSystemId": "fs-1", "FileSystemType": "EFS", "DirectoryPath": path, "FileSystemAccessMode": "ro"}
    return SimpleNamespace(config={"DataSource": {"FileSystemDataSource": source}})


def sdk_record_set(uri, channel="train", **more):
    """An object with the attributes of the SDK's RecordSet in version 1; version 2 adds `distribution`."""
    facts = {"s3_data": uri, "feature_dim": 7, "num_records": 10, "s3_data_type": "ManifestFile", "channel": channel}
    return SimpleNamespace(**facts, **more)


SDK_TRAIN = sdk_record_set("s3://b/train/.amazon.manifest", distribution="ShardedByS3Key")
SDK_TEST = sdk_record_set("s3://b/test/.amazon.manifest", channel="test")
RECORDIO = "application/x-recordio-protobuf"


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


@pytest.mark.parametrize("other", ["a.pbr", TrainingInput("s3://b/a/"), sdk_input("s3://b/a/")], ids=repr)
def test_list__must_be_of_one_kind(other):
    with pytest.raises(TypeError, match=r"all record sets, all inputs or all URIs, got .*RecordSet"):
        channels([TRAIN, other])
    with pytest.raises(TypeError, match="all record sets, all inputs or all URIs"):
        channels({"train": "a.pbr", "test": [other, SDK_TRAIN]})


def test_record_sets_of_the_sdk__are_taken_like_rayfms():
    assert channels(SDK_TRAIN) == channels(TRAIN)
    found = channels([SDK_TEST, SDK_TRAIN])
    assert (found.train, found.test, found.feature_dim) == ([SDK_TRAIN.s3_data], [SDK_TEST.s3_data], 7)
    found = channels({"train": SDK_TRAIN}, validation=SDK_TEST, test=[TEST])
    assert (found.train, found.feature_dim) == ([SDK_TRAIN.s3_data], 7)
    assert (found.validation, found.test) == ([SDK_TEST.s3_data], [TEST.s3_data])


def test_file_system_record_set_of_the_sdk__gives_its_folder_and_its_width():
    given = SimpleNamespace(file_system_input=sdk_folder("/data/train"), feature_dim=5, num_records=10, channel="train")
    found = channels([given, TEST])
    assert (found.train, found.test, found.feature_dim) == (["/data/train"], [TEST.s3_data], 5)


@pytest.mark.parametrize(
    ("records", "train"),
    [
        (sdk_input("s3://b/a/"), ["s3://b/a/"]),
        ([sdk_input("s3://b/a/"), sdk_input("s3://b/b.manifest", "ManifestFile")], ["s3://b/a/", "s3://b/b.manifest"]),
        ((TrainingInput("s3://b/a/"), sdk_input("s3://b/b/")), ["s3://b/a/", "s3://b/b/"]),
        ({"train": (TrainingInput("s3://b/a/"), TrainingInput("s3://b/b/"))}, ["s3://b/a/", "s3://b/b/"]),
        (sdk_folder("/data"), ["/data"]),
        ({"train": [FileSystemInput("fs-1", "EFS", "/data")]}, ["/data"]),
        (TRAIN.data_channel(), [TRAIN.s3_data]),
    ],
    ids=range(7),
)
def test_inputs__give_their_uris_alone_or_in_lists(records, train):
    found = channels(records)
    assert (found.train, found.labels, found.feature_dim) == (train, None, None)


def test_record_sets_of_one_channel__must_have_one_width():
    wider = RecordSet("s3://b/more/", 10, 8, "S3Prefix")
    assert channels({"train": [TRAIN, TRAIN]}).feature_dim == 7
    with pytest.raises(DataError, match=r"must have one feature_dim, got \[7, 8\]"):
        channels({"train": [TRAIN, wider]})


def test_content_type__says_how_the_files_of_its_channel_are_read():
    options = ReadOptions(format="libsvm", index_base=1)
    theirs, folder = sdk_input("s3://b/v/", ContentType=RECORDIO), FileSystemInput("fs-1", "EFS", "/t", "ro", RECORDIO)
    found = channels({"train": "a.txt", "validation": theirs, "test": folder}, options=options)
    assert found.train == "a.txt"
    recordio = ReadOptions(format="recordio", index_base=1)
    assert found.validation == FilesSource(("s3://b/v/",), recordio)
    assert found.test == FilesSource(("/t",), recordio)


def test_content_types_of_one_channel__must_be_the_same():
    with pytest.raises(DataError, match="the inputs of the channel test must have the same content_type"):
        channels("a.pbr", test=[TrainingInput("s3://b/a/", content_type=RECORDIO), TrainingInput("s3://b/b/")])


@pytest.mark.parametrize("empty", [[], ()], ids=repr)
def test_empty_list__is_no_data(empty):
    with pytest.raises(DataError, match="the channel train must have data, got an empty list"):
        channels(empty)
    with pytest.raises(DataError, match="the channel validation must have data"):
        channels(TRAIN, validation=empty)


def test_frame_with_columns_named_like_attributes_of_the_sdk__is_a_frame():
    frame = pd.DataFrame({"feature_dim": [1.0], "s3_data": [2.0], "config": [3.0]})
    assert channels(frame).train is frame
