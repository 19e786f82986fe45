"""Rows in the forms that users have them in, made ready to be written as tensors of Records."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rayfm.errors import DataError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

TENSOR_DTYPES = (np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.int64))
"""What the SDK's writers take; int64 becomes a tensor of 32 bits."""


def is_sparse(data: Any) -> bool:
    """Tell whether `data` is a SciPy sparse matrix or array."""
    return hasattr(data, "tocsr")


def is_frame(data: Any) -> bool:
    """Tell whether `data` is a pandas DataFrame, without importing pandas."""
    return hasattr(data, "iloc") and hasattr(data, "columns")


def as_features(data: Any) -> NDArray[Any] | csr_matrix:
    """Return features as a NumPy array of any rank or a CSR matrix, of one of `TENSOR_DTYPES`.

    Parameters
    ----------
    data
        A NumPy array, a SciPy sparse matrix or array (one dimension is one row), a pandas DataFrame of numeric columns
        (a CSR matrix comes of one whose columns are all sparse and filled with zero), or lists of numbers, which
        become float32. Any other type of number becomes float32 where that keeps every value, else float64.

    Raises
    ------
    DataError
        If there is something else than real numbers in it, or rows are of different lengths.
    """
    if is_frame(data):
        data = _frame_matrix(data)
    if is_sparse(data):
        csr = _csr(data)
        csr.data = as_tensor_dtype(csr.data, "features")
        return csr
    if isinstance(data, np.ndarray):
        return as_tensor_dtype(np.asarray(data), "features")
    array = _array(data, "features")
    return as_tensor_dtype(array, "features").astype(np.float32)


def as_labels(labels: Any) -> NDArray[Any]:
    """Return labels (an array, a pandas Series, a list) as a NumPy array of one of `TENSOR_DTYPES`."""
    if hasattr(labels, "iloc") and not isinstance(labels.dtype, np.dtype):  # a nullable type of pandas
        labels = labels.to_numpy(dtype=np.float64, na_value=np.nan)
    return as_tensor_dtype(_array(labels, "labels"), "labels")


def as_tensor_dtype(array: NDArray[Any], name: str) -> NDArray[Any]:
    """Return `array` if its type is one of `TENSOR_DTYPES`, else as float32 or, where that would round, float64."""
    native = array.dtype.newbyteorder("=")
    if native in TENSOR_DTYPES:
        return array.astype(native, copy=False)
    if native.kind not in "biuf":
        raise DataError(f"{name} must be real numbers, got dtype {array.dtype}.", "Convert them first.")
    with np.errstate(over="ignore"):
        narrow, wide = array.astype(np.float32), array.astype(np.float64)
    return narrow if np.array_equal(narrow, wide, equal_nan=True) else wide


def _array(data: Any, name: str) -> NDArray[Any]:
    try:
        array = np.asarray(data)
    except ValueError:  # NumPy's words for it name no row
        raise DataError(f"{name} must be rows of one length, got rows of different lengths.", "Pad them.") from None
    return array.astype(np.float32) if array.size == 0 else array


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
    from pandas.api.types import is_complex_dtype, is_numeric_dtype

    dtypes = list(frame.dtypes)
    columns = zip(frame.columns, dtypes, strict=True)
    wrong = [f"{name} ({kind})" for name, kind in columns if not is_numeric_dtype(kind) or is_complex_dtype(kind)]
    if wrong:
        raise DataError(f"columns must be numbers, got {', '.join(wrong[:5])}.", "Encode or drop them.")
    if dtypes and all(isinstance(kind, SparseDtype) and kind.fill_value == 0 for kind in dtypes):
        return frame.sparse.to_coo()
    if all(isinstance(kind, np.dtype) for kind in dtypes):
        # named, because pandas makes Python objects of a mixture of bool and numbers
        return frame.to_numpy(dtype=np.result_type(*dtypes) if dtypes else np.float32)
    return frame.to_numpy(dtype=np.float64, na_value=np.nan)
