from __future__ import annotations

import io
import itertools
import warnings

import numpy as np
import pytest
from sklearn.datasets import dump_svmlight_file, load_svmlight_file

from rayfm.batch import Problem, SparseBatch
from rayfm.errors import DataError
from rayfm.formats import compiled, libsvm
from tests.wire import assert_same_bits

TEXT = (
    b"\xef\xbb\xbf1 0:0.5 7:1\n"
    b"\n"
    b"# a comment 1:2\r\n"
    b"-1\t3:-2e-3  5:+4.\t  # trailing 9:9\r\n"
    b"+1\n"
    b"0.5 1:.25 4294967295:1\r\n"
    b"   \n"
    b"2 6:7"
)


def read_all(text: bytes, start: int = 0, stop: int | None = None, **options):
    """Return (line number, label, {key: value}) of each row."""
    rows = []
    for chunk in libsvm.read(io.BytesIO(text), start, stop, **options):
        batch = chunk.batch
        for row, ordinal in enumerate(chunk.ordinals.tolist()):
            entries = slice(batch.indptr[row], batch.indptr[row + 1])
            label = None if batch.labels is None else float(batch.labels[row])
            features = dict(zip(batch.keys[entries].tolist(), batch.values[entries].tolist(), strict=True))
            rows.append((ordinal, label, features))
    return rows


def problems_of(text: bytes, **options):
    problems = []
    rows = read_all(text, report=lambda *problem: problems.append(problem), **options)
    return problems, rows


def test_read__understands_every_layout_of_a_line():
    assert read_all(TEXT) == [
        (0, 1.0, {0: 0.5, 7: 1.0}),
        (3, -1.0, {3: pytest.approx(-2e-3), 5: 4.0}),
        (4, 1.0, {}),
        (5, 0.5, {1: 0.25, 4294967295: 1.0}),
        (7, 2.0, {6: 7.0}),
    ]


@pytest.mark.parametrize("chunk_bytes", [1, 7, 64, 4096])
def test_read__does_not_depend_on_the_chunk_size(chunk_bytes):
    assert read_all(TEXT, chunk_bytes=chunk_bytes) == read_all(TEXT)


@pytest.mark.parametrize("text", [b"", b"\n", b"\xef\xbb\xbf", b"# nothing\n \t\r\n"])
def test_read__yields_nothing_without_rows(text):
    assert list(libsvm.read(io.BytesIO(text))) == []


def test_read__equals_scikit_learn():
    rng = np.random.default_rng(7)
    matrix = rng.normal(size=(300, 40)) * (rng.random((300, 40)) < 0.2)
    matrix[0, 39] = 1
    for zero_based in (True, False):
        file = io.BytesIO()
        dump_svmlight_file(matrix, rng.integers(0, 2, 300), file, zero_based=zero_based, comment="made for a test")
        expected, labels = load_svmlight_file(io.BytesIO(file.getvalue()), zero_based=zero_based, dtype=np.float64)
        [chunk] = libsvm.read(io.BytesIO(file.getvalue()), index_base=0 if zero_based else 1)
        assert (chunk.batch.to_scipy(40) != expected.astype(np.float32)).nnz == 0
        np.testing.assert_array_equal(chunk.batch.labels, labels.astype(np.float32))


@pytest.mark.parametrize("pieces", range(1, 8))
def test_read__pieces_give_each_line_once_under_its_number(pieces):
    cuts = [round(len(TEXT) * piece / pieces) for piece in range(pieces + 1)]
    cuts[-1] = len(TEXT) + 100
    found = []
    for start, stop in itertools.pairwise(cuts):
        before = libsvm.count_records(io.BytesIO(TEXT), start)
        found += [(before + ordinal, *row) for ordinal, *row in read_all(TEXT, start, stop)]
    assert found == read_all(TEXT)


def test_read__every_two_pieces_give_each_line_once():
    text = b"1 1:1\n\n2\r\n3 4:5\n"
    for cut in range(len(text) + 1):
        rows = read_all(text, 0, cut) + read_all(text, cut)
        assert [row[1:] for row in rows] == [(1.0, {1: 1.0}), (2.0, {}), (3.0, {4: 5.0})], cut


