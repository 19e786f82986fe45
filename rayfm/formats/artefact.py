"""The model file: a safetensors file, so that every language with a reader of that format can open it.

Byte by byte, all numbers little-endian:

    0          u64       length N of the header, at most 1 MiB
    8          N bytes   header: one JSON object in UTF-8, padded with spaces so that 8 + N is a multiple of 64
    8 + N      float32   the data section: the tensors one after another, row-major, without gaps, to the end

The header maps each tensor to ``{"dtype": "F32", "shape": [...], "data_offsets": [begin, end]}``, offsets in bytes
from the start of the data section:

| tensor | shape | content |
|---|---|---|
| `factors` | (feature_dim, num_factors) | V, one row per feature |
| `linear` | (feature_dim,) | w |
| `bias` | (1,) | w0 |

and ``__metadata__`` to an object of strings. `write` sets the first five of these, its caller the others. What is
not a word by itself (a number, an object) is JSON within the string.

| metadata | content |
|---|---|
| `format` | ``rayfm.factorization_machine`` |
| `format_version` | ``1`` |
| `feature_dim` | number of features, as in the shapes |
| `num_factors` | number of factors, as in the shapes |
| `sha256` | SHA-256 of the data section, 64 hexadecimal digits |
| `predictor_type` | ``regressor`` or ``binary_classifier``; needed to turn raw scores into answers |
| `hyperparameters` | JSON object |
| `metrics` | JSON object |
| `seed` | JSON integer |
| `versions` | JSON object, library to version |
| `created` | UTC time, ISO 8601, a JSON string |

Readers must ignore metadata that they do not know. Nothing in a model file is trusted: whatever does not fit the
layout above is a `ModelFileError`, before any memory is set aside for it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from rayfm.errors import ModelFileError

FORMAT = "rayfm.factorization_machine"
FORMAT_VERSION = "1"
OWN_METADATA = ("format", "format_version", "feature_dim", "num_factors", "sha256")
"""What `write` itself puts into the metadata."""
MAX_HEADER_BYTES = 1 << 20
ALIGNMENT = 64
PREDICTOR_TYPES = ("regressor", "binary_classifier")
TENSOR_DIMENSIONS = {"factors": 2, "linear": 1, "bias": 1}

FloatArray = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where a tensor lies: its shape, and its bytes ``begin:end`` counted from the start of the data section."""

    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """A checked header.

    Attributes
    ----------
    metadata
        The strings of ``__metadata__``.
    tensors
        Where each of `factors`, `linear` and `bias` lies.
    data_start
        Offset of the data section in the file, bytes.
    """

    metadata: dict[str, str]
    tensors: dict[str, TensorEntry]
    data_start: int

    @property
    def feature_dim(self) -> int:
        """Number of features."""
        return self.tensors["factors"].shape[0]

    @property
    def num_factors(self) -> int:
        """Number of factors."""
        return self.tensors["factors"].shape[1]


def write(file: BinaryIO, tensors: Mapping[str, FloatArray], metadata: Mapping[str, str]) -> None:
    """Write a model file.

    Parameters
    ----------
    file
        Open binary file; written from its present position, front to back.
    tensors
        `factors`, `linear` and `bias`, of the shapes in the module's table; rounded to float32.
    metadata
        The strings that this function does not set itself; must hold `predictor_type`.

    Raises
    ------
    ModelFileError
        If the tensors or the metadata do not make a model.
    """
    arrays = {name: np.ascontiguousarray(tensors[name], dtype="<f4") for name in TENSOR_DIMENSIONS if name in tensors}
    views = [array.data.cast("B") for array in arrays.values() if array.size]
    digest = hashlib.sha256()
    for view in views:
        digest.update(view)
    header = _encoded_header(arrays, {**metadata, "sha256": digest.hexdigest()})
    file.write(len(header).to_bytes(8, "little") + header)
    for view in views:
        file.write(view)


def read_header(file: BinaryIO, name: str = "model file") -> Header:
    """Read and check the header of a model file without reading its tensors.

    Parameters
    ----------
    file
        Seekable binary file.
    name
        What error messages call it.

    Raises
    ------
    ModelFileError
        If it is not a model file.
    """
    size = file.seek(0, os.SEEK_END)

    def read_at(start: int, stop: int) -> bytes:
        file.seek(start)
        return file.read(stop - start)

    return _checked_header(read_at, size, name)


