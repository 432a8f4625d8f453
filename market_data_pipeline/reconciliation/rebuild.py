# ruff: noqa: S608 - the SQL consists of the project's own column names and of quoted paths.
"""Rebuild klines from their source and compare the two, bar by bar, in one pass of DuckDB.

Klines of 1s and 1m are rebuilt from trades or aggTrades, those of longer intervals from klines of 1m. Prices and the
number of trades must be equal, volumes within :data:`RELATIVE`. Reasons for differences belong to ``explain.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from market_data_pipeline import clock
from market_data_pipeline.model.datasets import MARKETS
from market_data_pipeline.model.lineage import source_of
from market_data_pipeline.model.reconciliation import MAX_DIFFERENCES, DayReconciled, Difference, Reason
from market_data_pipeline.model.series import DataType, Market, SeriesKey, interval_us
from market_data_pipeline.reconciliation.bars import (
    NO_TRADE,
    RELATIVE,
    VALUE_DECIMALS,
    Bar,
    DaySides,
    Side,
    equal,
)
from market_data_pipeline.reconciliation.explain import explain_bars
from market_data_pipeline.sql.file_lists import as_pattern, quoted, read_parquet
from market_data_pipeline.sql.object_files import attach_objects

if TYPE_CHECKING:
    import duckdb

_PLAIN = 1e-4
"""Relative distance within which a derived contract size is rounded to one digit. Base volumes have eight decimals."""


def reconcile_days(
    key: SeriesKey,
    days: Sequence[DaySides],
    *,
    source: SeriesKey | None = None,
    memory_mb: int = 512,
    scratch: Path | None = None,
) -> list[DayReconciled]:
    """Compare days of klines with klines rebuilt from their source.

    On two cores, 31 days of a million aggTrades take 4 s and 190 MB of memory.

    Args:
        days: The days, each with files of both sides. One pass reads all of them, so pass a month rather than a year.
            In cm, the contract size is derived from all of them together.
        source: The source, one of :func:`sources_of`. Defaults to :func:`source_of`.
        memory_mb: DuckDB's memory limit. Beyond it, DuckDB writes to ``scratch``.
        scratch: Folder for temporary files. None means that everything must fit into memory.

    Returns:
        One result for each day, in the order given.

    Raises:
        duckdb.Error: a file is damaged, or was replaced meanwhile.
        DamagedFileError: the same, for a file that is read to explain differences.
    """
    if not days:
        return []
    import duckdb

    source = source or source_of(key)
    limits = {"memory_limit": f"{memory_mb}MB", "temp_directory": str(scratch or "")}
    with duckdb.connect(config={**limits, "preserve_insertion_order": False}) as connection:
        attach_objects(connection, days[0].klines)
        connection.execute("SET TimeZone = 'UTC'; SET enable_progress_bar = false")
        contract_size = _rebuild(connection, key, source, days)
        candles = f"SELECT opened // {clock.US_PER_DAY} * {clock.US_PER_DAY}, count(*) FROM k GROUP BY 1"
        counted = dict(connection.execute(candles).fetchall())
        differing = _differing(connection, contract_size)
    compared_at, names = clock.naive_utc(clock.now()), _column_names(key.market)
    found = []
    for sides in days:
        start = clock.day_start_us(sides.day)
        bars = differing.get(start, [])
        reasons = explain_bars(key, source, sides, bars, contract_size) if bars else {}
        explained = sum(bar.at in reasons for bar in bars)
        differences = chain.from_iterable(_differences(bar, names, reasons.get(bar.at)) for bar in bars)
        found.append(
            DayReconciled(
                day=sides.day,
                source=str(source),
                klines_sha256=sides.klines_sha256,
                source_sha256=sides.source_sha256,
                compared_at=compared_at,
                bars=counted.get(start, 0),
                differing=len(bars),
                explained=explained,
                contract_size=contract_size if MARKETS[key.market].inverse and source.interval is None else None,
                differences=_first(differences),
            )
        )
    return found


def _first(differences: Iterable[Difference]) -> tuple[Difference, ...]:
    # Unexplained differences come first, so that the limit does not drop them.
    ordered = sorted(differences, key=lambda one: (bool(one.reason), one.open_time))
    return tuple(sorted(ordered[:MAX_DIFFERENCES], key=lambda one: one.open_time))


# --- rebuilding and comparing, by DuckDB -------------------------------------------------------------------------


_FIELDS = ("open", "high", "low", "close", "volume", "value", "taker_volume", "taker_value", "count")

# Sentinel rows of spot (first = last = -1) are no trades.
_FROM_TRADES = """
SELECT
    epoch_us(transact_time) // {step} * {step} AS opened,
    arg_min(price, agg_trade_id) AS "open", max(price) AS high, min(price) AS low,
    arg_max(price, agg_trade_id) AS "close",
    sum(quantity) AS volume, sum({value}) AS "value",
    sum(CASE WHEN is_buyer_maker THEN 0 ELSE quantity END) AS taker_volume,
    sum(CASE WHEN is_buyer_maker THEN 0 ELSE {value} END) AS taker_value,
    CAST(sum(last_trade_id - first_trade_id + 1) AS BIGINT) AS "count",
    count(*) AS "rows"