def test_count_records__counts_lines_that_begin_before_a_byte():
    text = b"1\n\n22\n"
    assert [libsvm.count_records(io.BytesIO(text), stop) for stop in (0, 1, 2, 3, 4, 5, 6, 99)] == [
        *(0, 1, 1, 2, 3, 3, 3, 3),
    ]


@pytest.mark.parametrize(
    ("line", "kind", "named"),
    [
        (b"x 1:2", Problem.BAD_RECORD, "label must be a number, got 'x'"),
        (b"1_0 1:2", Problem.BAD_RECORD, "got '1_0'"),
        (b"1,2 1:2", Problem.BAD_RECORD, "got '1,2'"),
        (b"\xff\x00 1:2", Problem.BAD_RECORD, "label must be a number"),
        (b"1 qid:3 1:2", Problem.BAD_RECORD, "got 'qid:3'"),
        (b"1 5", Problem.BAD_RECORD, "got '5'"),
        (b"1 5:", Problem.BAD_RECORD, "got '5:'"),
        (b"1 :5", Problem.BAD_RECORD, "got ':5'"),
        (b"1 : 5", Problem.BAD_RECORD, "got ':'"),
        (b"1 5 :6", Problem.BAD_RECORD, "got '5'"),
        (b"1 5: 6", Problem.BAD_RECORD, "got '5:'"),
        (b"1 1:2:3", Problem.BAD_RECORD, "got '1:2:3'"),
        (b"1 1::3", Problem.BAD_RECORD, "got '1::3'"),
        (b"1 -1:3", Problem.BAD_RECORD, "got '-1:3'"),
        (b"1 1.0:3", Problem.BAD_RECORD, "got '1.0:3'"),
        (b"1 1e2:3", Problem.BAD_RECORD, "got '1e2:3'"),
        (b"1 0x1:3", Problem.BAD_RECORD, "got '0x1:3'"),
        (b"1 2:0x1", Problem.BAD_RECORD, "got '2:0x1'"),
        (b"1 2:1-2", Problem.BAD_RECORD, "got '2:1-2'"),
        (b"1 2:.", Problem.BAD_RECORD, "got '2:.'"),
        (b"1 2:3\r0 4:5", Problem.BAD_RECORD, "got '0'"),
        (b"3:1 4:1", Problem.NO_LABEL, "begin with a label, got the feature '3:1'"),
        (b"1 4294967296:1", Problem.FEATURE_KEY, "'4294967296' does not fit 32 bits"),
        (b"1 " + b"9" * 5000 + b":1", Problem.FEATURE_KEY, "does not fit 32 bits"),
    ],
)
def test_read__names_the_bad_line_and_goes_on(line, kind, named):
    text = b"1 1:1\n\n" + line + b"\n0 2:2\n"
    [problem], rows = problems_of(text)
    assert problem[:2] == (kind, 2)
    assert named in problem[2]
    assert rows == [(0, 1.0, {1: 1.0}), (3, 0.0, {2: 2.0})]
    with pytest.raises(DataError, match=r"^row 3: "):
        read_all(text)


def test_read__finds_the_one_bad_line_among_many():
    lines = [b"%d %d:1" % (i % 2, i) for i in range(20_000)]
    lines[12_345] = b"1 2:"
    [problem], rows = problems_of(b"\n".join(lines))
    assert problem[1] == 12_345
    assert [row[0] for row in rows] == [i for i in range(20_000) if i != 12_345]
    assert all(features == {ordinal: 1.0} for ordinal, _, features in rows)


def test_read__one_based_keys_begin_at_1():
    assert read_all(b"1 1:5 4294967296:6", index_base=1) == [(0, 1.0, {0: 5.0, 4294967295: 6.0})]
    [problem], rows = problems_of(b"1 1:5\n1 0:5\n", index_base=1)
    assert problem == (Problem.FEATURE_KEY, 1, "feature key 0 in a file read as 1-based.", "Set index_base=0.")
    assert rows == [(0, 1.0, {0: 5.0})]


@pytest.mark.parametrize("index_base", [-1, 2])
def test_read__refuses_another_index_base(index_base):
    with pytest.raises(DataError, match="index_base must be 0 or 1"):
        read_all(b"", index_base=index_base)


