"""SageMaker's model file: ``model.tar.gz``.

::

    model.tar.gz            gzip, tar
      model_algo-1          zip, members stored as they are; a second host's model_algo-2 is equal
        meta.json           hyperparameters      (rayfm/formats/sagemaker_network.py)
        symbol.json         the MXNet graph      (the same)
        params              the parameters       (rayfm/formats/mxnet.py)

SageMaker has two networks, told apart by the names of their parameters:

======= ========================= ===================================== ==============================
part    sparse (written here)     dense                                 kept as
======= ========================= ===================================== ==============================
linear  `arg:w1_weight` (n, 1)    `arg:Linear_Plus_Bias_weight` (1, n)  row_sparse, all rows; or dense
bias    `arg:w0_weight` (1,)      `arg:Linear_Plus_Bias_bias` (1,)      dense
factors `arg:v` (n, k)            `arg:v` (k, n)                        row_sparse, all rows; or dense
======= ========================= ===================================== ==============================

Files are written with gzip's lowest level: float32 parameters hardly compress at any, their row numbers at each. The
same model gives the same bytes.
"""

from __future__ import annotations

import gzip
import tarfile
import tempfile
import zipfile
from dataclasses import replace
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from rayfm.errors import ModelFileError
from rayfm.formats import mxnet
from rayfm.formats.model_parts import ModelParts
from rayfm.formats.mxnet import StoredArray
from rayfm.formats.sagemaker_network import meta_json, read_meta, read_symbol, symbol_json
from rayfm.formats.unpacking import inflated_member, limit_bytes, size_bytes, unpacked_member, zip_directory

GZIP_LEVEL = 1
INNER_NAME = "model_algo-1"
BLOCK_BYTES = 1 << 20
SPARSE_NAMES = ("arg:w1_weight", "arg:w0_weight")
DENSE_NAMES = ("arg:Linear_Plus_Bias_weight", "arg:Linear_Plus_Bias_bias")
FACTORS = "arg:v"
NETWORKS = (SPARSE_NAMES, DENSE_NAMES)
MAX_TEXT_BYTES = 1 << 20
"""Size of ``meta.json`` and of ``symbol.json``."""
MIN_FILLED_BYTES, MAX_FILLED_RATIO = 1 << 28, 64
"""Arrays with rows that are not stored may fill 256 MiB in all, or more when that is no more than so many times the
size of the file as it is packed: what it unpacks to says nothing, for zeros can be packed a thousandfold."""


def write(file: BinaryIO, parts: ModelParts) -> None:
    """Write a model as SageMaker does.

    Parameters
    ----------
    file
        Open binary file; written front to back. A temporary file of the model's size (in TMPDIR) is used.
    parts
        The model, checked.

    Raises
    ------
    ModelFileError
        If what is known of it is too long, or no hyperparameter of SageMaker's could have such a value.
    """
    with tempfile.TemporaryFile(prefix="rayfm-") as unpacked:
        _write_inner(cast(BinaryIO, unpacked), parts)
        info = tarfile.TarInfo(INNER_NAME)
        info.size = unpacked.tell()
        unpacked.seek(0)
        packed = gzip.GzipFile("", "wb", GZIP_LEVEL, file, mtime=0)
        with packed, tarfile.TarFile("", "w", packed, format=tarfile.GNU_FORMAT, copybufsize=BLOCK_BYTES) as archive:
            archive.addfile(info, unpacked)


def _write_inner(file: BinaryIO, parts: ModelParts) -> None:
    """Write ``model_algo-1``."""
    rows = np.arange(parts.feature_dim, dtype="<i8")
    linear = np.asarray(parts.linear, "<f4").reshape(-1, 1)
    arrays = {
        SPARSE_NAMES[0]: StoredArray(linear.shape, linear, (rows,)),
        SPARSE_NAMES[1]: StoredArray.dense(np.array([parts.bias], "<f4")),
        FACTORS: StoredArray(parts.factors.shape, np.asarray(parts.factors, "<f4"), (rows,)),
    }
    meta, symbol = meta_json(parts), symbol_json(parts)
    if len(meta) > MAX_TEXT_BYTES:
        raise ModelFileError(f"facts of the model must fit into {MAX_TEXT_BYTES} bytes of JSON, got {len(meta)}.")
    # headers are 30 bytes and the name: with these blanks the arrays lie aligned in the file and need no copy
    meta += b" " * (-(len(meta) + len(symbol) + 3 * 30 + len("meta.jsonsymbol.jsonparams")) % 4)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(_member("meta.json"), meta)
        archive.writestr(_member("symbol.json"), symbol)
        size = sum(array.values.nbytes + rows.nbytes for array in arrays.values())
        with archive.open(_member("params", size), "w") as member:
            mxnet.write(cast(BinaryIO, member), list(arrays.values()), list(arrays))


def _member(name: str, size: int = 0) -> zipfile.ZipInfo:
    """Describe a member of the zip file, the same on every machine; beyond 2 GiB `zipfile` must know the size."""
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr, info.file_size = 3, 0o100644 << 16, size
    return info


