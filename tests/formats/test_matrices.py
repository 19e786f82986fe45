"""Matrices and columns of users: what becomes of each type of number, and what is none."""

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from rayfm.errors import DataError
from rayfm.formats.matrices import as_column, as_features, as_labels, as_matrix

PERIODS = pd.period_range("2020", periods=2, freq="D")


@pytest.mark.parametrize(
    "labels",
    [
        pd.Series(pd.to_datetime(["2020-01-01", "2020-01-02"], utc=True)),
        pd.Series(pd.to_datetime(["2020-01-01", "2020-01-02"])),
        pd.Series(pd.to_timedelta([1, 2], unit="D")),
        pd.Series(PERIODS),
        pd.Series(["1", "2"], dtype="string"),
        pd.Series(["1", "2"], dtype=object),
        pd.Series(["a", "b"], dtype="category"),
        pd.Series([1j, 2j]),
        pd.DataFrame({"label": ["1", "2"]}),
        pd.DatetimeIndex(["2020-01-01"], tz="UTC"),
        ["1", "2"],
        [1.0, None],
        sparse.csr_array([[1.0]]),
    ],
    ids=lambda labels: f"{type(labels).__name__} {getattr(labels, 'dtype', '')}",
)
def test_as_labels__refuses_what_is_no_real_number(labels):
    with pytest.raises(DataError, match="labels must be real numbers, got dtype"):
        as_labels(labels)


@pytest.mark.parametrize(
    "labels",
    [
        pd.DataFrame({"label": [1, 0, 1]}),
        pd.DataFrame({"label": pd.array([1, 0, 1], "Int8")}, index=[7, 8, 9]),
        pd.Series([1, 0, 1], dtype=pd.SparseDtype("int64", 0)),
        pd.Series([True, False, True], dtype="boolean"),
        pd.Index([1, 0, 1]),
        np.matrix([1, 0, 1]).A1,
        (1, 0, 1),
    ],
)
def test_as_labels__takes_every_kind_of_column(labels):
    found = as_labels(labels)
    assert found.tolist() == [1, 0, 1]
    assert found.dtype in ("f4", "i8")


def test_as_labels__refuses_a_frame_of_several_columns():
    with pytest.raises(DataError, match=r"labels must be one column, got a frame of 2\. Choose one"):
        as_labels(pd.DataFrame({"a": [1.0], "b": [2.0]}))


@pytest.mark.parametrize(
    ("columns", "dtype"),
    [
        (["Int64"], "f4"),
        (["Float32"], "f4"),
        (["boolean", "Int8"], "f4"),
        (["Int64", "float32"], "f4"),
        (["Float64"], "f8"),
        (["Float32", "float64"], "f8"),
        (["int64[pyarrow]"], "f4"),
        (["double[pyarrow]"], "f8"),
    ],
)
def test_as_features__nullable_columns_become_float32_unless_one_is_float64(columns, dtype):
    frame = pd.DataFrame({kind: pd.Series([1, 0], dtype=kind) for kind in columns})
    frame["missing"] = pd.Series([1, None], dtype=columns[0])
    found = as_features(frame)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found[:, :-1], [[1] * len(columns), [0] * len(columns)])
    np.testing.assert_array_equal(found[:, -1], [1, np.nan])


def test_as_features__nullable_integers_that_float32_would_round_become_float64():
    assert as_features(pd.DataFrame({"a": pd.array([2**24 + 1], "Int64")})).tolist() == [[2**24 + 1]]


@pytest.mark.parametrize(
    ("value", "dtype", "expected"),
    [
        (2**53 + 1, "u8", "f8"),
        (2**64 - 1, "u8", "f8"),
        (2**63, "u8", "f4"),
        (2**32 - 1, "u4", "f8"),
        (2**31 - 1, "i4", "f8"),
        (-(2**31), "i4", "f4"),
        (2**25, "i4", "f4"),
        (0.1, "f16", "f8"),
        (np.nan, "f16", "f4"),
    ],
)
def test_as_features__is_float32_only_where_that_keeps_every_value(value, dtype, expected):
    if dtype == "f16" and np.finfo(np.longdouble).nmant == 52:
        pytest.skip("no longer float here")
    assert as_features(np.array([[value, 1]], dtype)).dtype == expected


@pytest.mark.parametrize("make", [list, np.array, pd.Series, sparse.csr_array])
def test_as_features__lists_become_float32_and_what_has_a_type_keeps_it(make):
    assert as_features(make([0.5, 0.1])).dtype == ("f4" if make is list else "f8")


@pytest.mark.parametrize("value", [1e300, -1e39, 10**39 * 1.0])
def test_as_features__refuses_numbers_that_would_become_infinite(value):
    with pytest.raises(DataError, match=r"features must be finite in 32 bits, got -?1e\+\d+\. Scale them"):
        as_features([[1.0, value]])
    assert as_features([[np.inf, np.nan]]).dtype == "f4"
    with pytest.raises(DataError, match="labels must be finite in 64 bits"):
        as_labels(np.array([10], np.longdouble) ** 4000)


@pytest.mark.parametrize("convert", [as_matrix, as_features, as_labels])
def test_masked_values__are_refused_and_a_mask_of_nothing_is_not(convert):
    with pytest.raises(DataError, match=r"must have no masked values, got 2\. Fill them first"):
        convert(np.ma.masked_array([1.0, 2.0, 999.0], mask=[1, 0, 1]))
    assert convert(np.ma.masked_array([1.0, 2.0])).tolist() == [1, 2]


def test_as_matrix__copies_nothing_that_is_a_matrix_already():
    array = np.ones((2, 3), np.int16)
    assert as_matrix(array) is array
    matrix = sparse.coo_array(array)
    assert as_matrix(matrix) is matrix


def test_as_matrix__keeps_frames_of_sparse_columns_sparse():
    frame = pd.DataFrame({"a": [0, 1], "b": [2, 0]}).astype(pd.SparseDtype("int64", 0))
    found = as_matrix(frame)
    assert sparse.issparse(found) and found.toarray().tolist() == [[0, 2], [1, 0]]


@pytest.mark.parametrize(
    "data",
    [np.ones((1, 2)) * 1j, sparse.csr_array([[1j]]), [["1"]], [[None]], np.array([["2020"]], "M8[Y]"), [[10**30]]],
)
def test_as_matrix__refuses_what_is_no_real_number(data):
    with pytest.raises(DataError, match="features must be real numbers, got dtype"):
        as_matrix(data)


def test_as_column__names_the_column_by_what_it_is_for():
    with pytest.raises(DataError, match="weights must be rows of one length"):
        as_column([[1], [1, 2]], "weights")
