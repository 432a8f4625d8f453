# ruff: noqa: S608 - the SQL is made of the project's own column names and of paths that are quoted.
"""Reconciliation: klines against what they can be rebuilt from, bar by bar.

Klines of 1s and 1m are rebuilt from aggTrades, those of longer intervals from klines of 1m. What is rebuilt must equal
what Binance publishes: prices and the number of trades exactly, volumes within :data:`RELATIVE`. A bar that differs is
``explained`` where the two may differ without either being wrong, a :class:`Reason` each; what remains is a fault.

The rebuilding and comparing is one pass of DuckDB over files that are named one by one. Only of days with differing
bars are the trades looked at one by one, for what explains them.

Facts of Binance: futures aggregate "market trades that fill in 100ms with the same price and the same taking side", and
leave trades of the insurance fund and of auto-deleveraging out of aggTrades (both: documentation of the futures API).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from market_data_pipeline import clock
from market_data_pipeline.findings import LACKING, OFF_GRID, Finding, Verdict
from market_data_pipeline.lake import files
from market_data_pipeline.lake.catalog import as_pattern, quoted, read_parquet
from market_data_pipeline.lake.reconciled import MAX_DIFFERENCES, DayReconciled, Difference, Reason
from market_data_pipeline.lineage import source_of
from market_data_pipeline.quality.rows import Floats, Ints, floats, ints
from market_data_pipeline.regular_files import reading
from market_data_pipeline.series import Market, SeriesKey, interval_us
from market_data_pipeline.specs import MARKETS

if TYPE_CHECKING:
    import duckdb

RELATIVE = 1e-9
"""How far sums of float64 may be apart."""

VALUE_DECIMALS = 1e-8
"""Binance writes a bar's value (quote volume, in cm base volume) with eight decimals: each trade may be rounded."""

AGGREGATED_US = 100_000
"""Futures: how long the trades of one aggTrade may be apart, in microseconds."""

_SHOWN_IDS = 20
_PLAIN = 1e-4
"""How near a derived contract size must be to a plain number to be taken for it: base volumes have eight decimals."""


@dataclass(frozen=True, slots=True)
class DaySides:
    """Both sides of a day, as they lie in the lake.

    Attributes:
        day: The UTC day.
        klines: File of the klines, the day's own or that of its month.
        source: File of the series that they are rebuilt from, likewise.
        klines_sha256: Hash of the klines, as in the ledger.
        source_sha256: Hash of the source.
        klines_findings: What the checks found in the klines.
        source_findings: What the checks found in the source.
        before_findings: What the checks found in the klines of the day before, which may reach over midnight.
        before: The source's file of the day before; None where it is not held.
        after: The source's file of the day after.
    """

    day: date
    klines: Path
    source: Path
    klines_sha256: str | None = None
    source_sha256: str | None = None
    klines_findings: tuple[Finding, ...] = ()
    source_findings: tuple[Finding, ...] = ()
    before_findings: tuple[Finding, ...] = ()
    before: Path | None = None
    after: Path | None = None


def reconcile_days(
    key: SeriesKey, days: Sequence[DaySides], *, memory_mb: int = 512, scratch: Path | None = None
) -> list[DayReconciled]:
    """Compare days of klines with what they are rebuilt from.

    Measured with two cores: 31 days of a million aggTrades take 4 s, and 190 MB of memory.

    Args:
        key: The klines.
        days: The days, each with files of both sides. All of them are one pass, so hand over a month rather than a
            year; of cm, the contract size is derived from all of them together.
        memory_mb: What DuckDB may take; beyond it, it writes to ``scratch``.
        scratch: A folder for what does not fit into memory; None means that all must.

    Returns:
        One result for each day, in the order given.

    Raises:
        duckdb.Error: a file is damaged, or was replaced meanwhile.
        DamagedFileError: the same of a file that was looked at closely.
    """
    if not days:
        return []
    source = source_of(key)
    with _connection(memory_mb, scratch) as connection:
        contract_size = _rebuild(connection, key, source, days)
        counted = _counted(connection)
        differing = _differing(connection, contract_size)
    compared_at = clock.naive_utc(clock.now())
    found = []
    for sides in days:
        start = clock.day_start_us(sides.day)
        bars = differing.get(start, [])
        reasons = _explain(key, source, sides, bars, contract_size) if bars else {}
        explained = sum(bar.at in reasons for bar in bars)
        names = _column_names(key.market)
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
    # What nothing explains comes first, so that it is kept.
    ordered = sorted(differences, key=lambda one: (bool(one.reason), one.open_time))
    return tuple(sorted(ordered[:MAX_DIFFERENCES], key=lambda one: one.open_time))


