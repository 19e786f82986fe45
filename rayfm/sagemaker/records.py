"""Training data in the form in which SageMaker's SDK uploads it: shards of Records and a manifest that lists them.

::

    <location>/FactorizationMachines-<time stamp>/
        matrix_0.pbr        the first rows, RecordIO-protobuf
        matrix_1.pbr        the rows after them
        .amazon.manifest    [{"prefix": "<this folder>/"}, "matrix_0.pbr", "matrix_1.pbr"], written last
"""

from __future__ import annotations

import json
import logging
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from rayfm.errors import DataError, StorageError
from rayfm.formats import recordio
from rayfm.formats.matrices import as_features, as_labels, is_sparse
from rayfm.sagemaker.inputs import DISTRIBUTIONS, MANIFEST, SHARDED, FileSystemInput, TrainingInput, check_choice
from rayfm.storage import Uri, absolute, atomic_writer, claim_folder, encrypts_at_rest, join, remove_files
from rayfm.storage.uris import OPTIONS
from rayfm.training.job import time_stamp

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

logger = logging.getLogger(__name__)

CLASS_NAME = "FactorizationMachines"
MANIFEST_FILE = ".amazon.manifest"

_stamp_lock = threading.Lock()
_last_stamp = ""


@dataclass(repr=False)
class RecordSet:
    """Records in a storage, and what a training job must know of them.

    Attributes
    ----------
    s3_data
        URI of the manifest, or of a folder, a file or the beginning of names. Any storage, not only S3.
    num_records
        Number of rows.
    feature_dim
        Number of columns.
    s3_data_type
        ``ManifestFile`` or ``S3Prefix``.
    channel
        The channel that it feeds: ``train``, ``test`` or ``validation``.
    distribution
        Recorded. SageMaker gives each host some of the objects (``ShardedByS3Key``) or all (``FullyReplicated``, which
        makes every host train on every row). Here the rows of a channel are always dealt out over the workers, each row
        to one of them, whatever objects they lie in.
    """

    s3_data: str
    num_records: int
    feature_dim: int
    s3_data_type: str = MANIFEST
    channel: str = "train"
    distribution: str = SHARDED

    def __post_init__(self) -> None:
        self.records_s3_input()  # checks the words

    def __repr__(self) -> str:
        names = ("s3_data", "feature_dim", "num_records", "s3_data_type", "channel", "distribution")
        return str((type(self), {name: getattr(self, name) for name in names}))

    def data_channel(self) -> dict[str, TrainingInput]:
        """Return ``{channel: input}``."""
        return {self.channel: self.records_s3_input()}

    def records_s3_input(self) -> TrainingInput:
        """Return where the records lie."""
        return TrainingInput(self.s3_data, self.distribution, s3_data_type=self.s3_data_type)

    @property
    def sources(self) -> list[str]:
        """The URIs to train on."""
        return self.records_s3_input().sources


class FileSystemRecordSet:
    """Records in a folder of a file system that every machine of the cluster has mounted.

    Parameters
    ----------
    file_system_id, file_system_type, file_system_access_mode
        Recorded, after the checks of the SDK (``EFS`` or ``FSxLustre``; ``ro`` or ``rw``). Nothing is mounted here.
    directory_path
        The folder that is read, as this machine and the workers see it: an absolute path, not one that begins at the
        mount point.
    num_records, feature_dim, channel
        As in `RecordSet`.
    """

    def __init__(
        self,
        file_system_id: str,
        file_system_type: str,
        directory_path: str,
        num_records: int,
        feature_dim: int,
        file_system_access_mode: str = "ro",
        channel: str = "train",
    ) -> None:
        self.file_system_input = FileSystemInput(
            file_system_id, file_system_type, directory_path, file_system_access_mode
        )
        self.feature_dim = feature_dim
        self.num_records = num_records
        self.channel = channel

    def __repr__(self) -> str:
        return str((type(self), self.__dict__))

    def data_channel(self) -> dict[str, FileSystemInput]:
        """Return ``{channel: input}``."""
        return {self.channel: self.file_system_input}

    @property
    def sources(self) -> list[str]:
        """The URIs to train on."""
        return self.file_system_input.sources


