import hashlib
import io
import json
import struct
from mmap import mmap as MappedFile

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from rayfm.errors import ModelFileError
from rayfm.formats import artefact

METADATA = {
    "predictor_type": "regressor",
    "hyperparameters": json.dumps({"factors_lr": 0.001}),
    "metrics": json.dumps({"test:rmse": 0.9}),
    "seed": "7",
    "created": "2026-01-02T03:04:05+00:00",
}


@pytest.fixture
def tensors():
    rng = np.random.default_rng(3)
    factors = rng.normal(size=(5, 3)).astype(np.float32)
    return {"factors": factors, "linear": rng.normal(size=5).astype(np.float32), "bias": np.float32([0.5])}


@pytest.fixture
def content(tensors):
    return written(tensors, METADATA)


@pytest.fixture
def path(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    return path


def written(tensors, metadata):
    file = io.BytesIO()
    artefact.write(file, tensors, metadata)
    return file.getvalue()


def header_of(content):
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def framed(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def assert_equal(tensors, expected):
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == np.float32 and tensor.shape == expected[name].shape
        assert tensor.tobytes() == expected[name].tobytes()


def test_write__reads_back_the_same_bits_and_metadata(path, tensors):
    tensors["factors"][0] = [np.nan, -0.0, np.float32(1e-45)]
    path.write_bytes(written(tensors, METADATA))
    read, metadata = artefact.read(path, verify=True)
    assert_equal(read, tensors)
    own = {"format": "rayfm.factorization_machine", "format_version": "1", "feature_dim": "5", "num_factors": "3"}
    assert {**metadata, "sha256": ""} == {**METADATA, **own, "sha256": ""}


def test_write__data_begins_at_a_multiple_of_64_and_is_in_the_documented_order(content, tensors):
    header, data = header_of(content)
    assert (len(content) - len(data)) % 64 == 0
    assert data == b"".join(tensors[name].tobytes() for name in ("factors", "linear", "bias"))
    assert header["__metadata__"]["sha256"] == hashlib.sha256(data).hexdigest()


def test_write__is_deterministic(content, tensors):
    assert written(tensors, METADATA) == content


def test_write__accepts_other_strides_and_dtypes(tensors, content):
    tensors["factors"] = np.asfortranarray(tensors["factors"].astype(np.float64))
    assert written(tensors, METADATA) == content


def test_write__makes_a_file_that_safetensors_reads(path, tensors):
    assert_equal(safetensors.numpy.load_file(path), tensors)
    with safetensors.safe_open(path, "np") as file:
        assert file.metadata()["predictor_type"] == "regressor"


def test_read__opens_a_file_that_safetensors_wrote(tmp_path, tensors):
    metadata = {"format": artefact.FORMAT, "format_version": "1", "predictor_type": "binary_classifier", "mine": "ü"}
    safetensors.numpy.save_file(tensors, tmp_path / "other.safetensors", metadata)
    read, found = artefact.read(tmp_path / "other.safetensors")
    assert_equal(read, tensors)
    assert found == metadata
    with pytest.raises(ModelFileError, match="must have sha256 to be verified"):
        artefact.read(tmp_path / "other.safetensors", verify=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"factors": np.zeros((5, 0))}, r"shape of factors must have 2 dimensions >= 1, got \[5, 0\]"),
        ({"factors": np.zeros((0, 3)), "linear": np.zeros(0)}, "shape of factors must have 2 dimensions >= 1"),
        ({"factors": np.zeros(5)}, "shape of factors must have 2 dimensions"),
        ({"linear": np.zeros(4)}, r"the model: shape of linear must be \[5\], got \[4\]"),
        ({"bias": np.zeros(2)}, r"shape of bias must be \[1\], got \[2\]"),
    ],
)
def test_write__refuses_tensors_that_make_no_model(tensors, change, message):
    file = io.BytesIO()
    with pytest.raises(ModelFileError, match=message):
        artefact.write(file, {**tensors, **change}, METADATA)
    assert file.getvalue() == b""