def read(file: BinaryIO, name: str = "model.tar.gz") -> ModelParts:
    """Read a model that SageMaker or rayfm wrote.

    Parameters
    ----------
    file
        Seekable binary file.
    name
        What error messages call it.

    Returns
    -------
    parts
        The arrays are read-only views of an unlinked temporary file (in TMPDIR) where they lie as rayfm needs them, as
        in files of its own, and copies elsewhere.

    Raises
    ------
    ModelFileError
        If it is no such file, is damaged or hostile, or a parameter is not finite in 32 bits.
    """
    try:
        return _read(file)
    except ModelFileError as error:
        raise ModelFileError(f"{name}: {error}") from None


def _read(file: BinaryIO) -> ModelParts:
    packed_bytes = size_bytes(file)
    limit = limit_bytes(packed_bytes)
    content = unpacked_member(file, r"model_algo-\d{1,4}", limit)
    directory = zip_directory(content)
    symbol, meta = (
        bytes(inflated_member(content, directory, member, MAX_TEXT_BYTES)) for member in ("symbol.json", "meta.json")
    )
    predictor_type, (given, (hyperparameters, metrics, facts)) = read_symbol(symbol), read_meta(meta)
    arrays, names = mxnet.read(inflated_member(content, directory, "params", limit))
    max_filled = max(MIN_FILLED_BYTES, MAX_FILLED_RATIO * packed_bytes)
    bias, linear, factors = _parameters(dict(zip(names, arrays, strict=False)), given, max_filled)
    parts = ModelParts(bias, linear, factors, predictor_type, hyperparameters, metrics, facts)
    parts.check()
    parts.check_finite()
    shape = {"feature_dim": parts.feature_dim, "num_factors": parts.num_factors, "predictor_type": predictor_type}
    for key, value in shape.items():
        if str(given.get(key, value)) != str(value):
            text = f"{key} in meta.json must be {value} as in the other files, got {str(given[key])[:40]!r}"
            raise ModelFileError(f"{text}. The file was put together from several.")
    return parts


def _parameters(
    arrays: dict[str, StoredArray], given: dict[str, Any], max_filled: int
) -> tuple[float, NDArray[np.float32], NDArray[np.float32]]:
    """Return bias, linear and factors of either network; its names tell which one it is."""
    networks = [names for names in NETWORKS if any(name in arrays for name in names)]
    if len(networks) != 1 or FACTORS not in arrays:
        expected = " or ".join(f"({', '.join(names)})" for names in NETWORKS)
        listed = ", ".join(repr(name[:40]) for name in list(arrays)[:6]) or "no names"
        raise ModelFileError(f"params must hold {FACTORS} and {expected}, got {listed}. It is another model's.")
    linear_name, bias_name = networks[0]
    names = (FACTORS, linear_name, bias_name)
    found = _filled({name: arrays[name] for name in names if name in arrays}, max_filled)
    factors = found[FACTORS]
    if factors.ndim != 2:
        raise ModelFileError(f"shape of {FACTORS} must have 2 dimensions, got {list(factors.shape)}.")
    if networks[0] == DENSE_NAMES:
        factors = factors.T
    shapes = {linear_name: (len(factors), 1) if networks[0] == SPARSE_NAMES else (1, len(factors)), bias_name: (1,)}
    for (name, shape), switch in zip(shapes.items(), ("use_linear", "use_bias"), strict=True):
        if name not in found:
            if given.get(switch) not in ("false", "False", False):
                raise ModelFileError(f"params must hold {name}, because meta.json does not have {switch}=false.")
            found[name] = np.zeros(shape, np.float32)
        if found[name].shape != shape:
            raise ModelFileError(f"shape of {name} must be {list(shape)}, got {list(found[name].shape)}.")
    return float(found[bias_name][0]), _usable(found[linear_name].reshape(-1)), _usable(factors)


def _filled(arrays: dict[str, StoredArray], max_bytes: int) -> dict[str, NDArray[np.float32]]:
    """Return arrays as float32, those with missing rows filled to at most `max_bytes` in all."""
    filled: dict[str, NDArray[np.float32]] = {}
    for name, array in arrays.items():
        if array.values.dtype.kind != "f":
            raise ModelFileError(f"type of {name} must be float32, float64 or float16, got {array.values.dtype}.")
        if 0 in array.shape:
            raise ModelFileError(f"shape of {name} must have sizes >= 1, got {list(array.shape)}.")
        with np.errstate(over="ignore"):  # what becomes infinite is refused with the number of its feature
            stored = replace(array, values=array.values.astype(np.float32, copy=False))
        try:
            filled[name] = stored.to_dense(max_bytes)
        except ModelFileError as error:
            raise ModelFileError(f"{name}: {error}") from None
        if not stored.has_all_rows:
            max_bytes -= filled[name].nbytes
    return filled


def _usable(array: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return an array row by row and aligned in memory; as it is when it is so."""
    return np.require(array, np.float32, ["C", "A"])
