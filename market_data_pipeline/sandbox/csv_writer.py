"""Format columns of integers as CSV without a Python loop over rows. Column order and headers do not belong here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from market_data_pipeline.sandbox.generator import Flags

Bytes = npt.NDArray[np.uint8]

_CHUNK = 1 << 15  # rows at a time: a chunk's arrays fit into the processor's cache
_GROUP = np.array([[ord(c) for c in f"{i:04d}"] for i in range(10_000)], np.uint8)
_POWERS = 10 ** np.arange(1, 19, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Decimals:
    """A column of decimal numbers, all zero or greater.

    Attributes:
        units: the values in units of the last decimal.
        decimals: the number of decimals that ``units`` has.
        shown: the number of decimals to write, at least ``decimals``. Zeros fill the rest.
        trimmed: write like a float: without trailing zeros, but with at least one decimal.
    """

    units: npt.NDArray[np.int64]
    decimals: int = 0
    shown: int = 0
    trimmed: bool = False


@dataclass(frozen=True, slots=True)
class Texts:
    """A column with two words, one for true and one for false. With equal flags it is a constant."""

    flags: npt.NDArray[np.bool_]
    true: str
    false: str


def csv_text(columns: Sequence[Decimals | Texts]) -> bytes:
    """Return the rows as ASCII CSV without a header. Commas separate fields, and a newline ends each row."""
    first = columns[0]
    n = len(first.units if isinstance(first, Decimals) else first.flags)
    return b"".join(_chunk(columns, slice(at, at + _CHUNK)) for at in range(0, n, _CHUNK))


def _chunk(columns: Sequence[Decimals | Texts], rows: slice) -> bytes:
    blocks: list[Bytes] = []
    kept: list[Flags] = []
    for number, column in enumerate(columns):
        text, keep = _number(column, rows) if isinstance(column, Decimals) else _word(column, rows)
        end = "\n" if number == len(columns) - 1 else ","
        blocks += [text, np.full((len(text), 1), ord(end), np.uint8)]
        kept += [keep, np.ones((len(text), 1), np.bool_)]
    return np.hstack(blocks)[np.hstack(kept)].tobytes()


def _digits(values: npt.NDArray[np.int64], width: int) -> Bytes:
    groups = -(-width // 4)
    out = np.empty((len(values), groups * 4), np.uint8)
    for group in range(groups - 1, -1, -1):
        if group:
            rest = values // 10_000
            out[:, group * 4 : group * 4 + 4] = _GROUP[values - rest * 10_000]
            values = rest
        else:
            out[:, :4] = _GROUP[values]
    return out[:, groups * 4 - width :]


def _number(column: Decimals, rows: slice) -> tuple[Bytes, Flags]:
    values, decimals = column.units[rows], column.decimals
    width = max(len(str(int(values.max()))), decimals + 1)
    text = _digits(values, width)
    whole = width - decimals
    size = np.searchsorted(_POWERS, values, "right") + 1
    keep = np.arange(width) >= (width - np.maximum(size, decimals + 1))[:, None]
    shown = max(column.shown, decimals, 1 if column.trimmed else 0)
    if not shown:
        return text, keep
    fraction = np.full((len(values), 1 + shown), ord("0"), np.uint8)
    fraction[:, 0] = ord(".")
    fraction[:, 1 : 1 + decimals] = text[:, whole:]
    kept = np.ones(fraction.shape, np.bool_)
    if column.trimmed:
        for last in range(shown, 1, -1):
            kept[:, last] = (
                fraction[:, last] != ord("0") if last == shown else kept[:, last + 1] | (fraction[:, last] != ord("0"))
            )
    return np.hstack([text[:, :whole], fraction]), np.hstack([keep[:, :whole], kept])


def _word(column: Texts, rows: slice) -> tuple[Bytes, Flags]:
    width = max(len(column.true), len(column.false), 1)
    table = np.zeros((2, width), np.uint8)
    for at, word in enumerate((column.false, column.true)):
        table[at, : len(word)] = list(word.encode("ascii"))
    text = table[column.flags[rows].astype(np.intp)]
    return text, text != 0