def read(
    source: str | os.PathLike[str] | bytes | bytearray | memoryview,
    mmap: bool = True,
    *,
    verify: bool = False,
    name: str | None = None,
) -> tuple[dict[str, FloatArray], dict[str, str]]:
    """Read a model file.

    Parameters
    ----------
    source
        Path of a local file, or the bytes of one.
    mmap
        Map a local file into memory, so that processes share it and pages are read when used; False reads all
        of it now. The arrays are read-only either way.
    verify
        Compare the data section with its SHA-256, which reads all of it.
    name
        What error messages call it; by default the path.

    Returns
    -------
    tensors
        `factors`, `linear`, `bias`: read-only float32 views of the file, or of the bytes given.
    metadata
        Strings by name.

    Raises
    ------
    ModelFileError
        If it is not a model file, is damaged, or was made by a newer rayfm.
    OSError
        If the file cannot be opened.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        name, content = name or "model file", np.frombuffer(source, np.uint8)
    else:
        name = name or os.fspath(source)
        # an empty file cannot be mapped
        mapped = mmap and os.path.getsize(source) > 0
        content = np.memmap(source, np.uint8, mode="r").view(np.ndarray) if mapped else np.fromfile(source, np.uint8)
    header = _checked_header(lambda start, stop: content[start:stop].tobytes(), len(content), name)
    data = content[header.data_start :]
    if verify:
        _verify(data, header.metadata, name)
    return {tensor: _tensor(data, entry) for tensor, entry in header.tensors.items()}, header.metadata


def _encoded_header(arrays: Mapping[str, FloatArray], metadata: Mapping[str, str]) -> bytes:
    """Return the padded header, having checked it as a reader would."""
    entries: dict[str, Any] = {}
    offset = 0
    for name, array in arrays.items():
        entries[name] = {
            "dtype": "F32",
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    shape = arrays["factors"].shape if "factors" in arrays and arrays["factors"].ndim == 2 else (0, 0)
    dims = {"feature_dim": str(shape[0]), "num_factors": str(shape[1])}
    own = {"format": FORMAT, "format_version": FORMAT_VERSION, **dims}
    text = json.dumps({"__metadata__": {**metadata, **own}, **entries}, separators=(",", ":"), allow_nan=False).encode()
    header = text + b" " * (-(8 + len(text)) % ALIGNMENT)
    whole = len(header).to_bytes(8, "little") + header
    _checked_header(lambda start, stop: whole[start:stop], len(whole) + offset, "the model")
    return header


def _tensor(data: NDArray[np.uint8], entry: TensorEntry) -> FloatArray:
    """Return a read-only view of one tensor."""
    tensor: FloatArray = data[entry.begin : entry.end].view("<f4").reshape(entry.shape)
    if not tensor.flags.aligned:  # another writer need not pad its header
        tensor = tensor.copy()
    tensor.flags.writeable = False
    return tensor


def _verify(data: NDArray[np.uint8], metadata: Mapping[str, str], name: str) -> None:
    """Compare the data section with its checksum."""
    if "sha256" not in metadata:
        raise ModelFileError(f"{name}: metadata must have sha256 to be verified. Read it with verify=False.")
    if hashlib.sha256(data.data).hexdigest() != metadata["sha256"]:
        raise ModelFileError(f"{name}: the data does not fit its sha256. The file is damaged: copy it again.")


def _checked_header(read_at: Callable[[int, int], bytes], size: int, name: str) -> Header:
    """Parse and check a header; `read_at(start, stop)` gives bytes of a file of `size` bytes."""
    try:
        text, data_start = _header_text(read_at, size)
        entries = _json_object(text)
        metadata = entries.pop("__metadata__", None)
        _check_metadata(metadata)
        tensors = _tensor_entries(entries)
        _check_layout(tensors, size - data_start)
        _check_shapes(tensors, metadata)
    except ModelFileError as error:
        raise ModelFileError(f"{name}: {error}") from None
    return Header(metadata, tensors, data_start)


def _header_text(read_at: Callable[[int, int], bytes], size: int) -> tuple[bytes, int]:
    """Return the header's bytes and where they end."""
    if size < 8:
        raise ModelFileError(f"a model file must have at least 8 bytes, got {size}. It is truncated or another file.")
    length = int.from_bytes(read_at(0, 8), "little")
    if length > MAX_HEADER_BYTES:
        raise ModelFileError(f"the header must be <= {MAX_HEADER_BYTES} bytes, got {length}. It is not a model file.")
    if 8 + length > size:
        raise ModelFileError(f"the header ends at byte {8 + length} but the file at {size}. The file is truncated.")
    text = read_at(8, 8 + length)
    if not text.startswith(b"{"):
        raise ModelFileError(f"the header must begin with '{{', got {text[:8]!r}. It is not a model file.")
    return text, 8 + length


