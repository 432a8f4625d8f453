"""Read the CSV of an archive's zip, or rows of REST, into Arrow. No disk, no network.

Header, time unit and columns come from the file itself: Binance does not republish old archives when the format
changes. The zip container (``sources/zips.py``), downloads (``archive.py``) and the validity of rows (``checks``) do
not belong here.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import date
from functools import cache, lru_cache
from itertools import chain, islice
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from market_data_pipeline import clock
from market_data_pipeline.errors import MalformedError
from market_data_pipeline.model.datasets import (
    SPECS,
    Column,
    Spec,
    is_bounded,
    meaning_change,
    most_repeated,
    most_rows,
    spec_of,
)
from market_data_pipeline.model.schema import ARROW_TYPES, TIME, WORD, lake_schema
from market_data_pipeline.model.series import INTERVALS, DataType, Market, SeriesKey, interval_us
from market_data_pipeline.sources.zips import inflated

_ROW_BYTES = 400
"""Maximum bytes of a row of candles: 12 values of up to 25 characters."""

_TRADES_RATIO = 16
"""Maximum bytes of CSV per byte of a zip of trades. Real zips have 3 to 5. Trades that differ only in their ids would
reach 11, and no symbol has them."""

_LEAST_BOUND = 16 << 20
"""Bytes of CSV to read from any zip, so that an error can describe the content of a wrong one."""

_PARSERS = 2
"""Threads that parse a big zip. Parsing takes twice as long as inflating."""

_HOUR_US = 3_600_000_000

_LONGEST_LINE = 4096
"""Maximum bytes of a line: more than all column names together, and ten times a row."""


def read_zip(
    data: bytes, key: SeriesKey, stem: str, first: date, last: date, taken: Callable[[pa.Table], None] | None = None
) -> pa.Table:
    """Read a daily or monthly zip.

    Args:
        stem: Name of the zip without ``.zip``. Its CSV has the same stem.
        first: First UTC day that rows may belong to.
        last: Last such day, inclusive.
        taken: Called with the rows of each block of a big zip as soon as they are read, before the whole zip is known
            to be valid. The blocks together are the table.

    Returns:
        A table with :func:`lake_schema`, rows in the order of the CSV, times in microseconds UTC.

    Raises:
        MalformedError: The zip is broken or does not have exactly one matching CSV, a row has the wrong number of
            columns, a value has the wrong type, rows belong to other days or another interval, or there are more rows
            than the days can have.
    """
    pieces = inflated(data, stem, _most_bytes(key, (last - first).days + 1, len(data)))
    return read_csv_pieces(pieces, key, stem, first, last, taken)


def read_csv_pieces(
    pieces: Iterator[bytes],
    key: SeriesKey,
    stem: str,
    first: date,
    last: date,
    taken: Callable[[pa.Table], None] | None = None,
) -> pa.Table:
    """Read the CSV of a daily or monthly zip from pieces of any size. The rest is as in :func:`read_zip`."""
    spec = spec_of(key)
    blocks: list[pa.Table] = []
    times: list[int] = []
    rows, distinct, days = 0, 0, (last - first).days + 1
    for raw in _parsed(_blocks(pieces, spec, stem), spec, stem):
        if raw.num_rows == 0:
            continue
        rows += raw.num_rows
        raw = _relabelled(raw, key, spec, first)
        times += _bounds(raw.column(spec.time))
        unit = _microseconds_per_unit(min(times), max(times), stem)
        blocks.append(_conform(raw, key, spec, unit))
        if rows > most_rows(key, days):
            break
        distinct += _distinct(raw, spec)
        if rows > most_repeated(distinct):
            raise MalformedError(
                f"{stem}.csv repeats its rows: the first {rows:,} have {distinct:,} distinct values of {spec.key}."
            )
        if taken is not None:
            taken(blocks[-1])
    if not blocks:
        raise MalformedError(f"{stem}.csv has no rows.")
    table = pa.concat_tables(blocks)
    if (other := other_interval(key, table)) is not None:
        raise MalformedError(f"{stem}.csv has rows of another interval: {other}.")
    if rows > (most := most_rows(key, days)):
        period = "A day" if days == 1 else "A month"
        raise MalformedError(f"{stem}.csv has {rows:,} rows or more. {period} of {key.short} has at most {most:,}.")
    begin, end = (clock.naive_from_us(time * unit) for time in (min(times), max(times)))
    if begin.date() < first or end.date() > last:
        texts = (moment.isoformat(sep=" ", timespec="milliseconds") for moment in (begin, end))
        raise MalformedError(f"{stem}.csv has rows of other days: its times run from {' to '.join(texts)} (UTC).")
    return table


def _distinct(raw: pa.Table, spec: Spec) -> int:
    """Return the number of distinct keys in a block. Counting is slow, so skip it for rows in order.

    Keys of several columns are not counted: their first column repeats, and the number of rows is bounded.
    """
    if spec.also:
        return raw.num_rows
    keys = raw.column(spec.key).to_numpy()
    return len(keys) if (keys[1:] > keys[:-1]).all() else int(pc.count_distinct(raw.column(spec.key)).as_py())


def read_zips(zips: Mapping[str, bytes], key: SeriesKey, rows: int) -> pa.Table:
    """Read daily zips of candles together. Arrow reads ten of them in the time of four single ones.

    Args:
        zips: The zips by their names without ``.zip``.
        key: The expected series.
        rows: Expected number of rows per zip.

    Returns:
        A table as from :func:`read_zip`, with the zips' rows in order. The days of the rows are not checked.

    Raises:
        MalformedError: A zip is malformed or differs from the others. :func:`read_zip` finds the one at fault.
    """
    spec = spec_of(key)
    stem = next(iter(zips))
    lines = b"".join(_lines(data, spec, of, rows) for of, data in zips.items())
    raw = _parse_lines(memoryview(lines), spec, False, stem)
    if raw.num_rows != rows * len(zips):
        raise MalformedError(f"{stem}.csv, or one read with it, has empty lines.")
    return _conform(raw, key, spec, _microseconds_per_unit(*_bounds(raw.column(spec.time)), stem))


def _lines(data: bytes, spec: Spec, stem: str, number: int) -> bytes:
    """Return the lines of a zip's CSV without its header, each with its line end."""
    csv = b"".join(inflated(data, stem, number * _ROW_BYTES + _LONGEST_LINE))
    if _has_header(memoryview(csv), spec, stem):
        csv = csv.partition(b"\n")[2]
    if not csv.endswith(b"\n"):
        csv += b"\n"
    if csv.count(b"\n") != number:
        raise MalformedError(f"{stem}.csv should have {number} rows.")
    return csv