# --- rebuilding and comparing, by DuckDB -------------------------------------------------------------------------


@contextmanager
def _connection(memory_mb: int, scratch: Path | None) -> Iterator[duckdb.DuckDBPyConnection]:
    import duckdb

    with duckdb.connect() as connection:
        connection.execute(f"SET memory_limit = '{memory_mb}MB'")
        connection.execute(f"SET temp_directory = {quoted(str(scratch or ''))}")
        connection.execute("SET preserve_insertion_order = false")
        connection.execute("SET enable_progress_bar = false")
        connection.execute("SET TimeZone = 'UTC'")
        yield connection


_FIELDS = ("open", "high", "low", "close", "volume", "value", "taker_volume", "taker_value", "count")

# Sentinel rows of spot (first = last = -1) stand for no trade.
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

# Rows off the grid (spot, 2017 and 2018) belong to no bar: they explain that bars of their time differ. The file of a
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
    """Fields of a bar to columns of the klines."""
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
    """Make the tables ``k`` (klines) and ``r`` (rebuilt); return what the rebuilt values are to be multiplied with."""
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
    value = "quantity / price" if inverse else "price * quantity"
    connection.execute(f"CREATE TEMP TABLE r AS {_FROM_TRADES.format(value=value, files=listed, step=step)}")
    return _contract_size(connection) if inverse else 1.0


def _contract_size(connection: duckdb.DuckDBPyConnection) -> float | None:
    """What a contract is worth in US dollars: base volume over Σ(contracts / price), in the middle of all bars.

    The lake does not have it (it is in exchangeInfo), and single bars may be wrong: their middle is not.
    """
    answer = connection.execute(
        'SELECT k."value" / r."value" FROM k JOIN r USING (opened) WHERE k."value" > 0 AND r."value" > 0'
    ).fetchnumpy()
    (ratios,) = answer.values()
    return plain(float(np.median(ratios))) if len(ratios) else None


def plain(ratio: float) -> float:
    """A derived contract size without the rounding that is in it, where it is near to a plain number.

    >>> plain(99.99982), plain(10.0003), plain(12.34)
    (100.0, 10.0, 12.34)
    """
    near = float(f"{ratio:.1g}")
    return near if abs(ratio - near) <= _PLAIN * near else ratio


def _counted(connection: duckdb.DuckDBPyConnection) -> dict[int, int]:
    """How many candles were compared, by the start of their day in microseconds."""
    rows = connection.execute(
        f"SELECT opened // {clock.US_PER_DAY} * {clock.US_PER_DAY}, count(*) FROM k GROUP BY 1"
    ).fetchall()
    return dict(rows)


@dataclass(frozen=True, slots=True)
class _Side:
    """A bar as one side has it: prices None where it has no trade; the value is the quote's, in cm the base's."""

    open: float | None
    high: float | None
    low: float | None
    close: float | None
    volume: float
    value: float | None
    taker_volume: float
    taker_value: float | None
    count: int


_NO_TRADE = _Side(None, None, None, None, 0.0, 0.0, 0.0, 0.0, 0)


@dataclass(frozen=True, slots=True)
class _Bar:
    """A differing bar: ``at`` in microseconds since 1970 (UTC), and how many rows of the source it was made of."""

    at: int
    klines: _Side | None
    rebuilt: _Side
    rows: int