def _json_object(text: bytes) -> dict[str, Any]:
    """Parse JSON that begins with a brace; refuse duplicate names and NaN."""
    try:
        parsed = json.loads(text.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        reason = "is nested too deep" if isinstance(error, RecursionError) else f"is not valid JSON ({error})"
        raise ModelFileError(f"the header {reason}. The file is damaged.") from None
    if not isinstance(parsed, dict):  # the caller saw the brace; kept for the type checker and for safety
        raise ModelFileError("the header must be a JSON object.")
    return parsed


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dict of JSON pairs; refuse a name that occurs twice."""
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("a name occurs twice in an object")
    return result


def _no_constant(constant: str) -> Any:
    """Refuse NaN and Infinity, which are not JSON."""
    raise ValueError(f"{constant} is not a JSON value")


def _check_metadata(metadata: Any) -> None:
    """Check the strings that a reader depends on."""
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ModelFileError("__metadata__ must be an object of strings. It is not a rayfm model.")
    if metadata.get("format") != FORMAT:
        raise ModelFileError(f"format must be {FORMAT!r}, got {metadata.get('format')!r}. It is not a rayfm model.")
    if metadata.get("format_version") != FORMAT_VERSION:
        version = metadata.get("format_version")
        raise ModelFileError(
            f"format_version must be {FORMAT_VERSION!r}, got {version!r}. Use the rayfm that wrote it."
        )
    if metadata.get("predictor_type") not in PREDICTOR_TYPES:
        legal = " or ".join(PREDICTOR_TYPES)
        raise ModelFileError(f"predictor_type must be {legal}, got {metadata.get('predictor_type')!r}.")


def _tensor_entries(entries: dict[str, Any]) -> dict[str, TensorEntry]:
    """Check each tensor's entry by itself."""
    if entries.keys() != TENSOR_DIMENSIONS.keys():
        raise ModelFileError(f"tensors must be {', '.join(TENSOR_DIMENSIONS)}, got {', '.join(sorted(entries))[:200]}.")
    return {name: _tensor_entry(name, entries[name]) for name in TENSOR_DIMENSIONS}


def _tensor_entry(name: str, entry: Any) -> TensorEntry:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ModelFileError(f"{name} must have dtype, shape and data_offsets.")
    if entry["dtype"] != "F32":
        raise ModelFileError(f"dtype of {name} must be F32, got {str(entry['dtype'])[:40]!r}.")
    shape, offsets = _naturals(entry["shape"]), _naturals(entry["data_offsets"])
    if shape is None or len(shape) != TENSOR_DIMENSIONS[name] or 0 in shape:
        expected = f"{TENSOR_DIMENSIONS[name]} dimensions >= 1"
        raise ModelFileError(f"shape of {name} must have {expected}, got {str(entry['shape'])[:80]}.")
    if offsets is None or len(offsets) != 2 or offsets[1] - offsets[0] != 4 * math.prod(shape):
        got = str(entry["data_offsets"])[:80]
        raise ModelFileError(f"data_offsets of {name} must span {4 * math.prod(shape)} bytes, got {got}.")
    return TensorEntry(shape, offsets[0], offsets[1])


def _naturals(value: Any) -> tuple[int, ...] | None:
    """Return a JSON list of integers from 0 to 2**63 as a tuple, anything else as None."""
    if not isinstance(value, list) or not all(type(item) is int and 0 <= item < 1 << 63 for item in value):
        return None
    return tuple(value)


def _check_layout(tensors: dict[str, TensorEntry], data_bytes: int) -> None:
    """Check that the tensors fill the data section without gap or overlap."""
    end = 0
    for name, entry in sorted(tensors.items(), key=lambda item: item[1].begin):
        if entry.begin != end:
            raise ModelFileError(f"{name} must begin at byte {end} of the data, got {entry.begin}. It is damaged.")
        end = entry.end
    if end != data_bytes:
        cut = "The file is truncated." if end > data_bytes else "Something was appended to it."
        raise ModelFileError(f"the data must have {end} bytes, got {data_bytes}. {cut}")


def _check_shapes(tensors: dict[str, TensorEntry], metadata: dict[str, str]) -> None:
    """Check the shapes against each other and against the metadata."""
    feature_dim, num_factors = tensors["factors"].shape
    for name, expected in (("linear", (feature_dim,)), ("bias", (1,))):
        if tensors[name].shape != expected:
            raise ModelFileError(f"shape of {name} must be {list(expected)}, got {list(tensors[name].shape)}.")
    for name, dim in (("feature_dim", feature_dim), ("num_factors", num_factors)):
        if metadata.get(name, str(dim)) != str(dim):
            raise ModelFileError(f"{name} must be {dim} as in the shapes, got {metadata[name][:40]!r}.")