def test_write__refuses_missing_parts(tensors):
    with pytest.raises(ModelFileError, match="predictor_type must be regressor or binary_classifier, got None"):
        written(tensors, {})
    with pytest.raises(ModelFileError, match="tensors must be factors, linear, bias, got bias, factors"):
        written({name: tensors[name] for name in ("factors", "bias")}, METADATA)
    with pytest.raises(ModelFileError, match="__metadata__ must be an object of strings"):
        written(tensors, {**METADATA, "seed": 7})


def is_mapped(array):
    """Whether the array is a view of a mapped file."""
    return isinstance(array, MappedFile) or (array is not None and is_mapped(getattr(array, "base", None)))


def test_read__maps_the_file_and_copies_nothing(path):
    read, _ = artefact.read(path)
    for tensor in read.values():
        assert is_mapped(tensor) and not tensor.flags.owndata and not tensor.flags.writeable
        assert tensor.flags.aligned
    with pytest.raises(ValueError, match="read-only"):
        read["bias"][0] = 1


def test_read__without_mmap_is_independent_of_the_file(path, tensors):
    read, _ = artefact.read(path, mmap=False)
    path.write_bytes(b"")
    assert_equal(read, tensors)
    assert not any(is_mapped(tensor) for tensor in read.values())


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_read__takes_bytes_and_gives_read_only_views(content, tensors, kind):
    read, _ = artefact.read(kind(content))
    assert_equal(read, tensors)
    assert not any(tensor.flags.writeable for tensor in read.values())


def test_read__header_of_odd_length_still_gives_aligned_tensors(content, tensors):
    header, data = header_of(content)
    text = json.dumps(header).encode()
    read, _ = artefact.read(framed(text + b" " * (len(text) % 2 + 1), data))
    assert_equal(read, tensors)
    assert all(tensor.flags.aligned for tensor in read.values())


def test_read_header__tells_dimensions_without_reading_tensors(path):
    with path.open("rb") as file:
        header = artefact.read_header(file)
        assert file.tell() == header.data_start
    assert (header.feature_dim, header.num_factors) == (5, 3)
    assert header.metadata["seed"] == "7"