def _differing(connection: duckdb.DuckDBPyConnection, contract_size: float | None) -> dict[int, list[_Bar]]:
    """The differing bars in the order of time, by the start of their day in microseconds."""
    size = "NULL" if contract_size is None else repr(contract_size)
    values = (
        ""
        if contract_size is None
        else " AND ".join(["", *(_NEAR_VALUE.format(name, size) for name in ('"value"', "taker_value"))])
    )
    same = (
        'CASE WHEN r."count" IS NULL OR r."count" = 0 THEN k."count" = 0 AND k.volume = 0 ELSE '
        'k."open" = r."open" AND k.high = r.high AND k.low = r.low AND k."close" = r."close" AND k."count" = r."count" '
        f"AND {_NEAR.format('volume')} AND {_NEAR.format('taker_volume')}{values} END"
    )
    fields = ", ".join(f'k."{name}"' for name in _FIELDS)
    scaled = ("value", "taker_value")
    rebuilt = ", ".join(f'r."{name}" * {size}' if name in scaled else f'r."{name}"' for name in _FIELDS)
    rows = connection.execute(
        f'SELECT opened, k.volume IS NOT NULL, {fields}, {rebuilt}, r."rows" FROM k FULL JOIN r USING (opened) '
        f'WHERE (k.volume IS NOT NULL OR r."count" > 0) AND ({same}) IS NOT TRUE ORDER BY opened'
    ).fetchall()
    found: dict[int, list[_Bar]] = {}
    width = len(_FIELDS)
    for at, held, *fields_of in rows:
        traded = bool(fields_of[2 * width - 1])
        bar = _Bar(
            at,
            _Side(*fields_of[:width]) if held else None,
            _Side(*fields_of[width : 2 * width]) if traded else _NO_TRADE,
            fields_of[-1] or 0,
        )
        found.setdefault(at - at % clock.US_PER_DAY, []).append(bar)
    return found


def near(one: float, other: float, trades: int = 0) -> bool:
    """Whether two sums are the same: within :data:`RELATIVE`, and the rounding of each trade's value.

    Args:
        one: A sum of the klines.
        other: The same sum, rebuilt.
        trades: How many values were rounded; 0 for sums of quantities, which are not.
    """
    return abs(one - other) <= RELATIVE * max(abs(one), abs(other)) + VALUE_DECIMALS * trades


def _differences(bar: _Bar, names: Mapping[str, str], reason: tuple[Reason, str] | None) -> Iterator[Difference]:
    at = moment(bar.at)
    why, ids = (reason[0].value, reason[1]) if reason else ("", "")
    ours, made = bar.klines, bar.rebuilt
    if ours is None:
        yield Difference(at, "candle", None, float(made.count), why, ids)
        return
    for field, column in names.items():
        one, other = getattr(ours, field), getattr(made, field)
        if other is None and made.count:  # a value of cm, where no contract size could be derived
            continue
        if one is None or other is None or not _equal(field, one, other, ours.count):
            yield Difference(at, column, _number(one), _number(other), why, ids)


def _equal(field: str, one: float, other: float, trades: int) -> bool:
    if field in ("volume", "taker_volume"):
        return near(one, other)
    return near(one, other, trades) if field in ("value", "taker_value") else one == other


def _number(value: float | None) -> float | None:
    return None if value is None else float(value)


def moment(microseconds: int) -> datetime:
    """Microseconds since 1970 as the lake's tables keep times: UTC, without zone."""
    return datetime.fromtimestamp(microseconds // 1_000_000, UTC).replace(
        tzinfo=None, microsecond=microseconds % 1_000_000
    )


# --- explaining --------------------------------------------------------------------------------------------------