def split_days(table: pa.Table, time_column: str) -> dict[date, pa.Table]:
    """Split a table by UTC day. Rows of a day stay in order."""
    days = pc.cast(table.column(time_column), pa.int64()).to_numpy() // clock.US_PER_DAY
    if len(days) == 0:
        return {}
    if (days[1:] < days[:-1]).any():
        order = np.argsort(days, kind="stable")
        table, days = table.take(order), days[order]
    starts = np.flatnonzero(np.r_[True, days[1:] != days[:-1]])
    ends = np.r_[starts[1:], len(days)]
    return {
        clock.day_of_us(int(days[start]) * clock.US_PER_DAY): table.slice(int(start), int(end - start))
        for start, end in zip(starts, ends, strict=True)
    }


def label_columns(key: SeriesKey, rows: int) -> list[pa.Array[Any]]:
    """Return the symbol (and interval) columns of a table: the same word in every row."""
    words = [key.symbol] if key.interval is None else [key.symbol, key.interval]
    index = _zeros(rows)
    return [pa.DictionaryArray.from_arrays(index, pa.array([word], WORD.value_type), safe=False) for word in words]


@lru_cache(maxsize=8)  # days of candles have the same number of rows
def _zeros(rows: int) -> pa.Array[Any]:
    return pa.array(np.zeros(rows, dtype=np.int32))


def other_interval(key: SeriesKey, table: pa.Table) -> str | None:
    """Return the candles' interval, in words, if it is not the series'. Else return None.

    The duration of most candles decides. Candles off the grid, and a few that an outage cut short, do not matter.
    """
    if key.interval is None:
        return None
    opened, closed = (pc.cast(table.column(name), pa.int64()).to_numpy() for name in ("open_time", "close_time"))
    # close_time is one unit (a microsecond or a millisecond) before the end.
    lasts = (closed - opened + 1000) // 1000 * 1000
    own = interval_us(key.interval)
    mine = int((lasts == own).sum())
    if 2 * mine >= len(lasts):
        return None
    values, counts = np.unique(lasts, return_counts=True)
    most = int(counts.argmax())
    last, count = int(values[most]), int(counts[most])
    # A candle can be cut short, but never lasts longer. A single one may be cut to the length of another interval.
    if count <= mine or (last < own and (count == 1 or not _is_interval(last, opened))):
        return None
    names = {interval_us(name): name for name in INTERVALS}
    words = names.get(last, f"{last / 1e6:g} s")
    return f"{count:,} of {len(lasts):,} candles last {words}, not {key.interval}"