def test_read__unlabelled_lines_are_rows_when_no_label_is_needed():
    [chunk] = libsvm.read(io.BytesIO(b"0:1 2:3\n1 4:5\n\n6\n"), needs_label=False)
    np.testing.assert_array_equal(chunk.batch.labels, np.array([np.nan, 1, 6], np.float32))
    assert chunk.batch.indptr.tolist() == [0, 2, 3, 3]
    [chunk] = libsvm.read(io.BytesIO(b"0:1 2:3\n4:5\n"), needs_label=False)
    assert chunk.batch.labels is None
    assert problems_of(b"1 2 3\n1:2 3\n", needs_label=False)[0][1][1] == 1


def test_read__leaves_numbers_that_are_not_finite_to_the_row_rules():
    [chunk] = libsvm.read(io.BytesIO(b"1 0:nan 1:-inf 2:Infinity 3:1e300 4:1e-400\nnan\n1e300\n"))
    np.testing.assert_array_equal(chunk.batch.values, np.array([np.nan, -np.inf, np.inf, np.inf, 0], np.float32))
    np.testing.assert_array_equal(chunk.batch.labels, np.array([1, np.nan, np.inf], np.float32))


def test_read__adds_up_duplicates_and_sorts_keys():
    problems, rows = problems_of(b"1 7:1 3:2 7:0.5\n")
    assert rows == [(0, 1.0, {3: 2.0, 7: 1.5})]
    assert [problem[:2] for problem in problems] == [(Problem.DUPLICATE_KEYS, 0)]


def test_read__refuses_a_line_without_end(monkeypatch):
    monkeypatch.setattr(libsvm, "MAX_LINE_BYTES", 100)
    text = b"1 1:1\n1 " + b"1:1 " * 100 + b"\n0 2:2\n"
    for chunk_bytes in (10, 1000):
        for stop in (None, 20):
            [problem], rows = problems_of(text, chunk_bytes=chunk_bytes, stop=stop)
            assert problem[:2] == (Problem.BAD_RECORD, 1)
            assert "longer than 100 bytes" in problem[2]
            assert rows == [(0, 1.0, {1: 1.0}), (2, 0.0, {2: 2.0})][: 2 if stop is None else 1]


@pytest.mark.parametrize(
    "text",
    [
        b"1 0:1 1:2\n-1\n\n0.5 3:4e5",
        b"\n\n1 0:1\r\n",
        b"7",
        b"+1 2:+3 # c\n-1 00:1 012:2\n",
        b"1 4294967295:1\n",
        b"1e5 1:1.e-5 2:.5E+5\n",
        b"-0 1:-0.0 2:0.0001234567890123456 3:12345678901234567 4:1e-80 5:1e80 6:9000000000000000001\n",
    ],
)
def test_parse_at_once__equals_parsing_by_line(text):
    compiled.kernels("text", compiled.MIN_BYTES)
    dialect = libsvm._Dialect(0, True)
    at_once = libsvm._parse_at_once(text, 5, dialect)
    by_line = libsvm._parse_by_line(text, 5, dialect, lambda *_: pytest.fail("no line is bad"))
    assert at_once is not None
    for left, right in zip(at_once, by_line, strict=True):
        with np.errstate(over="ignore"):
            right = right.astype(left.dtype)
        assert left.tobytes() == right.tobytes()


@pytest.mark.parametrize("digits", [7, 9, 15, 16, 17, 18])
def test_parse_at_once__rounds_like_python_and_numpy(digits):
    compiled.kernels("text", compiled.MIN_BYTES)
    rng = np.random.default_rng(digits)
    texts = [f"{x:.{digits}g}" for x in rng.normal(size=3000) * 10.0 ** rng.integers(-12, 13, 3000)]
    lines = [f"1 1:{text}\n".encode() for text in texts]
    seen = [libsvm._parse_at_once(line, 0, libsvm._Dialect(0, True)) for line in lines]
    taken = [(rows.values[0], np.float32(float(text))) for rows, text in zip(seen, texts, strict=True) if rows]
    assert len(taken) > 2900
    assert all(left == right for left, right in taken)


