"""How a table holds its rows: which of its columns are the label, the weight, the uid and the features."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import pyarrow as pa

from rayfm.errors import DataError

_MAX_NAMES = 20  # in an error message


@dataclass(frozen=True, slots=True)
class ParquetColumns:
    """Names of the columns to read.

    A column under its default name may be absent; one that was given another name must exist.

    Attributes
    ----------
    label
        Numbers or booleans; a null is a row without label. None: rows have no label, whatever columns there are.
    weight
        Weight of each row; None for none.
    uid
        Identifier of each row, strings or integers; None for none.
    keys, values
        List columns of the shape "key lists".
    features
        One list column, or the number columns that are the features, in this order. None: a list column named
        ``features`` if there is one, else all number columns that are not named above, in the order of the file.
    extras
        Columns of any type that are carried along beside the rows. A number column among them is a feature all the
        same, if it is one without.
    """

    label: str | None = "label"
    weight: str | None = "weight"
    uid: str | None = "uid"
    keys: str = "keys"
    values: str = "values"
    features: tuple[str, ...] | None = None
    extras: tuple[str, ...] = ()


DEFAULT_COLUMNS = ParquetColumns()


class Shape(StrEnum):
    """How a table holds features."""

    KEY_LISTS = "key lists"
    FEATURE_LIST = "feature list"
    FEATURE_COLUMNS = "feature columns"


@dataclass(frozen=True, slots=True)
class Layout:
    """The columns of a table and what they mean, checked; None for a column that is absent.

    Attributes
    ----------
    shape
        How the table holds features.
    features
        Keys and values, or the one list, or the columns of features.
    label, weight, uid
        Names of these columns.
    extras
        Columns that are carried along.
    """

    shape: Shape
    features: tuple[str, ...]
    label: str | None
    weight: str | None
    uid: str | None
    extras: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """All columns to read."""
        return list(dict.fromkeys([*self.features, *self.others]))

    @property
    def others(self) -> list[str]:
        """All columns to read but the features."""
        return list(dict.fromkeys([*filter(None, (self.label, self.weight, self.uid)), *self.extras]))


def detect_layout(schema: pa.Schema, columns: ParquetColumns = DEFAULT_COLUMNS, *, needs_label: bool = True) -> Layout:
    """Find out how a table of this schema holds its rows.

    Without `needs_label`, the column of the labels may be absent whatever its name.

    Raises
    ------
    DataError
        If a named column does not exist or has a type that does not serve, or nothing in the table can be features.
    """
    expects_label = needs_label or columns.label in schema.names
    label = _optional_column(schema, "label", columns.label) if expects_label else None
    weight = _optional_column(schema, "weight", columns.weight)
    uid = _optional_column(schema, "uid", columns.uid)
    extras = tuple(_existing(schema, "extra", name) for name in columns.extras)
    no_features = {name for name in extras if not is_number(schema.field(name).type)}
    shape, features = _feature_columns(schema, columns, {label, weight, uid} | no_features)
    for name in filter(None, (label, weight)):
        _require(schema, name, is_number(schema.field(name).type), "numbers", "Convert it, or name another column.")
    if uid is not None:
        _require(schema, uid, _is_identifier(schema.field(uid).type), "strings or integers", "Name another column.")
    return Layout(shape, features, label, weight, uid, extras)


def _optional_column(schema: pa.Schema, role: str, name: str | None) -> str | None:
    """Return the name if there is such a column; None if it is a default that is absent."""
    if name is None or (name == getattr(DEFAULT_COLUMNS, role) and name not in schema.names):
        return None
    return _existing(schema, role, name)


def _existing(schema: pa.Schema, role: str, name: str) -> str:
    count = schema.names.count(name)
    if count == 1:
        return name
    listed = ", ".join(schema.names[:_MAX_NAMES])
    more = f" and {len(schema.names) - _MAX_NAMES} more" if len(schema.names) > _MAX_NAMES else ""
    found = "there is no such column" if count == 0 else f"{count} columns have this name"
    raise DataError(f"{role} column {name!r}: {found}.", f"Columns: {listed}{more}.")


def _require(schema: pa.Schema, name: str, holds: bool, rule: str, remedy: str) -> None:
    if not holds:
        raise DataError(f"column {name!r} must hold {rule}, got {schema.field(name).type}.", remedy)


def _feature_columns(
    schema: pa.Schema, columns: ParquetColumns, others: set[str | None]
) -> tuple[Shape, tuple[str, ...]]:
    """Return the shape of a table and the columns of its features."""
    if columns.features is not None:
        names = tuple(_existing(schema, "feature", name) for name in columns.features)
        if len(names) == 1 and _entry_type(schema, names[0]) is not None:
            return _feature_list(schema, names[0])
        return _number_columns(schema, names)
    keys, values = columns.keys, columns.values
    if keys != DEFAULT_COLUMNS.keys or values != DEFAULT_COLUMNS.values or _entry_type(schema, keys) is not None:
        return _key_lists(schema, _existing(schema, "keys", keys), _existing(schema, "values", values))
    if _entry_type(schema, "features") is not None:
        return _feature_list(schema, _existing(schema, "feature", "features"))
    ignored = others | _pandas_index(schema)
    return _number_columns(schema, tuple(name for name in schema.names if name not in ignored))


def _key_lists(schema: pa.Schema, keys: str, values: str) -> tuple[Shape, tuple[str, ...]]:
    key_type, value_type = _entry_type(schema, keys), _entry_type(schema, values)
    is_keys = key_type is not None and pa.types.is_integer(key_type)
    _require(schema, keys, is_keys, "lists of integers", "Convert it.")
    _require(schema, values, value_type is not None and is_number(value_type), "lists of numbers", "Convert it.")
    return Shape.KEY_LISTS, (keys, values)


def _feature_list(schema: pa.Schema, name: str) -> tuple[Shape, tuple[str, ...]]:
    _require(schema, name, is_number(_entry_type(schema, name)), "lists of numbers", "Convert it.")
    return Shape.FEATURE_LIST, (name,)


def _number_columns(schema: pa.Schema, names: tuple[str, ...]) -> tuple[Shape, tuple[str, ...]]:
    if not names:
        remedy = "Name the columns of keys and values, or of features."
        raise DataError("the table has no column of features.", remedy)
    for name in names:
        _existing(schema, "feature", name)
        remedy = "Encode it as numbers, or name the feature columns without it."
        _require(schema, name, is_number(schema.field(name).type), "numbers", remedy)
    return Shape.FEATURE_COLUMNS, names


def _pandas_index(schema: pa.Schema) -> set[str]:
    """Return the columns in which pandas stored its index."""
    try:
        stored = (schema.pandas_metadata or {}).get("index_columns", [])
    except ValueError:  # not JSON: nothing that pandas wrote
        return set()
    return {name for name in stored if isinstance(name, str)}


def storage_type(data_type: pa.DataType) -> pa.DataType:
    """Return the type in which a tensor column stores its rows."""
    return data_type.storage_type if isinstance(data_type, pa.BaseExtensionType) else data_type


def _entry_type(schema: pa.Schema, name: str) -> pa.DataType | None:
    """Return the type of the entries of a list column; None for other columns and none."""
    if name not in schema.names:
        return None
    data_type = storage_type(schema.types[schema.names.index(name)])
    is_list = pa.types.is_list(data_type) or pa.types.is_large_list(data_type) or pa.types.is_fixed_size_list(data_type)
    return data_type.value_type if is_list else None


def is_number(data_type: pa.DataType) -> bool:
    """Tell whether values of a type are read as numbers; booleans are, as 0 and 1."""
    types = pa.types
    return any(is_(data_type) for is_ in (types.is_integer, types.is_floating, types.is_boolean, types.is_decimal))


def _is_identifier(data_type: pa.DataType) -> bool:
    types = pa.types
    if types.is_dictionary(data_type):
        data_type = data_type.value_type
    return any(is_(data_type) for is_ in (types.is_string, types.is_large_string, types.is_integer))