def _is_interval(us: int, opened: npt.NDArray[np.int64]) -> bool:
    """Return True if a duration is one of Binance's intervals, or the most common step between the candles."""
    if us in map(interval_us, INTERVALS):
        return True
    steps, counts = np.unique(np.diff(opened), return_counts=True)
    return bool(steps[counts.argmax()] == us)


def _most_bytes(key: SeriesKey, days: int, size: int) -> int:
    """Return the maximum bytes of CSV in a zip of this many days and bytes."""
    possible = most_rows(key, days) * _ROW_BYTES if is_bounded(key) else _TRADES_RATIO * size
    return max(_LEAST_BOUND, possible)


# --- from bytes to blocks of lines ------------------------------------------------------------------------------


_Block = tuple[list[memoryview], bool]
"""Whole lines, in one or two parts, and True if they start with a header."""


def _blocks(pieces: Iterator[bytes], spec: Spec, stem: str) -> Iterator[_Block]:
    """Yield whole lines from pieces of any size.

    A line that spans two pieces is its own part, because joining the pieces would copy the whole CSV.
    """
    rest, begun = b"", False
    for piece in pieces:
        shared = piece.find(b"\n") + 1 if rest else 0
        rest += piece[:shared]
        cut = piece.rfind(b"\n") + 1
        if cut:
            parts = [part for part in (memoryview(rest), memoryview(piece)[shared:cut]) if part]
            yield parts, not begun and _has_header(parts[0], spec, stem)
            begun = True
        rest = piece[cut:] if cut else rest + piece
        if len(rest) > _LONGEST_LINE:
            raise MalformedError(f"{stem}.csv has a line of more than {_LONGEST_LINE:,} bytes, longer than any row.")
    if rest:
        yield [memoryview(rest)], not begun and _has_header(memoryview(rest), spec, stem)


def _has_header(block: memoryview, spec: Spec, stem: str) -> bool:
    """Return True if the first line is a header: spot never has one, um has since mid-2022, cm sometimes.

    Reject a line that starts with neither a column name nor a number, so that no row is lost as a header.
    """
    line = bytes(block[:_LONGEST_LINE]).partition(b"\n")[0]
    if line.endswith(b"\r"):
        raise MalformedError(f"{stem}.csv is not Binance's file: another program saved it (its lines end in CR LF).")
    if not line[:1].isalnum():
        raise MalformedError(f"{stem}.csv starts with {line[:12]!r}, neither a header nor a number.")
    if line[:1].isdigit():
        return False
    if line.count(b",") + 1 != len(spec.columns):
        raise MalformedError(
            f"{stem}.csv starts with {line[:80]!r}, neither a row nor a header of {len(spec.columns)} columns."
        )
    return True


# --- from lines to Arrow ----------------------------------------------------------------------------------------

_READ: Mapping[str, pa.DataType] = {"time": pa.int64(), "ignore": pa.string()}


_PARSE = pa_csv.ParseOptions(quote_char=False)

_ROW_OF_BLOCK = re.compile(r"Row #\d+: ")
"""Row number in Arrow's message. It counts from the start of a block, so it is dropped. The text has the row itself."""


def _type_in_csv(column: Column) -> pa.DataType:
    if column.text:
        return TIME
    return pa.int64() if column.hours else _READ.get(column.kind) or ARROW_TYPES[column.kind]


@cache
def _convert(market: Market, data_type: DataType) -> pa_csv.ConvertOptions:
    columns = SPECS[market, data_type].columns
    blank = ["", '""'] if any(c.nullable for c in columns) else []
    return pa_csv.ConvertOptions(
        column_types={c.name: _type_in_csv(c) for c in columns},
        include_columns=[c.name for c in columns if c.kind != "ignore" or c.hours],
        null_values=blank,
        true_values=["True", "true"],
        false_values=["False", "false"],
    )


