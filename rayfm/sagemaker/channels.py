"""What `FactorizationMachines.fit` takes, as the channels of a run."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any, NamedTuple

from rayfm.sagemaker.records import FileSystemRecordSet, RecordSet, TrainingInput

CHANNELS = ("train", "validation", "test")


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


def channels_of(records: Any, labels: Any, weights: Any, validation: Any, test: Any) -> Channels:
    """Sort the arguments of `FactorizationMachines.fit` by channel.

    Raises
    ------
    ValueError
        If there is no channel ``train``, one is unknown, or one is given twice.
    TypeError
        If a list mixes record sets with something else.
    """
    named = _by_name(records)
    for name, data in (("validation", validation), ("test", test)):
        if data is not None:
            _add(named, name, data)
    if named.get("train") is None:
        raise ValueError("Must provide train channel.")
    train = named["train"]
    if labels is None and _is_pair(train):
        train, labels = train
    width = getattr(train, "feature_dim", None) if isinstance(train, RecordSet | FileSystemRecordSet) else None
    return Channels(_data(train), labels, weights, _data(named.get("validation")), _data(named.get("test")), width)


def _by_name(records: Any) -> dict[str, Any]:
    if isinstance(records, Mapping) and not hasattr(records, "shape"):  # some matrices of SciPy are mappings
        named: dict[str, Any] = {}
        for name, data in records.items():
            _add(named, name, data)
        return named
    if isinstance(records, RecordSet | FileSystemRecordSet):
        return {records.channel: records}
    if not isinstance(records, list | tuple):
        return {"train": records}
    sets = [record_set for record_set in records if isinstance(record_set, RecordSet | FileSystemRecordSet)]
    if not sets:
        return {"train": records}
    if len(sets) != len(records):
        raise TypeError("a list of records must be all record sets or all URIs, got both.")
    named = {}
    for record_set in sets:
        _add(named, record_set.channel, record_set)
    return named


def _add(named: dict[str, Any], name: str, data: Any) -> None:
    if name not in CHANNELS:
        raise ValueError(f"a channel must be one of {', '.join(CHANNELS)}, got {name!r}.")
    if name in named:
        raise ValueError(f"the channel {name} must be given once, got it twice.")
    named[name] = data


def _data(given: Any) -> Any:
    """Return what the core takes: the URIs of a record set, anything else as it is."""
    return given.sources if isinstance(given, RecordSet | FileSystemRecordSet | TrainingInput) else given


def _is_pair(data: Any) -> bool:
    """Tell (features, labels) from a pair of files."""
    return isinstance(data, tuple) and len(data) == 2 and not isinstance(data[0], str | PathLike)
