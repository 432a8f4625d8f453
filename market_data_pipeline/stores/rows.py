"""Decide which rows a store writes, and join rows of several stores. Pure: tables in, tables out.

Disks and databases do not belong here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from market_data_pipeline import clock
from market_data_pipeline.errors import UsageError
from market_data_pipeline.lake.reader import labels_of, time_column
from market_data_pipeline.model.datasets import SPECS
from market_data_pipeline.model.schema import TIME, WORD, lake_schema
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.stores.base import EXAMPLES, RowConflict, RowState, SaveReport

STATE, SEEN_AT = "state", "seen_at"
_OWN_FIELDS = (pa.field(STATE, pa.int16(), nullable=False), pa.field(SEEN_AT, TIME, nullable=False))

_Ints = npt.NDArray[np.int64]
_Bools = npt.NDArray[np.bool_]


def stored_schema(key: SeriesKey) -> pa.Schema:
    """Return the schema of rows in a store: that of the lake, with state and time."""
    return pa.schema([*lake_schema(key.market, key.data_type), *_OWN_FIELDS])


def key_columns(key: SeriesKey) -> tuple[str, ...]:
    """Return the columns that identify a row within its series, the most significant first.

    >>> from market_data_pipeline.model.series import EXCHANGE, DataType, Market
    >>> key_columns(SeriesKey(EXCHANGE, Market.UM, DataType.BOOK_DEPTH, "BTCUSDT"))
    ('timestamp', 'percentage')
    """
    spec = SPECS.get((key.market, key.data_type))
    return (time_column(key.data_type),) if spec is None else (spec.key, *spec.also)


def value_columns(key: SeriesKey) -> tuple[str, ...]:
    """Return the columns of a series that are neither labels nor part of the key."""
    others = {*labels_of(key.data_type), *key_columns(key)}
    return tuple(name for name in lake_schema(key.market, key.data_type).names if name not in others)


def stored_rows(key: SeriesKey, rows: pa.Table, state: RowState, seen_at: datetime | None = None) -> pa.Table:
    """Check rows of a caller, and return them with state and time, in the order of the key.

    A row that occurs twice counts once.

    Raises:
        UsageError: A column is missing or unknown, a value has another type or is null, a label names another series,
            or two rows of one key differ.
    """
    schema, labels = lake_schema(key.market, key.data_type), labels_of(key.data_type)
    missing = [name for name in schema.names if name not in rows.column_names and name not in labels]
    unknown = [name for name in rows.column_names if name not in schema.names]
    if missing or unknown:
        which = f"no column {missing[0]!r}" if missing else f"an unknown column {unknown[0]!r}"
        raise UsageError(f"Rows of {key} have {which}. The columns are: {', '.join(schema.names)}.")
    columns: list[Any] = []
    for field in schema:
        if field.name in labels:
            label = str(getattr(key, field.name))
            found = pc.unique(rows[field.name].cast(pa.string())).to_pylist() if field.name in rows.column_names else []
            if found not in ([], [label]):
                raise UsageError(f"The rows have another {field.name} than {key}.")
            columns.append(_constant(label, rows.num_rows))
            continue
        columns.append(_typed(key, rows[field.name], field))
    table = with_state(pa.table(columns, schema=schema), state, seen_at or clock.now())
    return _each_once(key, table)


def _typed(key: SeriesKey, column: pa.ChunkedArray[Any], field: pa.Field[Any]) -> pa.ChunkedArray[Any]:
    try:
        typed = column.cast(field.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise UsageError(
            f"Column {field.name!r} of {key} has the type {column.type}, and its values do not fit {field.type}."
        ) from None
    if typed.null_count and not field.nullable:
        raise UsageError(f"Column {field.name!r} of {key} has {typed.null_count:,} nulls, and may have none.")
    return typed


def with_state(table: pa.Table, state: RowState | _Ints, seen_at: datetime | _Ints) -> pa.Table:
    """Add the columns of state and time to rows of the lake.

    Args:
        state: One state, or a number for each row.
        seen_at: One moment (with zone, or in UTC without), or microseconds since 1970 for each row.
    """
    states = np.full(table.num_rows, state) if isinstance(state, RowState) else state
    times = np.full(table.num_rows, micros(seen_at)) if isinstance(seen_at, datetime) else seen_at
    columns: list[Any] = [
        *table.columns,
        pa.array(states.astype(np.int16)),
        pa.array(times.astype(np.int64)).cast(TIME),
    ]
    return pa.table(columns, schema=pa.schema([*table.schema, *_OWN_FIELDS]))


def without_state(table: pa.Table) -> pa.Table:
    """Remove the columns of state and time."""
    return table.drop_columns([STATE, SEEN_AT])


def with_labels(key: SeriesKey, table: pa.Table, *, state: bool) -> pa.Table:
    """Return rows of a store with the labels of their series and exactly the schema of the lake.

    Args:
        table: Columns by name, labels missing.
        state: Include the columns of state and time.
    """
    labels = labels_of(key.data_type)
    schema = stored_schema(key) if state else lake_schema(key.market, key.data_type)
    columns: list[Any] = [
        _constant(str(getattr(key, field.name)), table.num_rows)
        if field.name in labels
        else table[field.name].cast(field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def _constant(label: str, rows: int) -> pa.Array[Any]:
    words: Any = pa.DictionaryArray.from_arrays(np.zeros(rows, np.int32), pa.array([label], pa.string()))
    array: pa.Array[Any] = words.cast(WORD)
    return array


# --- ranges ----------------------------------------------------------------------------------------------------------


def micros(moment: datetime) -> int:
    """Return a moment in microseconds since 1970. Without a zone, it is UTC."""
    return clock.to_us(moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC))


def naive(moment: datetime | None) -> datetime | None:
    """Return a moment in UTC without zone."""
    return None if moment is None else clock.naive_from_us(micros(moment))


def first_day_of(start: datetime | None) -> date:
    """Return the first UTC day with moments of a range."""
    return date.min if start is None else clock.day_of_us(micros(start))


def last_day_of(end: datetime | None) -> date:
    """Return the last UTC day with moments of a range."""
    return date.max if end is None else clock.day_of_us(micros(end) - 1)


def times_of(key: SeriesKey, table: pa.Table) -> _Ints:
    """Return the time of each row in microseconds since 1970."""
    column = table[time_column(key.data_type)]
    if pa.types.is_date32(column.type):
        return np.asarray(column.cast(pa.int32()), dtype=np.int64) * clock.US_PER_DAY
    return np.asarray(column.cast(pa.int64()), dtype=np.int64)


def rows_within(
    key: SeriesKey, table: pa.Table, start: datetime | None, end: datetime | None, least: RowState
) -> pa.Table:
    """Return the rows of a range that have at least a state."""
    times = times_of(key, table)
    inside = np.asarray(table[STATE]) >= int(least)
    if start is not None:
        inside &= times >= micros(start)
    if end is not None:
        inside &= times < micros(end)
    return table if inside.all() else table.filter(pa.array(inside))


def days_among(key: SeriesKey, table: pa.Table) -> _Ints:
    """Return the UTC day of each row, as days since 1970."""
    return times_of(key, table) // clock.US_PER_DAY


def moment_after(day: date) -> datetime:
    """Return the midnight at which a UTC day ends (without zone)."""
    return clock.midnight(day) + timedelta(days=1)


# --- decisions -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Decision:
    """The rows that a store writes.

    Attributes:
        insert: Rows whose key is new.
        replace: Rows that replace a stored one.
    """

    insert: pa.Table
    replace: pa.Table
    report: SaveReport


def decide(key: SeriesKey, stored: pa.Table, incoming: pa.Table) -> Decision:
    """Decide which of the incoming rows a store writes.

    Args:
        stored: Stored rows, with state and time. Rows of other keys than the incoming ones do not matter. Labels may be
            missing, and so may the values if no row has the state of the incoming ones.
        incoming: Rows of :func:`stored_rows`, all of one state and time.
    """
    if not stored.num_rows or not incoming.num_rows:
        return Decision(incoming, incoming.slice(0, 0), SaveReport(inserted=incoming.num_rows))
    own = [*key_columns(key), STATE, SEEN_AT]
    both = pa.concat_tables([stored.select(own), incoming.select(own)]).combine_chunks()
    order, again = _order(key, both)
    # A stored row comes before an incoming row of the same key, because the order is stable.
    pairs = np.flatnonzero(again & (order >= stored.num_rows) & (np.roll(order, 1) < stored.num_rows))
    new, old = order[pairs], order[pairs - 1]
    states, seen = np.asarray(both[STATE], np.int64), np.asarray(both[SEEN_AT].cast(pa.int64()), np.int64)
    raised = states[new] > states[old]
    same = states[new] == states[old]
    differs = _differences(key, stored, incoming, new, old) if same.any() else {}
    other = np.zeros(len(new), np.bool_)
    for one in differs.values():
        other |= one
    conflict = same & other & (states[new] > RowState.FORMING)
    newer = same & other & (states[new] < RowState.FINAL) & (seen[new] >= seen[old])
    replace = raised | newer
    unchanged = same & ~other
    is_new = np.ones(incoming.num_rows, np.bool_)
    is_new[new - stored.num_rows] = False
    examples = []
    times = times_of(key, incoming)
    for n in np.flatnonzero(conflict)[:EXAMPLES]:
        row = int(new[n])
        examples.append(
            RowConflict(
                clock.naive_from_us(int(times[row - stored.num_rows])),
                ", ".join(str(both[name][row].as_py()) for name in key_columns(key)),
                RowState(int(states[row])),
                tuple(name for name, one in differs.items() if one[n]),
                bool(replace[n]),
            )
        )
    report = SaveReport(
        inserted=int(is_new.sum()),
        replaced=int(replace.sum()),
        unchanged=int(unchanged.sum()),
        ignored=int((~replace & ~unchanged).sum()),
        conflicts=int(conflict.sum()),
        examples=tuple(examples),
    )
    return Decision(
        incoming.filter(pa.array(is_new)),
        incoming.take(pa.array(np.sort(new[replace]) - stored.num_rows)),
        report,
    )


def _differences(key: SeriesKey, stored: pa.Table, incoming: pa.Table, new: _Ints, old: _Ints) -> dict[str, _Bools]:
    """Return for each value column which pairs of an incoming and a stored row differ."""
    names = list(value_columns(key))
    both = pa.concat_tables([stored.select(names), incoming.select(names)]).combine_chunks()
    return {name: ~_equal(both[name], new, old) for name in names}


def merged(key: SeriesKey, tables: Sequence[pa.Table]) -> pa.Table:
    """Return the rows of several stores in the order of the key, each key once.

    The row with the highest state wins. Of equal states, the row of the later table wins.
    """
    some = [table for table in tables if table.num_rows]
    if len(some) < 2:
        return some[0] if some else tables[0]
    both = pa.concat_tables(some).combine_chunks()
    order, again = _order(key, both, np.asarray(both[STATE], np.int64))
    last = np.append(~again[1:], True)
    rows: _Ints = order[last]
    return both.take(rows)


def _each_once(key: SeriesKey, table: pa.Table) -> pa.Table:
    if table.num_rows < 2:
        return table
    table = table.combine_chunks()
    order, again = _order(key, table)
    if again.any():
        pairs = np.flatnonzero(again)
        for name in value_columns(key):
            if not _equal(table[name], order[pairs], order[pairs - 1]).all():
                raise UsageError(f"Two rows of {key} have the same {', '.join(key_columns(key))}, but another {name}.")
        order = order[~again]
    elif (np.diff(order) > 0).all():
        return table
    return table.take(order)


def _order(key: SeriesKey, table: pa.Table, then_by: _Ints | None = None) -> tuple[_Ints, _Bools]:
    """Return the order of rows by their key, and for each place whether the row before it has the same key."""
    columns = [_sortable(table[name]) for name in key_columns(key)]
    by = [*columns, *([] if then_by is None else [then_by])]
    order = np.lexsort(by[::-1]) if len(by) > 1 else np.argsort(by[0], kind="stable")
    again = np.ones(table.num_rows, np.bool_)
    again[0] = False
    for column in columns:
        ordered = column[order]
        again[1:] &= ordered[1:] == ordered[:-1]
    return order.astype(np.int64), again


def _sortable(column: pa.ChunkedArray[Any]) -> npt.NDArray[Any]:
    return _bits(column) if not pa.types.is_floating(column.type) else np.asarray(column)


def _equal(column: pa.ChunkedArray[Any], some: _Ints, others: _Ints) -> _Bools:
    """Return True for each pair of rows whose values are the same bits, or both null."""
    valid = np.asarray(column.is_valid())
    bits = _bits(column)
    same: _Bools = (valid[some] == valid[others]) & ((bits[some] == bits[others]) | ~valid[some])
    return same


def _bits(column: Any) -> _Ints:
    """Return numbers that are equal if the values are the same bits. For a text, it is its place among all texts."""
    if pa.types.is_string(column.type):
        return np.asarray(pc.rank(column, tiebreaker="dense")).astype(np.int64)
    if pa.types.is_floating(column.type):
        return np.asarray(column.fill_null(0.0), dtype=np.float64).view(np.int64)
    if pa.types.is_date32(column.type):
        column = column.cast(pa.int32())
    if pa.types.is_boolean(column.type):
        return np.asarray(column.fill_null(False)).astype(np.int64)
    whole = column.cast(pa.int64())
    return np.asarray(whole.fill_null(0), dtype=np.int64)
