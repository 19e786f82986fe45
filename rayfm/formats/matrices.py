"""Rows and columns of numbers in the forms that users have them in, made NumPy arrays or SciPy matrices.

Nothing that is no real number passes: text is not parsed, an imaginary part or a mask is not dropped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rayfm.errors import DataError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

TENSOR_DTYPES = (np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.int64))
"""What the writers of Records take; int64 becomes a tensor of 32 bits."""


def is_sparse(data: Any) -> bool:
    """Tell whether `data` is a SciPy sparse matrix or array."""
    return hasattr(data, "tocsr")


def is_frame(data: Any) -> bool:
    """Tell whether `data` is a pandas DataFrame, without importing pandas."""
    return hasattr(data, "iloc") and hasattr(data, "columns")


def as_matrix(data: Any) -> Any:
    """Return features as they are: a NumPy array of any rank, or a SciPy sparse matrix, of real numbers of any type.

    Parameters
    ----------
    data
        A NumPy array or what NumPy makes one of, a SciPy sparse matrix or array, or a pandas DataFrame of numeric
        columns, in which NaN stands for what is missing. A frame whose columns are all sparse and filled with zero
        stays sparse.

    Raises
    ------
    DataError
        If there is something else than real numbers in it, values are masked, or rows are of different lengths.
    """
    if is_frame(data):
        data = _frame_matrix(data)
    if not is_sparse(data):
        return as_column(data, "features")
    _check_real(data.dtype, "features")
    return data


def as_column(data: Any, name: str) -> NDArray[Any]:
    """Return one number for each row as an array of the type it has.

    Parameters
    ----------
    data
        An array, a list, a pandas Series, or a DataFrame of one column. The rank of arrays is not checked.
    name
        What error messages call it.

    Raises
    ------
    DataError
        As in `as_matrix`, or if a frame has several columns.
    """
    if is_frame(data):
        if data.shape[1] != 1:
            raise DataError(f"{name} must be one column, got a frame of {data.shape[1]}.", "Choose one of them.")
        data = data.iloc[:, 0]
    if hasattr(data, "iloc"):
        if not _is_number(data.dtype):
            raise _not_real(data.dtype, name)
        matrix = _frame_matrix(data.to_frame())
        data = (matrix.toarray() if is_sparse(matrix) else matrix)[:, 0]
    array = _array(data, name)
    _check_real(array.dtype, name)
    return array


def as_features(data: Any) -> NDArray[Any] | csr_matrix:
    """Return features as a NumPy array of any rank or a CSR matrix, of one of `TENSOR_DTYPES`.

    Parameters
    ----------
    data
        What `as_matrix` takes; a sparse array of one dimension is one row. Lists of numbers become float32. Any other
        type of number than those becomes float32 where that keeps every value, else float64.

    Raises
    ------
    DataError
        As in `as_matrix`, or if a number is too large for its type.
    """
    matrix = as_matrix(data)
    if is_sparse(matrix):
        csr = _csr(matrix)
        csr.data = _as_tensor_dtype(csr.data, "features")
        return csr
    if is_frame(data) or hasattr(data, "dtype"):
        return _as_tensor_dtype(matrix, "features")
    return _cast(matrix, np.float32, "features")


def as_labels(labels: Any) -> NDArray[Any]:
    """Return labels (see `as_column`) as a NumPy array of one of `TENSOR_DTYPES`, chosen as in `as_features`."""
    return _as_tensor_dtype(as_column(labels, "labels"), "labels")


def _as_tensor_dtype(array: NDArray[Any], name: str) -> NDArray[Any]:
    """Return `array` if its type is one of `TENSOR_DTYPES`, else as float32 or, where that would round, float64."""
    native = array.dtype.newbyteorder("=")
    if native in TENSOR_DTYPES:
        return array.astype(native, copy=False)
    narrow = _narrowed(array)
    return _cast(array, np.float64, name) if narrow is None else narrow


def _narrowed(array: NDArray[Any]) -> NDArray[np.float32] | None:
    """Return numbers as float32; None if that changes one."""
    with np.errstate(over="ignore", invalid="ignore"):
        narrow = array.astype(np.float32)
        if np.can_cast(array.dtype, np.float32):
            return narrow
        # to compare the two themselves would round them alike: NumPy compares integers with floats as float64
        same = np.array_equal(narrow.astype(array.dtype), array, equal_nan=array.dtype.kind == "f")
    if same and array.dtype.kind in "iu":  # what is rounded up beyond the type may come back as its largest value
        same = bool((narrow < np.iinfo(array.dtype).max).all())
    return narrow if same else None


def _cast(array: NDArray[Any], dtype: type[np.floating[Any]], name: str) -> NDArray[Any]:
    """Return numbers as a type of float, which may round them but not make them infinite."""
    with np.errstate(over="ignore"):
        cast = array.astype(dtype)
    too_large = np.isinf(cast) & ~np.isinf(array)
    if too_large.any():
        bits = cast.dtype.itemsize * 8
        got = array[too_large][0]
        raise DataError(f"{name} must be finite in {bits} bits, got {got}.", "Scale them, or pass an array of float64.")
    return cast


def _array(data: Any, name: str) -> NDArray[Any]:
    if isinstance(data, np.ma.MaskedArray) and (count := int(np.sum(data.mask))):
        raise DataError(f"{name} must have no masked values, got {count}.", "Fill them first, with filled(value).")
    try:
        array = np.asarray(data)
    except ValueError:  # NumPy's words for it name no row
        raise DataError(f"{name} must be rows of one length, got rows of different lengths.", "Pad them.") from None
    return array.astype(np.float32) if array.size == 0 else array


def _check_real(dtype: np.dtype[Any], name: str) -> None:
    if dtype.kind not in "biuf":
        raise _not_real(dtype, name)


def _not_real(dtype: Any, name: str) -> DataError:
    return DataError(f"{name} must be real numbers, got dtype {dtype}.", "Convert them first.")


def _csr(matrix: Any) -> csr_matrix:
    """Return a CSR matrix that may share memory with `matrix` but can be given other values."""
    from scipy.sparse import csr_matrix

    if len(matrix.shape) == 1:
        matrix = matrix.reshape((1, matrix.shape[0]))
    csr = matrix.tocsr()
    return csr_matrix((csr.data, csr.indices, csr.indptr), shape=csr.shape)


def _frame_matrix(frame: Any) -> Any:
    """Return the columns of a DataFrame as a matrix, sparse if all of them are."""
    from pandas import SparseDtype

    dtypes = list(frame.dtypes)
    columns = zip(frame.columns, dtypes, strict=True)
    wrong = [f"{name} ({kind})" for name, kind in columns if not _is_number(kind)]
    if wrong:
        raise DataError(f"columns must be numbers, got {', '.join(wrong[:5])}.", "Encode or drop them.")
    if dtypes and all(isinstance(kind, SparseDtype) and kind.fill_value == 0 for kind in dtypes):
        return frame.sparse.to_coo()
    if all(isinstance(kind, np.dtype) for kind in dtypes):
        # named, because pandas makes Python objects of a mixture of bool and numbers
        return frame.to_numpy(dtype=np.result_type(*dtypes) if dtypes else np.float32)
    matrix = frame.to_numpy(dtype=np.float64, na_value=np.nan)
    narrow = None if any(_stored_type(kind) == np.float64 for kind in dtypes) else _narrowed(matrix)
    return matrix if narrow is None else narrow


def _is_number(kind: Any) -> bool:
    """Tell whether a column's type is one of real numbers."""
    from pandas.api.types import is_complex_dtype, is_numeric_dtype

    return is_numeric_dtype(kind) and not is_complex_dtype(kind)


def _stored_type(kind: Any) -> Any:
    """Return the NumPy type in which pandas keeps the numbers of a column."""
    return getattr(kind, "numpy_dtype", getattr(kind, "subtype", kind))