def write_record_set(
    train: Any,
    labels: Any = None,
    *,
    location: Uri,
    num_shards: int = 1,
    channel: str = "train",
    encrypt: bool = False,
    distribution: str = SHARDED,
    class_name: str = CLASS_NAME,
) -> RecordSet:
    """Write a matrix as shards of Records and a manifest, byte for byte as SageMaker's SDK uploads it.

    The record set appears complete or not at all: the manifest is written last, and when anything fails, or on Ctrl-C,
    all that was written is deleted. (On S3 an empty object that stands for the folder `location` may remain.)

    Parameters
    ----------
    train
        Shape (rows, feature_dim). A NumPy array or lists of numbers (written dense), a SciPy sparse matrix (written
        sparse, never made dense; the SDK refuses it), or a pandas DataFrame of numeric columns. float32, float64 and
        int64 (as 32 bits) are written as they are; other numbers as float32 if that keeps every value, else float64.
    labels
        Shape (rows,): an array, a pandas Series or a list, of any such type. There must be one for each row. (The SDK's
        check also passes as many labels as there are *columns*, and then drops some or fails half-way.)
    location
        Folder or URI below which the record set gets a folder of its own, named by `class_name` and the time.
    num_shards
        Number of files; the last one takes the rows that do not divide evenly.
    channel, distribution
        As in `RecordSet`.
    encrypt
        Ask for encryption at rest. Amazon S3, Google Cloud Storage and Azure encrypt every object anyway; anywhere else
        this has no effect, and a warning is logged. The header with which the SDK asks S3 for AES-256 cannot be sent,
        so a bucket whose policy demands that header refuses the record set.
    class_name
        First part of the name of the folder.

    Raises
    ------
    DataError
        If shapes, types or the number of shards do not fit; a `ValueError` with the SDK's texts.
    StorageError
        If the location cannot be written.
    """
    check_choice("distribution", distribution, DISTRIBUTIONS)
    features = as_features(train)
    vector = None if labels is None else as_labels(labels)
    _check_shapes(features.shape, vector)
    bounds = _shard_bounds(features.shape[0], num_shards)
    location = absolute(location)
    if encrypt and not encrypts_at_rest(location):
        logger.warning("encrypt=True has no effect at %s: rows lie there as this storage keeps all files.", location)
    names = _shard_names(len(bounds))
    folder = _new_folder(location, class_name)
    try:
        manifest = _write(folder, names, features, vector, bounds)
    except BaseException:
        _clean_up(folder, [*names, MANIFEST_FILE])
        raise
    rows, width = features.shape
    return RecordSet(manifest, rows, width, channel=channel, distribution=distribution)


def _check_shapes(shape: tuple[int, ...], labels: NDArray[Any] | None) -> None:
    if len(shape) != 2:
        raise DataError("Array must be a Matrix")
    if labels is None:
        return
    if labels.ndim != 1:
        raise DataError("Labels must be a Vector")
    if len(labels) != shape[0]:
        raise DataError(f"Label shape {labels.shape} not compatible with array shape {shape}")


def _shard_bounds(rows: int, num_shards: int) -> list[tuple[int, int]]:
    """Cut rows into contiguous shards of equal size, the last of which takes the rest."""
    if num_shards < 1:
        raise DataError("num_shards must be >= 1")
    size = rows // num_shards
    if size == 0:
        raise DataError("Array length is less than num shards")
    starts = [shard * size for shard in range(num_shards)]
    return list(zip(starts, [*starts[1:], rows], strict=True))


def _shard_names(num_shards: int) -> list[str]:
    digits = len(str(num_shards))
    return [f"matrix_{shard:0{digits}}.pbr" for shard in range(num_shards)]


def _new_folder(location: str, class_name: str) -> str:
    """Return a folder that nobody else writes to, named by the time."""
    while True:
        folder = join(location, f"{class_name}-{_unused_stamp()}")
        if claim_folder(folder):
            return folder


def _unused_stamp() -> str:
    """Return a time stamp that no other thread of this process got."""
    global _last_stamp
    with _stamp_lock:
        while (stamp := time_stamp()) == _last_stamp:
            time.sleep(0.0005)
        _last_stamp = stamp
    return stamp


def _write(
    folder: str,
    names: list[str],
    features: NDArray[Any] | csr_matrix,
    labels: NDArray[Any] | None,
    bounds: list[tuple[int, int]],
) -> str:
    """Write the shards, then the manifest; return the manifest's URI."""
    write = recordio.write_spmatrix_to_sparse_tensor if is_sparse(features) else recordio.write_numpy_to_dense_tensor
    for name, (start, stop) in zip(names, bounds, strict=True):
        with atomic_writer(join(folder, name)) as file:
            try:
                write(file, _rows(features, start, stop), None if labels is None else labels[start:stop])
            except DataError as error:
                row = None if error.record is None else start + error.record
                raise DataError(error.problem, error.remedy, record=row) from None
    # Options of the URI say how to connect, perhaps with secrets: they are no part of a prefix.
    prefix = OPTIONS.sub("", join(folder, ""))
    manifest = join(folder, MANIFEST_FILE)
    with atomic_writer(manifest) as file:
        file.write(json.dumps([{"prefix": prefix}, *names]).encode())
    return manifest


def _rows(features: Any, start: int, stop: int) -> Any:
    """Return rows ``start:stop`` as they are stored, without copying entries."""
    if not is_sparse(features):
        return features[start:stop]
    limits = features.indptr[start : stop + 1]
    entries = slice(limits[0], limits[-1])
    triple = features.data[entries], features.indices[entries], limits - limits[0]
    return type(features)(triple, shape=(stop - start, features.shape[1]))


def _clean_up(folder: str, names: list[str]) -> None:
    """Delete a record set that could not be finished, without hiding the error that stopped it."""
    try:
        remove_files(folder, names)
    except StorageError as error:
        logger.warning("An unfinished record set may be left behind: %s", error)