def _parsed(blocks: Iterator[_Block], spec: Spec, stem: str) -> Iterator[pa.Table]:
    """Yield the rows of each block. Other threads parse a zip with many blocks while this one inflates."""
    first = list(islice(blocks, _PARSERS))
    if len(first) < _PARSERS:
        yield from (_parse(block, spec, stem) for block in first)
        return
    parsing: deque[Future[pa.Table]] = deque()
    with ThreadPoolExecutor(_PARSERS, thread_name_prefix="parse") as parsers:
        for block in chain(first, blocks):
            parsing.append(parsers.submit(_parse, block, spec, stem))
            if len(parsing) > 2 * _PARSERS:  # bounds the CSV in memory
                yield parsing.popleft().result()
        while parsing:
            yield parsing.popleft().result()


def _parse(block: _Block, spec: Spec, stem: str) -> pa.Table:
    parts, header = block
    return pa.concat_tables([_parse_lines(part, spec, header and part is parts[0], stem) for part in parts])


def _parse_lines(lines: memoryview, spec: Spec, header: bool, stem: str) -> pa.Table:
    try:
        table = pa_csv.read_csv(
            cast("BinaryIO", pa.BufferReader(lines)),
            read_options=pa_csv.ReadOptions(
                column_names=[c.name for c in spec.columns],
                skip_rows=int(header),
                block_size=max(len(lines), 1),
                use_threads=False,
            ),
            parse_options=_PARSE,
            convert_options=_convert(spec.market, spec.data_type),
        )
    except pa.ArrowException as error:
        raise MalformedError(f"{stem}.csv is not what Binance publishes: {_plain(error, spec)}.") from error
    return _checked(table, spec, stem) if any(c.text or c.nullable for c in spec.columns) else table


def _checked(table: pa.Table, spec: Spec, stem: str) -> pa.Table:
    """Refuse missing values of columns that always have one, and turn text times into microseconds."""
    for column in spec.columns:
        if column.kind == "ignore" and not column.hours:
            continue
        if not column.nullable and table.column(column.name).null_count:
            raise MalformedError(f"{stem}.csv has a row without {column.name}.")
        if column.text:
            at = table.schema.get_field_index(column.name)
            table = table.set_column(at, column.name, table.column(at).cast(pa.int64()))
        if column.hours:
            at = table.schema.get_field_index(spec.time)
            added = pc.multiply(table.column(column.name), _HOUR_US)
            table = table.set_column(at, spec.time, pc.add(table.column(at), added))
    return table


def _relabelled(raw: pa.Table, key: SeriesKey, spec: Spec, day: date) -> pa.Table:
    """Undo a change of meaning of the times of a daily file. The schema's metadata then has :data:`MOVED`.

    The file shows its labels: those of period ends reach the next midnight, those of starts begin at its own.
    """
    change = meaning_change(key, day)
    start = clock.day_start_us(day)
    if change is None or start in (times := raw.column(spec.time).to_numpy()):
        return raw
    moved = pa.chunked_array([pa.array(times + int(change.shift.total_seconds() * 1e6))])
    at = raw.schema.get_field_index(spec.time)
    return raw.set_column(at, spec.time, moved).replace_schema_metadata({MOVED: change.source})


MOVED = b"moved"
"""Key of a table's metadata whose times were moved. The value is the source of the change."""


def _plain(error: Exception, spec: Spec) -> str:
    text = _ROW_OF_BLOCK.sub("", str(error)).replace("\n", " ").strip().rstrip(".")
    if "E+" in text and "int64" in text:
        return f"{text}: a spreadsheet rounded its times"
    if text.startswith("CSV parse error: Expected"):
        return f"{text} (a row of {spec.data_type} in {spec.market} has {len(spec.columns)} columns)"
    return text


def _microseconds_per_unit(low: int, high: int, stem: str) -> int:
    """Return the file's time unit by magnitude: spot has milliseconds until 2024-12-31, and microseconds since."""
    if low >= 10**12 and high < 10**14:
        return 1000
    if low >= 10**15 and high < 10**17:
        return 1
    raise MalformedError(f"{stem}.csv has times from {low} to {high}, neither all milliseconds nor all microseconds.")


def _conform(raw: pa.Table, key: SeriesKey, spec: Spec, unit: int) -> pa.Table:
    columns: list[pa.Array[Any] | pa.ChunkedArray[Any]] = list(label_columns(key, raw.num_rows))
    for column in spec.columns:
        if column.kind == "ignore":
            continue
        values = raw.column(column.name)
        if column.kind == "time":
            values = (values if unit == 1 else pc.multiply(values, unit)).cast(TIME)
        columns.append(values)
    table = pa.table(columns, schema=lake_schema(spec.market, spec.data_type))
    return table.replace_schema_metadata(raw.schema.metadata) if raw.schema.metadata else table


