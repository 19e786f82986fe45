"""Text of the libsvm format from bytes to rows without an object per number: lines as writers make them.

A line is ``label key:value key:value ...  # comment``. A number is what float32 makes of the nearest double: where
digits and power of ten are doubles, one multiplication or division gives that (Clinger, "How to read floating point
numbers accurately", PLDI 1990); else it gives a neighbour, which is taken if all neighbours are the same float32.
Whatever else there is, allowed or not, is `UNUSUAL`, and the reader that goes line by line tells what it means.

Nothing outside of the arrays is touched, whatever the bytes are: there are as many entries as colons at most.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rayfm.kernels.jit import exact_part, kernel, part, read_only
from rayfm.kernels.vectors import item, put

UNUSUAL = -1

_TAB, _NEWLINE, _RETURN, _SPACE, _COMMENT = (ord(sign) for sign in "\t\n\r #")
_ZERO, _PLUS, _MINUS, _POINT, _COLON, _SMALL_E, _E = (ord(sign) for sign in "0+-.:eE")
_MAX_DIGITS = 18  # of which an int64 has room for any
_ROOM = 9 * 10**17  # above it, an int64 may have no room for one more digit
_MAX_EXACT, _MAX_EXACT_POWER, _MAX_POWER = 2**53, 22, 80
_POWERS = np.array([float(f"1e{power}") for power in range(_MAX_POWER + 1)])
_APART = 2.0**-50  # four times what three roundings can make of it


class Lines(NamedTuple):
    """Rows of parsed lines."""

    numbers: NDArray[np.int64]  # of the lines that are rows, from 0
    lengths: NDArray[np.int64]
    labels: NDArray[np.float32]  # NaN where there is none
    keys: NDArray[np.uint32]
    values: NDArray[np.float32]


def warm_up() -> None:
    """Compile, or load from the cache."""
    parse(b"1 2:3", index_base=0, needs_label=True)


def parse(text: bytes, *, index_base: int, needs_label: bool) -> Lines | None:
    """Parse whole lines; None if any is unusual."""
    most_rows, most_entries = text.count(b"\n") + 1, text.count(b":")
    lines = Lines(
        np.empty(most_rows, np.int64),
        np.empty(most_rows, np.int64),
        np.empty(most_rows, np.float32),
        np.empty(most_entries, np.uint32),
        np.empty(most_entries, np.float32),
    )
    rows, entries = parse_lines(read_only(np.frombuffer(text, np.uint8)), index_base, needs_label, *lines)
    if rows == UNUSUAL:
        return None
    return Lines(
        lines.numbers[:rows], lines.lengths[:rows], lines.labels[:rows], lines.keys[:entries], lines.values[:entries]
    )


@kernel
def parse_lines(text, index_base, needs_label, numbers, lengths, labels, keys, values):  # type: ignore[no-untyped-def]
    """Parse lines into the arrays; return how many rows and entries there are, or `UNUSUAL`."""
    position = line = rows = entries = np.int64(0)
    while position < len(text):
        position = _skip(text, position)
        first = _sign_at(text, position)
        if first == _NEWLINE:
            position += 1
            line += 1
            continue
        label, end = _number(text, position)
        if end != UNUSUAL and _sign_at(text, end) == _COLON:
            if needs_label:
                return UNUSUAL, entries
            label = np.float32(np.nan)
        elif end == UNUSUAL or not _ends(_sign_at(text, end)):
            return UNUSUAL, entries
        else:
            position = _skip(text, end)
        begin = entries
        while _sign_at(text, position) != _NEWLINE:
            key, end = _key(text, position)
            if end == UNUSUAL or not 0 <= key - index_base < 2**32:
                return UNUSUAL, entries
            value, end = _number(text, end + 1)
            if end == UNUSUAL or not _ends(_sign_at(text, end)):
                return UNUSUAL, entries
            put(keys, entries, key - index_base)
            put(values, entries, value)
            entries += 1
            position = _skip(text, end)
        numbers[rows], lengths[rows], labels[rows] = line, entries - begin, label
        rows += 1
        line += 1
        position += 1
    return rows, entries


@part
def _sign_at(text, position):  # type: ignore[no-untyped-def]
    """Return a byte; behind the last one there is a newline."""
    return np.int64(item(text, position)) if position < len(text) else np.int64(_NEWLINE)


@part
def _ends(sign):  # type: ignore[no-untyped-def]
    """Tell whether a number ends before this sign."""
    return sign == _SPACE or sign == _NEWLINE or sign == _TAB or sign == _RETURN or sign == _COMMENT


@part
def _skip(text, position):  # type: ignore[no-untyped-def]
    """Return where the next token begins, or the newline at the end of the line: behind blanks and a comment."""
    sign = _sign_at(text, position)
    while sign == _SPACE or sign == _TAB or sign == _RETURN:
        position += 1
        sign = _sign_at(text, position)
    if sign == _COMMENT:
        while sign != _NEWLINE:
            position += 1
            sign = _sign_at(text, position)
    return position


@part
def _key(text, position):  # type: ignore[no-untyped-def]
    """Return a key and where its colon is, or `UNUSUAL`."""
    start = position
    key = np.int64(0)
    digit = _sign_at(text, position) - _ZERO
    while 0 <= digit <= 9:
        key = key * 10 + digit
        position += 1
        digit = _sign_at(text, position) - _ZERO
    if position == start or position - start > _MAX_DIGITS or digit != _COLON - _ZERO:
        return key, UNUSUAL
    return key, position


@part
def _digits(text, position, mantissa):  # type: ignore[no-untyped-def]
    """Append digits to a mantissa; return it, negative if there is no room for all, and where they end."""
    digit = _sign_at(text, position) - _ZERO
    fits = True
    while 0 <= digit <= 9:
        fits = fits and mantissa <= _ROOM
        mantissa = mantissa * 10 + digit
        position += 1
        digit = _sign_at(text, position) - _ZERO
    return mantissa if fits else np.int64(UNUSUAL), position


@exact_part
def _number(text, position):  # type: ignore[no-untyped-def]
    """Return a number in float32 and where it ends, or `UNUSUAL`."""
    sign = _sign_at(text, position)
    is_negative = sign == _MINUS
    if is_negative or sign == _PLUS:
        position += 1
    mantissa, end = _digits(text, position, np.int64(0))
    digits, power = end - position, np.int64(0)
    if _sign_at(text, end) == _POINT and mantissa >= 0:
        position = end + 1
        mantissa, end = _digits(text, position, mantissa)
        power = position - end
        digits -= power
    position = end
    sign = _sign_at(text, position)
    if sign == _SMALL_E or sign == _E:
        exponent, position = _exponent(text, position + 1)
        power += exponent
    if digits == 0 or mantissa < 0 or position == UNUSUAL or abs(power) > _MAX_POWER:
        return np.float32(0.0), UNUSUAL
    value = np.float64(mantissa) / _POWERS[-power] if power < 0 else np.float64(mantissa) * _POWERS[power]
    value = -value if is_negative else value
    if mantissa > _MAX_EXACT or abs(power) > _MAX_EXACT_POWER:
        if np.float32(value * (1.0 - _APART)) != np.float32(value * (1.0 + _APART)):
            return np.float32(0.0), UNUSUAL
    return np.float32(value), position


@part
def _exponent(text, position):  # type: ignore[no-untyped-def]
    """Return an exponent and where it ends, or `UNUSUAL`."""
    sign = _sign_at(text, position)
    if sign == _MINUS or sign == _PLUS:
        position += 1
    start = position
    exponent = np.int64(0)
    digit = _sign_at(text, position) - _ZERO
    while 0 <= digit <= 9 and position - start < 4:
        exponent = exponent * 10 + digit
        position += 1
        digit = _sign_at(text, position) - _ZERO
    if position == start or 0 <= digit <= 9:
        return exponent, UNUSUAL
    return (-exponent if sign == _MINUS else exponent), position