def test_read__scores_with_numpy_alone_as_the_pairwise_formula(path, tensors):
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        data = np.frombuffer(file.read(), np.float32)
    tensor = {
        name: data[entry["data_offsets"][0] // 4 : entry["data_offsets"][1] // 4].reshape(entry["shape"])
        for name, entry in header.items()
        if name != "__metadata__"
    }
    x = np.array([0.0, 2.0, 0.0, -1.0, 0.5])
    total = x @ tensor["factors"]
    raw = tensor["bias"][0] + x @ tensor["linear"] + (total**2 - x**2 @ tensor["factors"] ** 2).sum() / 2

    naive = float(tensors["bias"][0]) + sum(float(w) * x_i for w, x_i in zip(tensors["linear"], x, strict=True))
    for i in range(5):
        for j in range(i + 1, 5):
            naive += float(tensors["factors"][i] @ tensors["factors"][j]) * x[i] * x[j]
    assert raw == pytest.approx(naive, rel=1e-6)


def test_read__truncated_anywhere_is_a_model_file_error(content, tmp_path):
    path = tmp_path / "cut.safetensors"
    for length in range(len(content)):
        with pytest.raises(ModelFileError):
            artefact.read(content[:length])
    for length in (0, 7, 8, 9, 100, len(content) - 1):
        path.write_bytes(content[:length])
        for mmap in (True, False):
            with pytest.raises(ModelFileError, match=r"cut\.safetensors: .*"):
                artefact.read(path, mmap=mmap)
        with path.open("rb") as file, pytest.raises(ModelFileError):
            artefact.read_header(file)


def test_read__appended_bytes_are_refused(content):
    with pytest.raises(ModelFileError, match=r"must have 84 bytes, got 85\. Something was appended"):
        artefact.read(content + b"\0")


def test_read__verify_finds_a_flipped_bit(content):
    damaged = bytearray(content)
    damaged[-1] ^= 1
    artefact.read(damaged)
    with pytest.raises(ModelFileError, match=r"m\.bin: the data does not fit its sha256"):
        artefact.read(damaged, verify=True, name="m.bin")


def set_in(header, where, value):
    *parents, last = where
    for key in parents:
        header = header[key]
    if value is None:
        del header[last]
    else:
        header[last] = value


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        (["__metadata__"], None, "__metadata__ must be an object of strings"),
        (["__metadata__"], ["format"], "__metadata__ must be an object of strings"),
        (["__metadata__", "seed"], 7, "__metadata__ must be an object of strings"),
        (["__metadata__", "format"], "pt", "format must be 'rayfm.factorization_machine', got 'pt'"),
        (["__metadata__", "format_version"], "2", "format_version must be '1', got '2'. Use the rayfm that wrote it"),
        (["__metadata__", "predictor_type"], "ranker", "predictor_type must be regressor or binary_classifier"),
        (["__metadata__", "feature_dim"], "6", "feature_dim must be 5 as in the shapes, got '6'"),
        (["__metadata__", "num_factors"], "03", "num_factors must be 3"),
        (["linear"], None, "tensors must be factors, linear, bias, got bias, factors"),
        (["linear"], [1], "linear must have dtype, shape and data_offsets"),
        (["extra"], {"dtype": "F32", "shape": [0], "data_offsets": [84, 84]}, "tensors must be"),
        (["bias", "dtype"], "F64", "dtype of bias must be F32, got 'F64'"),
        (["bias", "dtype"], {}, "dtype of bias must be F32"),
        (["bias", "shape"], [True], "shape of bias must have 1 dimensions"),
        (["bias", "shape"], [1.0], "shape of bias must have 1 dimensions"),
        (["bias", "shape"], [1, 1], "shape of bias must have 1 dimensions"),
        (["bias", "shape"], 1, "shape of bias must have 1 dimensions"),
        (["factors", "shape"], [15], "shape of factors must have 2 dimensions"),
        (["factors", "shape"], [-5, -3], "shape of factors must have 2 dimensions"),
        (["factors", "shape"], [2**62, 2**62], "data_offsets of factors must span"),
        (["factors", "shape"], [2**64, 1], "shape of factors must have 2 dimensions"),
        (["factors", "shape"], [3, 5], r"shape of linear must be \[3\], got \[5\]"),
        (["linear", "data_offsets"], [0, 20], "must begin at byte"),
        (["linear", "data_offsets"], [64, 84], "must begin at byte"),
        (["linear", "data_offsets"], [80, 60], "data_offsets of linear must span 20 bytes"),
        (["linear", "data_offsets"], [60], "data_offsets of linear must span 20 bytes"),
        (["linear", "data_offsets"], [-20, 0], "data_offsets of linear must span 20 bytes"),
        (["bias", "data_offsets"], [2**40, 2**40 + 4], "bias must begin at byte 80 of the data"),
    ],
)
def test_read__hostile_header_is_refused(content, where, value, message):
    header, data = header_of(content)
    set_in(header, where, value)
    with pytest.raises(ModelFileError, match=message):
        artefact.read(framed(header, data))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (struct.pack("<Q", 2**63), "header must be <= 1048576 bytes, got 9223372036854775808"),
        (framed(b"[]"), "the header must begin with '{'"),
        (framed(b""), "the header must begin with '{'"),
        (framed(b"{\xff}"), "not valid JSON"),
        (framed(b'{"a":1} x'), "not valid JSON"),
        (framed(b'{"a":1,"a":2}'), "a name occurs twice"),
        (framed(b'{"a":NaN}'), "NaN is not a JSON value"),
        (framed(b'{"a":' + b"1" * 5000 + b"}"), "not valid JSON"),
        (framed(b'{"a":' + b"[" * 100_000 + b"}"), "nested too deep"),
        (b"PK\x03\x04" + bytes(60), "not a model file|truncated"),
    ],
)
def test_read__other_files_are_refused(content, message):
    with pytest.raises(ModelFileError, match=message):
        artefact.read(content)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_read__any_damage_is_a_model_file_error_or_harmless(data):
    tensors = {"factors": np.ones((2, 1)), "linear": np.ones(2), "bias": np.ones(1)}
    content = bytearray(written(tensors, {"predictor_type": "regressor"}))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        read, metadata = artefact.read(bytes(content))
    except ModelFileError:
        return
    assert read["factors"].shape == (2, 1) and metadata["format"] == artefact.FORMAT