FROM {files} WHERE first_trade_id >= 0 GROUP BY 1
"""

_FROM_SINGLE_TRADES = """
SELECT
    epoch_us("time") // {step} * {step} AS opened,
    arg_min(price, id) AS "open", max(price) AS high, min(price) AS low, arg_max(price, id) AS "close",
    sum(qty) AS volume, sum({value}) AS "value",
    sum(CASE WHEN is_buyer_maker THEN 0 ELSE qty END) AS taker_volume,
    sum(CASE WHEN is_buyer_maker THEN 0 ELSE {value} END) AS taker_value,
    count(*) AS "count",
    count(*) AS "rows"
FROM {files} GROUP BY 1
"""

# A flat candle (no trade) repeats the last price, which is no price of this bar.
_FROM_CANDLES = """
SELECT
    opened // {step} * {step} AS opened,
    arg_min("open", opened) FILTER ("count" > 0) AS "open", max(high) FILTER ("count" > 0) AS high,
    min(low) FILTER ("count" > 0) AS low, arg_max("close", opened) FILTER ("count" > 0) AS "close",
    sum(volume) AS volume, sum("value") AS "value",
    sum(taker_volume) AS taker_volume, sum(taker_value) AS taker_value,
    CAST(sum("count") AS BIGINT) AS "count",
    count(*) AS "rows"
FROM ({candles}) GROUP BY 1
"""

# Rows off the grid (spot, 2017 and 2018) belong to no bar. They explain why bars of their time differ. The file of a
# closed month has other days, too.
_CANDLES = """
SELECT
    epoch_us(open_time) AS opened, "open", high, low, "close", volume, {quote}_volume AS "value",
    taker_buy_volume AS taker_volume, taker_buy_{quote}_volume AS taker_value, "count"
