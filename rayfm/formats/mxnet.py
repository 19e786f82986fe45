"""MXNet's lists of arrays: the files of ``mx.nd.save`` and of checkpoints (``model-0000.params``).

All numbers are little-endian. A list is::

    u64 0x112, u64 0, u64 count     then `count` arrays
    u64 count of names              0, or as many as arrays; then for each u64 length and UTF-8 bytes

and an array, where a *shape* is u32 number of dimensions and an i64 for each::

    u32   0xF993FAC9 (version 2); ..C8 is version 1, without the fields marked *; ..CA is version 3, without the
          fields marked **; any other number is the number of dimensions of the oldest layout: u32 sizes follow it,
          then all that follows the shape in version 1
    i32   * storage: 0 dense, 1 row_sparse, 2 csr
    shape * ** of the values, unless dense
    shape of the array; an array without dimensions was never filled and ends here (in version 3 it is a scalar)
    2 i32 device and its number
    i32   type: 0 float32, 1 float64, 2 float16, 3 uint8, 4 int32, 5 int8, 6 int64, 7 bool
    i32 and shape  * ** type and shape of the row numbers (row_sparse), or of indptr and of the column numbers (csr)
    bytes of the values, row-major, then those of the index arrays

A row_sparse array keeps some rows, in ascending order of their numbers; the others are zero.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, NoReturn

import numpy as np
from numpy.typing import NDArray

from rayfm.errors import ModelFileError

Array = NDArray[Any]
Shape = tuple[int, ...]

LIST_MAGIC = 0x112
VERSION_MAGICS = {0xF993FAC8: 1, 0xF993FAC9: 2, 0xF993FACA: 3}
STORAGES = ("dense", "row_sparse", "csr")
DTYPES = tuple(np.dtype(code) for code in ("<f4", "<f8", "<f2", "u1", "<i4", "i1", "<i8", "?"))
"""The type flags are the places in this tuple."""
MAX_ARRAYS, MAX_DIMENSIONS = 1 << 16, 32
CPU = struct.pack("<ii", 1, 0)
DAMAGED = "The file is damaged: copy it again."


@dataclass(frozen=True, slots=True, eq=False)
class StoredArray:
    """An array as a file keeps it.

    Attributes
    ----------
    shape
        What it stands for.
    values
        What is kept of it: of `shape` itself when dense, of shape (rows kept, ...) when row_sparse, (nonzeros,) when
        csr.
    index
        () when dense, (row numbers,) when row_sparse, (indptr, column numbers) when csr.
    """

    shape: Shape
    values: Array
    index: tuple[Array, ...] = ()

    @classmethod
    def dense(cls, values: Array) -> StoredArray:
        """Keep all of an array."""
        return cls(values.shape, values)

    @property
    def storage(self) -> str:
        """``dense``, ``row_sparse`` or ``csr``."""
        return STORAGES[len(self.index)]

    @property
    def is_filled(self) -> bool:
        """Whether it was ever filled; MXNet also saves arrays that were not."""
        return bool(self.index) or self.values.shape == self.shape

    @property
    def has_all_rows(self) -> bool:
        """Whether `values` is the whole array, in order."""
        return not self.index or (self.storage == "row_sparse" and self.values.shape == self.shape)

    def to_dense(self, max_bytes: int | None = None) -> Array:
        """Return the whole array; a view of `values` when that is all of it.

        Raises
        ------
        ModelFileError
            If it was never filled, or would take more than `max_bytes` of memory while the file keeps less.
        """
        if not self.is_filled:
            raise ModelFileError("the array must have values, got one that was never filled.")
        if self.has_all_rows:
            return self.values
        size_bytes = math.prod(self.shape) * self.values.itemsize
        if max_bytes is not None and size_bytes > max_bytes:
            raise ModelFileError(f"the {self.storage} array must fill to <= {max_bytes} bytes, got {size_bytes}.")
        filled = np.zeros(self.shape, self.values.dtype)
        if self.storage == "row_sparse":
            filled[self.index[0]] = self.values
        else:
            indptr, columns = self.index
            filled[np.repeat(np.arange(len(indptr) - 1), np.diff(indptr)), columns] = self.values
        return filled


def write(file: BinaryIO, arrays: Sequence[StoredArray], names: Sequence[str] = (), version: int = 2) -> None:
    """Write a list of arrays, byte by byte as MXNet does.

    Parameters
    ----------
    file
        Open binary file; written front to back.
    arrays
        Of a type in `DTYPES`.
    names
        One for each array, or none at all.
    version
        1 and 3 are for dense arrays only.

    Raises
    ------
    ModelFileError
        If such a list cannot be written.
    """
    if names and len(names) != len(arrays):
        raise ModelFileError(f"names must be as many as arrays ({len(arrays)}) or none, got {len(names)}.")
    file.write(struct.pack("<QQQ", LIST_MAGIC, 0, len(arrays)))
    for array in arrays:
        _write_array(file, array, version)
    file.write(struct.pack("<Q", len(names)))
    for name in names:
        text = name.encode()
        file.write(struct.pack("<Q", len(text)) + text)


def read(content: bytes | memoryview, name: str = "params") -> tuple[list[StoredArray], list[str]]:
    """Read a list of arrays.

    Parameters
    ----------
    content
        The whole file. The arrays are views of it; nothing is copied.
    name
        What error messages call the file.

    Returns
    -------
    arrays
        Read-only, and not aligned in memory unless `content` happens to be.
    names
        As many, or none.

    Raises
    ------
    ModelFileError
        If it is no such list or damaged. Sizes are compared with what is there before anything is made of them.
    """
    cursor = _Cursor(memoryview(content).cast("B"), name)
    magic, reserved, count = cursor.numbers("<QQQ")
    if magic != LIST_MAGIC or reserved:
        cursor.fail(0, f"it must begin with {LIST_MAGIC:#x}, got {magic:#x}", "It is not a list of MXNet arrays.")
    if count > MAX_ARRAYS:
        cursor.fail(16, f"the number of arrays must be <= {MAX_ARRAYS}, got {count}")
    arrays = [_read_array(cursor) for _ in range(count)]
    names = _read_names(cursor, count)
    if cursor.left:
        cursor.fail(cursor.offset, f"the list ends here but the file has {cursor.left} more bytes")
    return arrays, names


def _write_array(file: BinaryIO, array: StoredArray, version: int) -> None:
    """Write one array of a list."""
    if version != 2 and (version not in (1, 3) or array.index):
        raise ModelFileError(f"version of {array.storage} arrays must be 2, got {version}.")
    magic = next(magic for magic, number in VERSION_MAGICS.items() if number == version)
    header = struct.pack("<I", magic)
    if version > 1:
        header += struct.pack("<i", len(array.index))
    if array.index:
        header += _shape_bytes(array.values.shape)
    header += _shape_bytes(array.shape)
    if not array.is_filled or not (array.shape or version == 3):
        file.write(header)
        return
    header += CPU + struct.pack("<i", _flag(array.values))
    for index in array.index:
        header += struct.pack("<i", _flag(index)) + _shape_bytes(index.shape)
    file.write(header)
    for part in (array.values, *array.index):
        if part.size:
            file.write(np.ascontiguousarray(part).data.cast("B"))


def _shape_bytes(shape: Shape) -> bytes:
    return struct.pack(f"<I{len(shape)}q", len(shape), *shape)


def _flag(array: Array) -> int:
    """Return the type flag of an array."""
    if array.dtype not in DTYPES:
        known = ", ".join(dtype.name for dtype in DTYPES)
        raise ModelFileError(f"type of an array must be one of {known}, little-endian, got {array.dtype}.")
    return DTYPES.index(array.dtype)


class _Cursor:
    """A place in the file, which moves forward with each read."""

    def __init__(self, content: memoryview, name: str) -> None:
        self._content, self._name, self.offset = content, name, 0

    @property
    def left(self) -> int:
        """Number of bytes not yet read."""
        return len(self._content) - self.offset

    def fail(self, offset: int, problem: str, remedy: str = DAMAGED) -> NoReturn:
        raise ModelFileError(f"{self._name}: byte {offset}: {problem}. {remedy}")

    def take(self, size: int, what: str) -> memoryview:
        """Return the next `size` bytes."""
        if size > self.left:
            self.fail(self.offset, f"{what} must have {size} bytes, only {self.left} are left", "The file is cut off.")
        self.offset += size
        return self._content[self.offset - size : self.offset]

    def numbers(self, layout: str) -> tuple[int, ...]:
        return struct.unpack(layout, self.take(struct.calcsize(layout), "the header"))

    def shape(self, ndim: int, item: str = "q") -> Shape:
        """Read the sizes of `ndim` dimensions."""
        start = self.offset
        if ndim > MAX_DIMENSIONS:
            self.fail(start - 4, f"an array must have <= {MAX_DIMENSIONS} dimensions, got {ndim}")
        shape = self.numbers(f"<{ndim}{item}")
        if any(size < 0 for size in shape):
            self.fail(start, f"sizes of an array must be >= 0, got {list(shape)}")
        return shape

    def dtype(self) -> np.dtype[Any]:
        """Read a type flag."""
        (flag,) = self.numbers("<i")
        if not 0 <= flag < len(DTYPES):
            self.fail(self.offset - 4, f"type of an array must be 0 to {len(DTYPES) - 1}, got {flag}")
        return DTYPES[flag]

    def array(self, dtype: np.dtype[Any], shape: Shape) -> Array:
        """Return the next bytes as a read-only array."""
        start = self.offset
        data = self.take(math.prod(shape) * dtype.itemsize, f"an array of shape {list(shape)}")
        try:
            array: Array = np.frombuffer(data, np.uint8).view(dtype).reshape(shape)
        except ValueError:  # no bytes, but sizes that no array can have
            self.fail(start, f"sizes of an array must fit into memory, got {list(shape)}")
        if dtype == np.bool_ and array.size and array.view(np.uint8).max() > 1:
            self.fail(start, "a bool must be 0 or 1")
        array.flags.writeable = False
        return array


def _read_array(cursor: _Cursor) -> StoredArray:
    """Read one array of a list."""
    (word,) = cursor.numbers("<I")
    version = VERSION_MAGICS.get(word, 0)
    storage = _read_storage(cursor, version) if version > 1 else 0
    kept = _read_shape(cursor, version) if storage else ()
    shape = cursor.shape(word, "I") if version == 0 else _read_shape(cursor, version)
    if shape is None or kept is None or not (shape or version == 3):
        return StoredArray((), np.empty(0, np.float32))
    cursor.numbers("<ii")  # a GPU's arrays are saved like others
    dtype = cursor.dtype()
    layouts = [(cursor.dtype(), _read_shape(cursor, version) or ()) for _ in range(storage)]
    start = cursor.offset
    values = cursor.array(dtype, kept if storage else shape)
    stored = StoredArray(shape, values, tuple(cursor.array(*layout) for layout in layouts))
    if problem := _disagreement(stored):
        cursor.fail(start, f"a {stored.storage} array of shape {list(shape)} must have {problem}")
    return stored


def _read_storage(cursor: _Cursor, version: int) -> int:
    """Read the number of index arrays, which is also the storage type."""
    (storage,) = cursor.numbers("<i")
    allowed = 2 if version == 2 else 0
    if not 0 <= storage <= allowed:
        cursor.fail(cursor.offset - 4, f"storage of an array must be 0 to {allowed}, got {storage}")
    return storage


def _read_shape(cursor: _Cursor, version: int) -> Shape | None:
    """Read a shape; None when version 3 says that it was never known."""
    (ndim,) = cursor.numbers("<I")
    return None if version == 3 and ndim == 0xFFFFFFFF else cursor.shape(ndim)


def _disagreement(array: StoredArray) -> str:
    """Say what is wrong with the index of a sparse array; empty when nothing is."""
    if not array.index:
        return ""
    *pointers, numbers = array.index
    if any(index.ndim != 1 or index.dtype.kind != "i" for index in array.index):
        return "index arrays of one dimension and of integers"
    if array.storage == "row_sparse":
        if array.values.shape != (len(numbers), *array.shape[1:]):
            return f"values of shape {[len(numbers), *array.shape[1:]]}, got {list(array.values.shape)}"
        limit, ascends = array.shape[0], _ascends(numbers, strictly=True)
    else:
        if len(array.shape) != 2 or array.values.shape != numbers.shape:
            return f"2 dimensions and a column number for each of the {array.values.size} values, got {numbers.size}"
        (indptr,) = pointers
        if len(indptr) != array.shape[0] + 1 or indptr[0] or indptr[-1] != len(numbers) or not _ascends(indptr):
            return f"an indptr of {array.shape[0] + 1} numbers that ascends from 0 to {len(numbers)}"
        limit, ascends = array.shape[1], True
    if numbers.size and (not ascends or numbers.min() < 0 or numbers.max() >= limit):
        return f"row or column numbers from 0 to {limit - 1}, those of rows ascending"
    return ""


def _ascends(numbers: Array, strictly: bool = False) -> bool:
    later, earlier = numbers[1:], numbers[:-1]
    return bool((later > earlier if strictly else later >= earlier).all())


def _read_names(cursor: _Cursor, num_arrays: int) -> list[str]:
    """Read the names of `num_arrays` arrays."""
    (count,) = cursor.numbers("<Q")
    if count not in (0, num_arrays):
        cursor.fail(cursor.offset - 8, f"there must be 0 or {num_arrays} names, got {count}")
    names: list[str] = []
    for _ in range(count):
        (length,) = cursor.numbers("<Q")
        start = cursor.offset
        try:
            names.append(str(cursor.take(length, "a name"), "utf-8"))
        except UnicodeDecodeError:
            cursor.fail(start, "a name must be UTF-8")
    if len(set(names)) < len(names):
        cursor.fail(cursor.offset, "a name must not occur twice")
    return names
