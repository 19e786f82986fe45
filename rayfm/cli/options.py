"""Options that several commands share, and those made from the table of hyperparameters."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from rayfm.cli.command import Function, GroupedOption
from rayfm.errors import HyperparameterError
from rayfm.hyperparameters import HYPERPARAMETERS, OPTIMIZER_DEFAULTS, Hyperparameter, Hyperparameters

FORMATS = ("recordio", "parquet", "libsvm")
"""Those of `rayfm.reading`, which takes long to import."""

READING = "Reading"
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
METAVARS = {int: "INTEGER", float: "FLOAT", str: "TEXT"}


def byte_size(text: str) -> int:
    """Return the bytes that a size means.

    >>> byte_size("500MB"), byte_size("1.5 GiB"), byte_size("4096")
    (500000000, 1610612736, 4096)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]I?)?B?", text.strip().upper())
    if not match or not float(match[1]):
        raise click.BadParameter(f"must be a size such as 500MB or 4GiB, got {text!r}.")
    return int(float(match[1]) * UNITS[match[2] or ""])


def address_option(function: Function) -> Function:
    """Add ``--address``."""
    return click.option(
        "--address", metavar="ADDRESS",
        help="Ray cluster, such as ray://head:10001 or auto; RAY_ADDRESS, or a Ray of its own, when left out.",
    )(function)  # fmt: skip


def reading_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say how files are read; the command gets them as `options`."""

    @functools.wraps(function)
    def command(*args: Any, **given: Any) -> Any:
        return function(*args, options=_read_options(given), **given)

    for flags, settings in reversed(_READING_OPTIONS):
        command = click.option(*flags, cls=GroupedOption, heading=READING, **settings)(command)
    return command


_READING_OPTIONS: list[tuple[tuple[str, ...], dict[str, Any]]] = [
    (("--format", "format_name"), {"type": click.Choice(FORMATS), "help": "Format of all files; told file by file "
      "when left out."}),
    (("--index-base",), {"type": click.Choice(["0", "1"]), "help": "Number of the first feature in libsvm text; "
      "guessed when left out."}),
    (("--label-column",), {"metavar": "NAME", "help": "Parquet column of the labels; '' for none.  [default: label]"}),
    (("--weight-column",), {"metavar": "NAME", "help": "Parquet column of the rows' weights; '' for none.  "
      "[default: weight]"}),
    (("--uid-column",), {"metavar": "NAME", "help": "Parquet column that names the rows; '' for none.  "
      "[default: uid]"}),
    (("--feature-columns",), {"metavar": "A,B,C", "help": "Parquet columns of the features: numbers, or one list; all "
      "other number columns when left out."}),
    (("--keys-column",), {"metavar": "NAME", "help": "Parquet column of each row's feature numbers.  "
      "[default: keys]"}),
    (("--values-column",), {"metavar": "NAME", "help": "Parquet column of each row's values.  [default: values]"}),
]  # fmt: skip


def _read_options(given: dict[str, Any]) -> Any:
    """Take the reading options out of `given` and make `ReadOptions` of them."""
    from rayfm.formats.parquet_columns import ParquetColumns
    from rayfm.reading import ReadOptions

    columns: dict[str, Any] = {}
    for name in ("label", "weight", "uid", "keys", "values"):
        column = given.pop(f"{name}_column")
        if column is not None:
            columns[name] = column or None
    features = given.pop("feature_columns")
    if features is not None:
        columns["features"] = tuple(name.strip() for name in features.split(",") if name.strip())
    base = given.pop("index_base")
    return ReadOptions(given.pop("format_name"), None if base is None else int(base), ParquetColumns(**columns))


def hyperparameter_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add an option for each row of the table; the command gets those given, by name, as `given`."""

    @functools.wraps(function)
    def command(*args: Any, **values: Any) -> Any:
        given = {name: values.pop(name) for name in HYPERPARAMETERS}
        return function(*args, given={name: value for name, value in given.items() if value is not None}, **values)

    rows = sorted(HYPERPARAMETERS.values(), key=lambda row: HEADINGS.index(heading_of(row)))
    for row in reversed(rows):
        command = click.option(*_flags(row), **_settings(row))(command)
    return command


HEADINGS = ("Required", "Training", "Optimiser", "Initialisation", "Rayfm's own")


def heading_of(row: Hyperparameter) -> str:
    """Return the heading in ``--help`` under which a hyperparameter stands."""
    if row.name in ("num_factors", "predictor_type"):
        return "Required"
    if not row.sagemaker:
        return "Rayfm's own"
    if "_init_" in row.name:
        return "Initialisation"
    if row.name.endswith(("_lr", "_wd")) or row.name in ("clip_gradient", "eps", "rescale_grad"):
        return "Optimiser"
    return "Training"


def _flags(row: Hyperparameter) -> tuple[str, str]:
    flag = f"--{row.name.replace('_', '-')}"
    return (f"{flag}/--no-{flag[2:]}" if row.kind is bool else flag), row.name


def _settings(row: Hyperparameter) -> dict[str, Any]:
    default = _default_text(row)
    settings = {
        "cls": GroupedOption,
        "heading": heading_of(row),
        "default": None,
        "help": f"{row.meaning}  [default: {default}]" if default else row.meaning,
    }
    return settings if row.kind is bool else settings | unchecked(row)


def unchecked(row: Hyperparameter) -> dict[str, Any]:
    """Return settings of an option whose string is left as it is, for the table to check, with SageMaker's texts."""

    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
        return [choice for choice in row.choices if choice.startswith(incomplete)]

    metavar = f"[{'|'.join(row.choices)}]" if row.choices else METAVARS[row.kind]
    return {"type": str, "metavar": metavar, "shell_complete": complete}


def _default_text(row: Hyperparameter) -> str:
    """Return the default as a user would type it, for each optimizer where it depends on that."""
    if row.name == "rescale_grad":  # its meaning says it
        return ""
    if row.kind is bool:
        return "on" if row.default else "off"
    values: dict[Any, list[str]] = {}
    for optimizer, defaults in OPTIMIZER_DEFAULTS.items():
        values.setdefault(defaults.get(row.name, row.default), []).append(optimizer)
    if len(values) == 1:
        return "" if row.default is None else str(row.default)
    return ", ".join(f"{value:g} ({', '.join(optimizers)})" for value, optimizers in values.items())


def settled_hyperparameters(path: Path | None, given: Mapping[str, Any]) -> Hyperparameters:
    """Check the hyperparameters of a file and the command line, which wins.

    Raises
    ------
    HyperparameterError
        If the file is no JSON object, or for whatever is wrong with a value.
    """
    values = {**(_from_file(path) if path else {}), **given}
    try:
        return Hyperparameters.of(values)
    except HyperparameterError:
        raise
    except (ValueError, TypeError, OverflowError) as error:  # SageMaker's texts for what cannot be converted
        usage = click.UsageError(str(error))
        for note in error.__notes__:
            usage.add_note(note)
        raise usage from error


def _from_file(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise HyperparameterError(f"{path} must be a JSON object of hyperparameters: {error}.") from error
    if not isinstance(values, dict):
        raise HyperparameterError(f"{path} must be a JSON object of hyperparameters, got a {type(values).__name__}.")
    return values
