from __future__ import annotations

import io
import itertools

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from rayfm.batch import HARMLESS, SparseBatch
from rayfm.errors import DataError
from rayfm.formats import compiled, libsvm

compiled.kernels("text", compiled.MIN_BYTES)

# Text that is nearly right finds more than random bytes do.
NEARLY_TOKENS = (
    *(b"1", b"0", b"-1", b"+", b"1:2", b"3:.5", b"0:1e5", b":", b" ", b" ", b" ", b"\n", b"\n", b"\t", b"\r\n"),
    *(b"#", b"e", b".", b"nan", b"inf", b"4294967296:1", b"1e400", b"9" * 30, b"\x00", b"\x0b", b"\xc3", b"_"),
)
NEARLY = st.lists(st.sampled_from(NEARLY_TOKENS), max_size=40).map(b"".join)
TEXTS = st.one_of(NEARLY, NEARLY, st.binary(max_size=200), st.text("01:.e+- \n", max_size=60).map(str.encode))
DIALECTS = st.builds(libsvm._Dialect, st.sampled_from([0, 1]), st.booleans())


def reading(text: bytes, start: int = 0, stop: int | None = None, **options):
    """Return the problems by line, and the joined rows with their line numbers."""
    problems: list[tuple[str, int, str]] = []
    chunks = libsvm.read(
        io.BytesIO(text), start, stop, report=lambda kind, row, text, _: problems.append((kind, row, text)), **options
    )
    chunks = list(chunks)
    batch = SparseBatch.concatenate([chunk.batch for chunk in chunks])
    return problems, batch, [ordinal for chunk in chunks for ordinal in chunk.ordinals.tolist()]


@given(TEXTS, st.sampled_from([0, 1]), st.integers(1, 50))
def test_read__raises_nothing_but_data_error(text, index_base, chunk_bytes):
    try:
        for chunk in libsvm.read(io.BytesIO(text), index_base=index_base, chunk_bytes=chunk_bytes):
            assert len(chunk.ordinals) == chunk.batch.num_rows
    except DataError as error:
        assert 1 <= error.record <= text.count(b"\n") + 1


@given(TEXTS, DIALECTS, st.integers(0, 9))
@example(b"0 3\n5:7\n", libsvm._Dialect(0, False), 0)
@example(b"1 2:1e-310 3:1.7976931348623159e308\n", libsvm._Dialect(0, True), 0)
def test_parse_at_once__equals_parsing_by_line(text, dialect, ordinal):
    at_once = libsvm._parse_at_once(text, ordinal, dialect)
    if at_once is None:
        return
    problems = []
    by_line = libsvm._parse_by_line(text, ordinal, dialect, lambda *problem: problems.append(problem))
    assert not problems
    for left, right in zip(at_once, by_line, strict=True):
        with np.errstate(over="ignore"):
            np.testing.assert_array_equal(left, right.astype(left.dtype))


ORDINARY = st.just(0.0) | st.floats(1e-60, 1e38) | st.floats(2.0**-149, 2.0**127, width=32)


@given(
    st.lists(
        st.tuples(
            st.floats(width=32, allow_nan=False, allow_infinity=False),
            st.dictionaries(st.integers(0, 2**32 - 1), ORDINARY | ORDINARY.map(lambda x: -x), max_size=5),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_parse_at_once__reads_every_number_as_python_does(rows):
    text = "".join(f"{label!r} {' '.join(f'{k}:{v!r}' for k, v in row.items())}\n" for label, row in rows).encode()
    parsed = libsvm._parse_at_once(text, 0, libsvm._Dialect(0, True))
    assert parsed is not None
    assert parsed.values.tolist() == [np.float32(value) for _, row in rows for value in row.values()]
    assert parsed.keys.tolist() == [key for _, row in rows for key in row]
    assert parsed.labels.tolist() == [label for label, _ in rows]


@given(TEXTS, st.lists(st.integers(0, 220), max_size=4), st.integers(1, 50))
def test_read__pieces_of_any_cutting_give_each_line_once(text, cuts, chunk_bytes):
    whole_problems, whole, whole_ordinals = reading(text)
    bounds = [0, *sorted(cuts), None]
    problems, batches, ordinals = [], [], []
    for start, stop in itertools.pairwise(bounds):
        before = libsvm.count_records(io.BytesIO(text), start)
        found, batch, numbers = reading(text, start, stop, chunk_bytes=chunk_bytes)
        problems += [(kind, before + row, words) for kind, row, words in found]
        batches.append(batch)
        ordinals += [before + number for number in numbers]
    joined = SparseBatch.concatenate(batches)
    assert sorted(problems) == sorted(whole_problems)
    assert ordinals == whole_ordinals
    np.testing.assert_array_equal(joined.indptr, whole.indptr)
    np.testing.assert_array_equal(joined.keys, whole.keys)
    np.testing.assert_array_equal(joined.values, whole.values)
    assert not {row for kind, row, _ in problems if kind not in HARMLESS} & set(ordinals)


ORDINARY = st.just(0.0) | st.floats(1e-60, 1e38) | st.floats(2.0**-149, 2.0**127, width=32)


@given(
    st.lists(
        st.tuples(
            st.floats(width=32, allow_nan=False),
            st.dictionaries(st.integers(0, 2**32 - 2), st.floats(width=32), max_size=5),
        ),
        min_size=1,
        max_size=8,
    ),
    st.sampled_from([0, 1]),
)
def test_write__round_trips(rows, index_base):
    counts = [len(row) for _, row in rows]
    entries = [entry for _, row in rows for entry in sorted(row.items())]
    keys, values = np.array([key for key, _ in entries], np.int64), np.array([value for _, value in entries])
    batch = SparseBatch.from_csr(np.cumsum([0, *counts]), keys, values, [label for label, _ in rows])
    file = io.BytesIO()
    libsvm.write(file, batch, index_base=index_base)
    file.seek(0)
    [chunk] = libsvm.read(file, index_base=index_base)
    for name in ("indptr", "keys", "values", "labels"):
        np.testing.assert_array_equal(getattr(chunk.batch, name), getattr(batch, name))


@given(st.binary(max_size=200))
def test_guess_index_base__tolerates_any_bytes(text):
    assert libsvm.guess_index_base(io.BytesIO(text)) in (0, 1)