def test_read__a_long_file_is_parsed_by_compiled_code_to_the_same_rows(monkeypatch):
    rng = np.random.default_rng(6)
    batch = SparseBatch.from_dense(
        np.where(rng.random((4000, 30)) < 0.5, rng.normal(size=(4000, 30)), 0), rng.random(4000)
    )
    file = io.BytesIO()
    libsvm.write(file, batch)
    lines = file.getvalue().splitlines(keepends=True)
    lines[1000] = b"1 2:nan\n"
    lines[1001] = b"no label\n"
    lines[3000] = b"# nothing\n\n3 4:5 # a comment\n"
    content = b"".join(lines)
    assert len(content) > compiled.MIN_BYTES

    def everything():
        found = []
        report = lambda *problem: found.append(problem)  # noqa: E731
        chunks = list(libsvm.read(io.BytesIO(content), report=report, chunk_bytes=2**18))
        found += [ordinal for chunk in chunks for ordinal in chunk.ordinals.tolist()]
        return found, SparseBatch.concatenate([chunk.batch for chunk in chunks])

    found, rows = everything()
    monkeypatch.setattr(libsvm, "_parse_at_once", lambda *_: None)
    found_slowly, slow = everything()
    assert found == found_slowly
    assert_same_bits(rows, slow)
    assert rows.num_rows == 3999


@pytest.mark.parametrize(
    ("text", "base"),
    [
        (b"1 1:1 10:2\n", 1),
        (b"1 1:1\n0 0:1\n", 0),
        (b"0:1", 0),
        (b"1 10:0 20:0\n", 1),
        (b"1 1:1 # 0:1\n", 1),
        (b"x y\n1 1:1 00:4", 0),
        (b"", 1),
    ],
)
def test_guess_index_base__looks_for_key_0(text, base):
    assert libsvm.guess_index_base(io.BytesIO(text)) == base


def test_guess_index_base__reads_the_head_only():
    file = io.BytesIO(b"1 1:1\n1 0:1\n")
    assert libsvm.guess_index_base(file, max_bytes=6) == 1
    assert file.tell() == 6


@pytest.mark.parametrize("index_base", [0, 1])
def test_write__round_trips_every_float32(index_base, monkeypatch):
    monkeypatch.setattr(libsvm, "_ENTRIES_PER_WRITE", 50)
    rng = np.random.default_rng(3)
    bits = rng.integers(0, 2**32, 400, dtype=np.uint32).view(np.float32)
    values = np.where(np.isfinite(bits), bits, np.float32(0.1))
    counts = np.array([0, 3, 0, 97, 300, 0])
    keys = np.concatenate([np.sort(rng.choice(2**32, count, replace=False)) for count in counts])
    labels = np.array([0, 1, -1, 0.1, 3e38, 1e-45], np.float32)
    batch = SparseBatch.from_csr(np.concatenate([[0], np.cumsum(counts)]), keys, values, labels).rows(1, 6)
    file = io.BytesIO()
    libsvm.write(file, batch, index_base=index_base)
    file.seek(0)
    [chunk] = libsvm.read(file, index_base=index_base)
    np.testing.assert_array_equal(chunk.batch.indptr, batch.indptr)
    np.testing.assert_array_equal(chunk.batch.keys, batch.keys)
    np.testing.assert_array_equal(chunk.batch.values, batch.values)
    np.testing.assert_array_equal(chunk.batch.labels, batch.labels)


def test_write__writes_the_shortest_numbers():
    file = io.BytesIO()
    libsvm.write(file, SparseBatch.from_dense(np.array([[0.1, 0], [0, 1]], np.float32), [1, 0]), index_base=1)
    assert file.getvalue() == b"1 1:0.1\n0 2:1\n"


def test_write__refuses_rows_without_label():
    batch = SparseBatch.from_dense([[1.0], [2.0]])
    with pytest.raises(DataError, match="row 1: each row written as libsvm text must have a label"):
        libsvm.write(io.BytesIO(), batch)
    batch = SparseBatch.from_dense([[1.0], [2.0]], [1.0, np.nan])
    with pytest.raises(DataError, match="row 2"):
        libsvm.write(io.BytesIO(), batch)


def test_read__warns_of_nothing_when_numbers_overflow():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_all(b"1e300 1:3e38 1:3e38\n", report=lambda *_: None) == [(0, np.inf, {1: np.inf})]