FROM {files} WHERE epoch_us(open_time) % {step} = 0 AND CAST(open_time AS DATE) IN ({days})
"""

_NEAR = f"abs(k.{{0}} - r.{{0}}) <= {RELATIVE!r} * greatest(abs(k.{{0}}), abs(r.{{0}}))"
_NEAR_VALUE = (
    f"abs(k.{{0}} - r.{{0}} * {{1}}) <= {RELATIVE!r} * greatest(abs(k.{{0}}), abs(r.{{0}} * {{1}})) "
    f'+ {VALUE_DECIMALS!r} * k."count"'
)


def _quote(market: Market) -> str:
    return "base" if MARKETS[market].inverse else "quote"


def _column_names(market: Market) -> Mapping[str, str]:
    """Return the column of the klines for each field of a bar."""
    quote = _quote(market)
    renamed = {
        "value": f"{quote}_volume",
        "taker_volume": "taker_buy_volume",
        "taker_value": f"taker_buy_{quote}_volume",
    }
    return {name: renamed.get(name, name) for name in _FIELDS}


def _listed(paths: Iterable[Path]) -> str:
    """Return SQL that reads each of the files once."""
    return read_parquet(f"[{', '.join(quoted(as_pattern(path)) for path in dict.fromkeys(paths))}]")


def _rebuild(
    connection: duckdb.DuckDBPyConnection, key: SeriesKey, source: SeriesKey, days: Sequence[DaySides]
) -> float | None:
    """Create the tables ``k`` (klines) and ``r`` (rebuilt). Return the factor for rebuilt values."""
    step, quote = interval_us(key.interval or ""), _quote(key.market)
    dates = ", ".join(f"DATE '{one.day}'" for one in days)
    klines = _CANDLES.format(quote=quote, files=_listed(one.klines for one in days), step=step, days=dates)
    connection.execute(f"CREATE TEMP TABLE k AS {klines}")
    listed = _listed(one.source for one in days)
    inverse = MARKETS[key.market].inverse
    if source.interval is not None:
        candles = _CANDLES.format(quote=quote, files=listed, step=interval_us(source.interval), days=dates)
        connection.execute(f"CREATE TEMP TABLE r AS {_FROM_CANDLES.format(candles=candles, step=step)}")
        return 1.0
    single = source.data_type is DataType.TRADES
    quantity, query = ("qty", _FROM_SINGLE_TRADES) if single else ("quantity", _FROM_TRADES)
    value = f"{quantity} / price" if inverse else f"price * {quantity}"
    connection.execute(f"CREATE TEMP TABLE r AS {query.format(value=value, files=listed, step=step)}")
    return _contract_size(connection) if inverse else 1.0


def _contract_size(connection: duckdb.DuckDBPyConnection) -> float | None:
    """Return the size of a contract in US dollars: the median over all bars of base volume / Σ(contracts / price).

    The lake does not store it (exchangeInfo has it). The median is robust against single wrong bars.
    """
    answer = connection.execute(
        'SELECT k."value" / r."value" FROM k JOIN r USING (opened) WHERE k."value" > 0 AND r."value" > 0'
    ).fetchnumpy()
    (ratios,) = answer.values()
    return rounded_size(float(np.median(ratios))) if len(ratios) else None


def rounded_size(ratio: float) -> float:
    """Round a derived contract size to one digit, if it is near to that.

    >>> rounded_size(99.99982), rounded_size(10.0003), rounded_size(12.34)
    (100.0, 10.0, 12.34)
    """
    near = float(f"{ratio:.1g}")
    return near if abs(ratio - near) <= _PLAIN * near else ratio


def _differing(connection: duckdb.DuckDBPyConnection, contract_size: float | None) -> dict[int, list[Bar]]:
    """Return the differing bars, ordered by time, by the start of their day in microseconds."""
    size = "NULL" if contract_size is None else repr(contract_size)
    scaled = ("value", "taker_value")
    equal_fields = " AND ".join(
        [
            *(f'k."{name}" = r."{name}"' for name in ("open", "high", "low", "close", "count")),
            *(_NEAR.format(name) for name in ("volume", "taker_volume")),
            *(_NEAR_VALUE.format(f'"{name}"', size) for name in scaled if contract_size is not None),
        ]
    )
    same = f'CASE WHEN r."count" IS NULL OR r."count" = 0 THEN k."count" = 0 AND k.volume = 0 ELSE {equal_fields} END'
    fields = ", ".join(f'k."{name}"' for name in _FIELDS)
    rebuilt = ", ".join(f'r."{name}" * {size}' if name in scaled else f'r."{name}"' for name in _FIELDS)
    rows = connection.execute(
        f'SELECT opened, k.volume IS NOT NULL, {fields}, {rebuilt}, r."rows" FROM k FULL JOIN r USING (opened) '
        f'WHERE (k.volume IS NOT NULL OR r."count" > 0) AND ({same}) IS NOT TRUE ORDER BY opened'
    ).fetchall()
    found: dict[int, list[Bar]] = {}
    width = len(_FIELDS)
    for at, stored, *fields_of in rows:
        traded = bool(fields_of[2 * width - 1])
        bar = Bar(
            at,
            Side(*fields_of[:width]) if stored else None,
            Side(*fields_of[width : 2 * width]) if traded else NO_TRADE,
            fields_of[-1] or 0,
        )
        found.setdefault(at - at % clock.US_PER_DAY, []).append(bar)
    return found


def _differences(bar: Bar, names: Mapping[str, str], reason: tuple[Reason, str] | None) -> Iterator[Difference]:
    at = clock.naive_from_us(bar.at)
    why, ids = (reason[0].value, reason[1]) if reason else ("", "")
    ours, made = bar.klines, bar.rebuilt
    if ours is None:
        yield Difference(at, "candle", None, float(made.count), why, ids)
        return
    for field, column in names.items():
        one, other = getattr(ours, field), getattr(made, field)
        if other is None and made.count:  # a value of cm without a derived contract size
            continue
        if one is None or other is None or not equal(field, one, other, ours.count):
            yield Difference(at, column, _number(one), _number(other), why, ids)


def _number(value: float | None) -> float | None:
    return None if value is None else float(value)