def _explain(
    key: SeriesKey, source: SeriesKey, sides: DaySides, bars: Sequence[_Bar], contract_size: float | None
) -> dict[int, tuple[Reason, str]]:
    """The reasons of those bars of a day that have one, by open time in microseconds."""
    step = interval_us(key.interval or "")
    reasons = _told(bars, sides, step, interval_us(source.interval) if source.interval else 0)
    open_bars = [bar for bar in bars if bar.at not in reasons and bar.klines is not None]
    if not open_bars:
        return reasons
    inverse = MARKETS[key.market].inverse
    if source.interval is not None:
        for bar in open_bars:
            worth = _worth(bar, None, inverse=inverse)
            if _lacks_candles(bar, source, sides, step) and _possible(bar, None, worth, opens=True, closes=True):
                reasons[bar.at] = (Reason.MISSING_CANDLES, "")
        return reasons
    trades = _read_trades(sides.source)
    holes = list(_holes(key.market, sides, trades))
    for bar in open_bars:
        reason = _left_out(bar, step, holes, _worth(bar, contract_size, inverse=inverse))
        if reason is not None:
            reasons[bar.at] = reason
    if key.market is not Market.SPOT:
        rest = [bar for bar in open_bars if bar.at not in reasons]
        reasons |= _across_bars(rest, step, trades)
    return reasons


def _told(bars: Iterable[_Bar], sides: DaySides, step: int, finer: int) -> dict[int, tuple[Reason, str]]:
    """The reasons of bars of which the days' own checks tell."""
    off_grid = list(_off_grid(sides, step, finer))
    reasons = {}
    for bar in bars:
        if any(start < bar.at + step and bar.at < end for start, end in off_grid):
            reasons[bar.at] = (Reason.OFF_GRID, "")
        elif bar.klines is None and (known := _known_gap(bar, sides.klines_findings)) is not None:
            reasons[bar.at] = (Reason.KNOWN_GAP, known)
    return reasons


def _off_grid(sides: DaySides, step: int, finer: int) -> Iterator[tuple[int, int]]:
    """When candles off the grid begin and end, of the klines and of finer ones that they are rebuilt from."""
    both = (((*sides.before_findings, *sides.klines_findings), step), (sides.source_findings, finer))
    for findings, length in both:
        for found in findings:
            if found.rule == OFF_GRID:
                yield from ((one.first, one.last + length) for one in found.ranges)


def _known_gap(bar: _Bar, findings: Iterable[Finding]) -> str | None:
    """The verdict of the gaps check on a candle that is not held although trades took place; None without one.

    The verdict ``outage`` says that no trade took place, which is not so.
    """
    for found in findings:
        lacking = found.check == "gaps" and found.rule in LACKING and found.rule != Verdict.OUTAGE
        if lacking and (not found.ranges or any(one.first <= bar.at <= one.last for one in found.ranges)):
            return found.rule
    return None


