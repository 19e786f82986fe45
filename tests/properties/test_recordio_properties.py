import io
import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from rayfm.batch import SparseBatch
from rayfm.errors import DataError
from rayfm.formats import recordio
from rayfm.formats.recordio_frames import MAGIC


def framed(payload):
    file = io.BytesIO()
    recordio.write_frame(file, payload)
    return file.getvalue()


snippets = st.one_of(st.binary(max_size=9), st.just(MAGIC), st.binary(max_size=9).map(framed))
payloads = st.lists(snippets, max_size=5).map(b"".join)
"""Bytes in which the magic and whole frames are frequent, at multiples of 4 and elsewhere."""

finite_floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


@st.composite
def batches(draw):
    width = draw(st.integers(1, 40))
    shape = (draw(st.integers(0, 5)), width)
    features = draw(arrays.arrays(np.float32, shape, elements=finite_floats, fill=st.just(0)))
    labels = draw(st.none() | arrays.arrays(np.float32, shape[0], elements=finite_floats))
    uids = draw(st.none() | st.lists(st.text(max_size=5), min_size=shape[0], max_size=shape[0]))
    return SparseBatch.from_dense(features, labels, uids=None if uids is None else np.array(uids, object))


@given(batch=batches(), dense=st.booleans(), split_magic=st.booleans())
def test_write__is_undone_by_read(batch, dense, split_magic):
    file = io.BytesIO()
    recordio.write(file, batch, dense=dense, split_magic=split_magic)
    file.seek(0)
    chunks = [chunk.batch for chunk in recordio.read(file, batch_rows=2)]
    again = SparseBatch.concatenate(chunks)
    np.testing.assert_array_equal(again.indptr, batch.indptr)
    np.testing.assert_array_equal(again.keys, batch.keys)
    np.testing.assert_array_equal(again.values, batch.values)
    if batch.num_rows:
        np.testing.assert_array_equal(again.labels, batch.labels)
        np.testing.assert_array_equal(again.uids, batch.uids)
        assert again.feature_dim == batch.feature_dim


@given(
    payloads=st.lists(payloads, max_size=8),
    split_magic=st.booleans(),
    cuts=st.lists(st.integers(0, 400), max_size=6).map(sorted),
)
def test_read_frames__gives_each_record_once_for_any_cuts(payloads, split_magic, cuts):
    file = io.BytesIO()
    for payload in payloads:
        recordio.write_frame(file, payload, split_magic=split_magic)
    content = file.getvalue()
    pieces = itertools.pairwise([0, *cuts, None])
    found = [list(recordio.read_frames(io.BytesIO(content), *piece)) for piece in pieces]
    assert [payload for piece in found for _, payload in piece] == payloads
    assert all([ordinal for ordinal, _ in piece] == list(range(len(piece))) for piece in found)


def read_frames_leniently(content, start=0, stop=None):
    found = []
    frames = recordio.read_frames(io.BytesIO(content), start, stop, report=lambda *problem: found.append(problem[2]))
    found.extend(payload for _, payload in frames)
    return sorted(map(repr, found))


@given(content=st.lists(payloads, max_size=6).map(b"".join), cut=st.integers(0, 150))
def test_read_frames__finds_the_same_in_pieces_of_damaged_files(content, cut):
    pieces = read_frames_leniently(content, 0, cut) + read_frames_leniently(content, cut)
    assert sorted(pieces) == read_frames_leniently(content)


@given(content=st.binary(max_size=200) | st.lists(payloads, max_size=6).map(b"".join))
def test_read__raises_nothing_but_data_error_for_any_bytes(content):
    try:
        chunks = list(recordio.read(io.BytesIO(content)))
    except DataError as error:
        assert error.record >= 1
    else:
        assert sum(chunk.batch.num_rows for chunk in chunks) == recordio.count_records(io.BytesIO(content), 1000)


@given(batch=batches(), place=st.integers(0, 2000), damage=st.binary(max_size=6), start=st.integers(0, 200))
def test_read__reports_or_skips_whatever_is_damaged(batch, place, damage, start):
    file = io.BytesIO()
    recordio.write(file, batch)
    content = bytearray(file.getvalue())
    content[place % (len(content) + 1) : place % (len(content) + 1) + len(damage)] = damage
    problems = []
    chunks = list(recordio.read(io.BytesIO(content), start, report=lambda *problem: problems.append(problem)))
    for chunk in chunks:
        assert len(chunk.ordinals) == chunk.batch.num_rows > 0
        assert (np.diff(chunk.ordinals) > 0).all()
    for _, ordinal, problem, remedy in problems:
        assert ordinal >= 0
        assert problem and remedy


@given(payload=payloads)
def test_read__raises_nothing_but_data_error_for_any_payload(payload):
    try:
        [chunk] = recordio.read(io.BytesIO(framed(payload)))
    except DataError as error:
        assert error.record == 1
    else:
        assert chunk.batch.num_rows == 1