def _bounds(values: pa.Array[Any] | pa.ChunkedArray[Any]) -> tuple[Any, Any]:
    """Return the least and the greatest value."""
    bounds: Any = pc.min_max(values).as_py()
    return bounds["min"], bounds["max"]


# --- from REST's JSON to Arrow ----------------------------------------------------------------------------------


def table_from_rest(rows: list[list[object]] | list[dict[str, object]], key: SeriesKey, unit: int) -> pa.Table:
    """Convert rows of a REST response to the archive's table.

    Args:
        rows: Klines are arrays in the order of the CSV. AggTrades are objects, and their unknown fields are ignored.
        unit: Microseconds in one unit of the times.

    Raises:
        MalformedError: A field is missing, of the wrong type or out of range.
    """
    spec = spec_of(key)
    columns_read = [(at, column) for at, column in enumerate(spec.columns) if column.kind != "ignore"]
    try:
        if {*map(type, rows)} != {dict if spec.columns[0].rest else list}:
            raise TypeError("a row has the wrong type")
        columns = [
            pa.nulls(len(rows), pa.int64())
            if column.spacing
            else _rest_column([row[column.rest or at] for row in rows], column, unit)  # type: ignore[index]
            for at, column in columns_read
        ]
        for at, (_, column) in enumerate(columns_read):
            if column.spacing:
                time = next(n for n, (_, other) in enumerate(columns_read) if other.name == spec.time)
                columns[at] = pa.array(hours_between(pc.cast(columns[time], pa.int64()).to_numpy()))
    except (KeyError, IndexError, TypeError, ValueError, OverflowError, pa.ArrowException) as error:
        raise MalformedError(f"REST answered malformed rows of {key}: {repr(error)[:300]}.") from error
    return pa.table([*label_columns(key, len(rows)), *columns], schema=lake_schema(key.market, key.data_type))


_JSON_TYPES: dict[str, type] = {"float": str, "int": int, "time": int, "bool": bool}
"""Types in Binance's JSON. Prices and volumes are strings, so that no digit is lost."""

_REST_TIMES_US = 10**15, 41 * 10**14
"""Plausible times of REST, in microseconds: 2001 to 2099."""


def _rest_column(values: list[object], column: Column, unit: int) -> pa.Array[Any]:
    found = {*map(type, values)} - ({type(None)} if column.nullable else set())
    if found != {_JSON_TYPES[column.kind]} and not (column.nullable and not found):
        raise TypeError(f"{column.name} is not always a JSON {_JSON_TYPES[column.kind].__name__}")
    if column.kind == "float":
        numbers = pa.array(values, pa.string()).cast(pa.float64())
        if not pc.all(pc.is_finite(numbers)).as_py():
            raise ValueError(f"{column.name} is not always a finite number")
        return numbers
    if column.kind == "time":
        times = pc.multiply_checked(pa.array(values, pa.int64()), unit)
        low, high = _bounds(times)
        if low < _REST_TIMES_US[0] or high >= _REST_TIMES_US[1]:
            raise ValueError(f"{column.name} is not always a time between 2001 and 2099")
        return times.cast(TIME)
    return pa.array(values, ARROW_TYPES[column.kind])


_HOUR_US = 3_600_000_000
_USUAL_HOURS = 8


def hours_between(times: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the hours since the row before.

    If the distance is none of Binance's intervals, because a row is missing or none is before it, use the distance to
    the next row. Without that, use eight hours, Binance's usual interval.

    >>> eight, four = 8 * 3_600_000_000, 4 * 3_600_000_000
    >>> hours_between(np.array([0, eight, eight + four, 2 * eight + 3])).tolist()
    [8, 8, 4, 4]

    Args:
        times: Times of the rows (microseconds UTC), ordered.
    """
    distances = np.round(np.diff(times) / _HOUR_US).astype(np.int64)
    since, until = np.r_[0, distances][: len(times)], np.r_[distances, 0][: len(times)]
    valid = [(hours >= 1) & (hours <= _USUAL_HOURS) for hours in (since, until)]
    return np.select(valid, [since, until], _USUAL_HOURS)