def _lacks_candles(bar: _Bar, source: SeriesKey, sides: DaySides, step: int) -> bool:
    """Whether a bar lacks candles of the finer interval in which there may have been trades."""
    fine = interval_us(source.interval or "")
    end = bar.at + step - fine
    # In an outage no trade took place: nothing is missing.
    without_trades = sum(
        max(0, (min(one.last, end) - max(one.first, bar.at)) // fine + 1)
        for found in sides.source_findings
        if found.check == "gaps" and found.rule == Verdict.OUTAGE
        for one in found.ranges
    )
    return bar.rows + without_trades < step // fine


_Worth = tuple[float, float]
"""What one of a bar's volume may have been traded for, at the least and at the most."""


def _worth(bar: _Bar, contract_size: float | None, *, inverse: bool) -> _Worth | None:
    """What one of a bar's volume was traded for by the prices of the klines; None where that cannot be told.

    Args:
        bar: The bar.
        contract_size: Of an inverse contract; where it is None, it is as what was rebuilt of this bar allows.
        inverse: Whether the volume is in contracts and the value in the base asset.
    """
    ours, made = bar.klines, bar.rebuilt
    if ours is None or not ours.low or not ours.high:
        return None
    if not inverse:
        return ours.low, ours.high
    if contract_size is not None:
        return contract_size / ours.high, contract_size / ours.low
    if not made.value or not made.volume:
        return None
    mean = made.value / made.volume
    return mean * ours.low / ours.high, mean * ours.high / ours.low


def _possible(bar: _Bar, at_most: int | None, worth: _Worth | None, *, opens: bool, closes: bool) -> bool:
    """Whether the klines are what was rebuilt and further trades.

    Args:
        bar: The bar, which has a row in the klines.
        at_most: How many further trades there may be; None for any number.
        worth: What one of the bar's volume may have been traded for, see :func:`_worth`; None where it is not known.
        opens: Whether the first of them may come before all others.
        closes: Whether the last of them may come after all others.
    """
    ours, made = bar.klines, bar.rebuilt
    if ours is None or ours.open is None or ours.close is None or ours.high is None or ours.low is None:
        return False
    further = ours.count - made.count
    if further < 0 or (at_most is not None and further > at_most):
        return False
    # A further trade has a quantity, whether or not the number of trades counts it.
    if near(ours.volume, made.volume) or not _sums_possible(ours, made, worth):
        return False
    if made.high is None or made.low is None:
        return True
    return (
        ours.high >= made.high
        and ours.low <= made.low
        and (opens or ours.open == made.open)
        and (closes or ours.close == made.close)
    )


def _sums_possible(ours: _Side, made: _Side, worth: _Worth | None) -> bool:
    """Whether further trades within the bar's prices make the sums what they are: those of takers who buy, and others.

    Neither kind takes anything away, and what each adds to the value is what its volume may be worth.
    """
    volume, taker_volume = ours.volume - made.volume, ours.taker_volume - made.taker_volume
    volume_rounding = RELATIVE * max(ours.volume, made.volume)
    volumes = taker_volume, volume - taker_volume
    if min(volumes) < -volume_rounding:
        return False
    sides = ours.value, ours.taker_value, made.value, made.taker_value
    if worth is None or None in sides:
        return True
    value, taker_value, made_value, made_taker_value = (side or 0.0 for side in sides)
    least, most = worth
    rounding = RELATIVE * max(value, made_value) + VALUE_DECIMALS * ours.count + most * volume_rounding
    taker = taker_value - made_taker_value
    return all(
        least * more - rounding <= further <= most * more + rounding
        for more, further in zip(volumes, (taker, value - made_value - taker), strict=True)
    )


@dataclass(frozen=True, slots=True)
class _Trades:
    """A day's aggTrades without sentinel rows, in the order of their ids, and the sentinels' ids."""

    ids: Ints
    first: Ints
    last: Ints
    at: Ints
    price: Floats
    quantity: Floats
    sentinels: Ints


_TRADE_COLUMNS = ["agg_trade_id", "first_trade_id", "last_trade_id", "transact_time", "price", "quantity"]


def _trades_of(table: pa.Table) -> _Trades:
    table = table.sort_by("agg_trade_id")
    real = pc.greater_equal(table.column("first_trade_id"), pa.scalar(0))
    rows = table.filter(real)
    sentinels = ints(table.filter(pc.invert(real)), "agg_trade_id")
    return _Trades(
        ids=ints(rows, "agg_trade_id"),
        first=ints(rows, "first_trade_id"),
        last=ints(rows, "last_trade_id"),
        at=ints(rows, "transact_time"),
        price=floats(rows, "price"),
        quantity=floats(rows, "quantity"),
        sentinels=sentinels,
    )


def _edge(path: Path | None, *, last: bool) -> _Trades | None:
    """The first or the last aggTrades of a file: those of one row group."""
    if path is None:
        return None
    try:
        with reading(path) as opened, pq.ParquetFile(opened) as file:
            groups = file.metadata.num_row_groups
            table = file.read_row_group(groups - 1 if last else 0, columns=_TRADE_COLUMNS) if groups else None
    except (OSError, pa.ArrowException) as error:
        raise files.damaged(path, error) from error
    trades = _trades_of(table) if table is not None else None
    return trades if trades is not None and len(trades.ids) else None


@dataclass(frozen=True, slots=True)
class _Hole:
    """Trades that may have taken place and are in no aggTrade that is held.

    Attributes:
        after: Time of the aggTrade before them, in microseconds.
        before: Time of the aggTrade after them.
        first: The first trade id; None where it is not known how many there are.
        last: The last trade id.
        reason: Why they are not there.
    """

    after: int
    before: int
    first: int | None
    last: int | None
    reason: Reason

    @property
    def ids(self) -> str:
        """The trade ids in words."""
        if self.first is None or self.last is None:
            return ""
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


def _holes(market: Market, sides: DaySides, trades: _Trades) -> Iterator[_Hole]:
    """The holes in the ids of a day's trades, with those across the midnights before and after."""
    start = clock.day_start_us(sides.day)
    end = start + clock.US_PER_DAY
    before, after = _edge(sides.before, last=True), _edge(sides.after, last=False)
    if len(trades.ids) == 0 and (before is None or after is None):
        yield _Hole(start - 1, end, None, None, Reason.MISSING_TRADES)
        return
    pieces = [(before, slice(-1, None)), (trades, slice(None)), (after, slice(0, 1))]
    ids, first, last, at = (
        np.concatenate([getattr(piece, name)[part] for piece, part in pieces if piece is not None])
        for name in ("ids", "first", "last", "at")
    )
    if before is None and trades.ids[0] != MARKETS[market].first_agg_trade_id:
        yield _Hole(start - 1, int(trades.at[0]), None, None, Reason.MISSING_TRADES)
    if after is None:
        yield _Hole(int(trades.at[-1]), end, None, None, Reason.MISSING_TRADES)
    for n in np.flatnonzero((np.diff(ids) > 1) | (first[1:] - last[:-1] > 1)):
        one, other = int(ids[n]), int(ids[n + 1])
        taken_back = int(np.count_nonzero((trades.sentinels > one) & (trades.sentinels < other)))
        times = int(min(at[n], at[n + 1])), int(max(at[n], at[n + 1]))
        trade_ids = int(last[n]) + 1, int(first[n + 1]) - 1
        if other - one - 1 > taken_back:
            yield _Hole(*times, *trade_ids, Reason.MISSING_TRADES)
        elif taken_back:
            yield _Hole(*times, *trade_ids, Reason.TAKEN_BACK)
        elif market is not Market.SPOT:
            yield _Hole(*times, *trade_ids, Reason.SKIPPED_TRADES)


def _left_out(bar: _Bar, step: int, holes: Iterable[_Hole], worth: _Worth | None) -> tuple[Reason, str] | None:
    """Why a bar has further trades than were rebuilt, where that can be."""
    end = bar.at + step
    inside = [hole for hole in holes if hole.after < end and hole.before >= bar.at]
    sizes = [hole.last - hole.first + 1 for hole in inside if hole.first is not None and hole.last is not None]
    at_most = sum(sizes) if len(sizes) == len(inside) else None
    opens, closes = any(hole.after < bar.at for hole in inside), any(hole.before >= end for hole in inside)
    if not inside or not _possible(bar, at_most, worth, opens=opens, closes=closes):
        return None
    # The gravest reason: what is missing in the lake before what Binance leaves out.
    order = (Reason.MISSING_TRADES, Reason.TAKEN_BACK, Reason.SKIPPED_TRADES)
    reason = min((hole.reason for hole in inside), key=order.index)
    named = [hole.ids for hole in inside if hole.reason is reason and hole.ids]
    return reason, _shown(named)


def _shown(ids: Sequence[str]) -> str:
    more = len(ids) - _SHOWN_IDS
    return ", ".join(ids[:_SHOWN_IDS]) + (f" and {more} more" if more > 0 else "")


# --- aggTrades on both sides of a bar's edge -----------------------------------------------------------------------


def _across_bars(bars: Sequence[_Bar], step: int, trades: _Trades) -> dict[int, tuple[Reason, str]]:
    """Bars next to each other of which one has what the other lacks, where an aggTrade at the edge allows it.

    An aggTrade has one time, and its trades may be up to 100 ms apart: those that lie beyond the edge of a bar are in
    the klines of the bar next to it.
    """
    reasons: dict[int, tuple[Reason, str]] = {}
    for run in _runs(bars, step):
        edges = _moved(run, step, trades)
        if edges is None:
            continue
        for n, bar in enumerate(run):
            ids = sorted({int(trades.ids[row]) for rows in edges[n : n + 2] for row in rows})
            reasons[bar.at] = (Reason.ACROSS_BARS, _shown([str(one) for one in ids]))
    return reasons


def _runs(bars: Sequence[_Bar], step: int) -> Iterator[list[_Bar]]:
    run: list[_Bar] = []
    for bar in bars:
        if run and bar.at != run[-1].at + step:
            yield run
            run = []
        run.append(bar)
    if run:
        yield run


def _moved(run: Sequence[_Bar], step: int, trades: _Trades) -> list[list[int]] | None:
    """The aggTrades (rows) at each edge of a run of bars, the outer ones empty; None where they explain it not."""
    edges: list[list[int]] = [[]]
    flows = [0]
    count, volume = 0, 0.0
    rounding = RELATIVE * sum(bar.rebuilt.volume for bar in run)
    for bar in run:
        if bar.klines is None:
            return None
        count += bar.klines.count - bar.rebuilt.count
        volume += bar.klines.volume - bar.rebuilt.volume
        edge = bar.at + step
        # What the klines have more before the edge stands in aggTrades after it, and the other way round.
        low, high = (edge, edge + AGGREGATED_US) if count > 0 else (edge - AGGREGATED_US, edge)
        rows = np.flatnonzero((trades.at >= low) & (trades.at < high) & (trades.last > trades.first)) if count else ()
        room = sum(int(trades.last[row] - trades.first[row]) for row in rows)
        quantity = sum(float(trades.quantity[row]) for row in rows)
        # At least one trade of an aggTrade stays on its side; where none crosses, no volume does.
        if abs(count) > room or (abs(volume) >= quantity if count else abs(volume) > rounding):
            return None
        edges.append([int(row) for row in rows])
        flows.append(count)
    if count or not _same_in_sum(run):
        return None
    for n, bar in enumerate(run):
        # Into a bar comes what flows back over its left edge or on over its right one.
        left = {float(trades.price[row]) for row in edges[n]} if flows[n] < 0 else set()
        right = {float(trades.price[row]) for row in edges[n + 1]} if flows[n + 1] > 0 else set()
        if not _with_prices(bar, left, right):
            return None
    return edges


def _same_in_sum(run: Sequence[_Bar]) -> bool:
    """Whether nothing is lost or won among bars."""
    sides = [(bar.klines, bar.rebuilt) for bar in run if bar.klines is not None]
    trades = sum(ours.count for ours, _ in sides)
    return all(
        _equal(
            name,
            sum(getattr(ours, name) or 0 for ours, _ in sides),
            sum(getattr(made, name) or 0 for _, made in sides),
            trades,
        )
        for name in ("volume", "taker_volume", "value", "taker_value")
        if all(getattr(made, name) is not None for _, made in sides)
    )


def _with_prices(bar: _Bar, left: set[float], right: set[float]) -> bool:
    """Whether a bar has the prices that were rebuilt, or those of trades that came over its edges."""
    ours, made = bar.klines, bar.rebuilt
    if ours is None:
        return False
    return (
        ours.open in {made.open, *left, *(right if made.open is None else ())}
        and ours.close in {made.close, *right, *(left if made.close is None else ())}
        and ours.high in {made.high, *left, *right}
        and ours.low in {made.low, *left, *right}
    )


def _read_trades(path: Path) -> _Trades:
    return _trades_of(files.read_table(path, _TRADE_COLUMNS))
