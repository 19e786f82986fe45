"""What `FactorizationMachines.fit` takes, as the channels of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from types import UnionType
from typing import TYPE_CHECKING, Any, NamedTuple

from rayfm.errors import DataError
from rayfm.sagemaker.inputs import SHARDED, FileSystemInput, TrainingInput
from rayfm.sagemaker.records import FileSystemRecordSet, RecordSet
from rayfm.storage import absolute

if TYPE_CHECKING:
    from rayfm.reading import ReadOptions

CHANNELS = ("train", "validation", "test")

RecordSets = RecordSet | FileSystemRecordSet
Inputs = TrainingInput | FileSystemInput


class Channels(NamedTuple):
    """The arguments of `rayfm.training.driver.submit` that are data.

    Attributes
    ----------
    feature_dim
        What the record set of the training data says; None when it is none.
    """

    train: Any
    labels: Any
    weights: Any
    validation: Any
    test: Any
    feature_dim: int | None


def channels_of(
    records: Any, labels: Any, weights: Any, validation: Any, test: Any, options: ReadOptions | None = None
) -> Channels:
    """Sort the arguments of `FactorizationMachines.fit` by channel.

    Record sets and inputs may also be those of SageMaker's SDK, of version 1 or 2.

    Parameters
    ----------
    options
        How files are read whose format no input names.

    Raises
    ------
    ValueError
        If there is no channel ``train``, one is unknown, or one is given twice.
    TypeError
        If a list mixes record sets or inputs with something else.
    DataError
        If a list is empty, or its members differ in what they must have in common.
    """
    named = _by_name(_ours(records))
    for name, data in (("validation", validation), ("test", test)):
        if data is not None:
            _add(named, name, data)
    if named.get("train") is None:
        raise ValueError("Must provide train channel.")
    train = named["train"]
    if labels is None and _is_pair(train):
        train, labels = train
    data = {name: _data(name, named.get(name), options) for name in CHANNELS[1:]}
    return Channels(_data("train", train, options), labels, weights, **data, feature_dim=_width(train))


def _by_name(records: Any) -> dict[str, Any]:
    named: dict[str, Any] = {}
    if isinstance(records, Mapping) and not hasattr(records, "shape"):  # some matrices of SciPy are mappings
        for name, data in records.items():
            _add(named, name, data)
    elif _kind(records) is RecordSets:
        for record_set in _items(records):
            _add(named, record_set.channel, record_set)
    else:
        _add(named, "train", records)
    return named


def _add(named: dict[str, Any], name: str, data: Any) -> None:
    if name not in CHANNELS:
        raise ValueError(f"a channel must be one of {', '.join(CHANNELS)}, got {name!r}.")
    if name in named:
        raise ValueError(f"the channel {name} must be given once, got it twice.")
    if isinstance(data, list | tuple) and not data:
        raise DataError(f"the channel {name} must have data, got an empty list.", "Check how the list is made.")
    named[name] = _ours(data)


def _ours(given: Any) -> Any:
    """Return rayfm's objects for those of SageMaker's SDK, one or a list of them; anything else as it is."""
    if not isinstance(given, list | tuple):
        return _our_one(given)
    items = [_our_one(item) for item in given]
    kinds = {_kind(item) for item in items}
    if len(kinds) > 1:
        found = ", ".join(sorted({type(item).__name__ for item in items}))
        raise TypeError(f"a list of data must be all record sets, all inputs or all URIs, got {found}.")
    return given if kinds <= {None} else items


def _our_one(given: Any) -> Any:
    """Tell an object of SageMaker's SDK by its attributes: the SDK need not be installed here."""
    if isinstance(given, RecordSets | Inputs) or hasattr(given, "shape"):  # a frame's columns are attributes too
        return given
    if hasattr(given, "feature_dim") and hasattr(given, "s3_data"):
        facts = (given.s3_data, given.num_records, given.feature_dim, given.s3_data_type, given.channel)
        return RecordSet(*facts, getattr(given, "distribution", SHARDED))  # not in version 1
    if hasattr(given, "feature_dim") and hasattr(given, "file_system_input"):
        folder = FileSystemInput.from_config(given.file_system_input.config)
        place = (folder.file_system_id, folder.file_system_type, folder.directory_path)
        access = folder.file_system_access_mode
        return FileSystemRecordSet(*place, given.num_records, given.feature_dim, access, given.channel)
    config: Any = getattr(given, "config", None)
    source = config.get("DataSource", {}) if isinstance(config, Mapping) else {}
    if "S3DataSource" in source:
        return TrainingInput.from_config(config)
    return FileSystemInput.from_config(config) if "FileSystemDataSource" in source else given


def _items(data: Any) -> Sequence[Any]:
    return data if isinstance(data, list | tuple) else [data]


def _kind(data: Any) -> UnionType | None:
    """Tell record sets and inputs, one or a list of them, from anything else."""
    first = next(iter(_items(data)), None)
    return next((kind for kind in (RecordSets, Inputs) if isinstance(first, kind)), None)


def _data(name: str, given: Any, options: ReadOptions | None) -> Any:
    """Return what the core takes: the files of record sets and inputs, anything else as it is."""
    if _kind(given) is None:
        return given
    items = _items(given)
    uris = [uri for item in items for uri in item.sources]
    formats = {item.format if isinstance(item, Inputs) else None for item in items}
    if len(formats) > 1:
        raise DataError(f"the inputs of the channel {name} must have the same content_type.")
    (file_format,) = formats
    if file_format is None:
        return uris
    from rayfm.reading import ReadOptions
    from rayfm.training.sources import FilesSource

    return FilesSource(tuple(absolute(uri) for uri in uris), replace(options or ReadOptions(), format=file_format))


def _width(train: Any) -> int | None:
    """Return the width that the record sets of the training data have."""
    widths = {item.feature_dim for item in _items(train) if isinstance(item, RecordSets)}
    if len(widths) > 1:
        raise DataError(f"the record sets of a channel must have one feature_dim, got {sorted(widths)}.")
    return widths.pop() if widths else None


def _is_pair(data: Any) -> bool:
    """Tell (features, labels) from a pair of files."""
    return isinstance(data, tuple) and len(data) == 2 and not isinstance(data[0], str | PathLike)
