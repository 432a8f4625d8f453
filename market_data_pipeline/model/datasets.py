"""Datasets: the one table of what each market and data type looks like, with columns, units, endpoints and bounds.

Code that downloads, parses or checks does not belong here. It reads the facts from here.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
from typing import Literal

from market_data_pipeline.model.series import INTERVALS, DataType, Market, SeriesKey

MOST_PAGES = 200
"""Pages of one listing, at most: 200,000 keys. A folder of daily files has eight after ten years."""

Compression = Literal["zstd", "lz4"]
Kind = Literal["time", "day", "int", "float", "bool", "word", "ignore"]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the lake, and of the archive's CSV where it comes from there.

    Attributes:
        name: Name in the lake.
        kind: What its values are. ``time`` columns are integers in the source, in milliseconds or microseconds since
            1970; a ``word`` is mostly the same from row to row; what is to ``ignore`` is in the CSV only.
        rest: Field of the REST answer, where rows are objects (kline rows are arrays in the CSV's order).
    """

    name: str
    kind: Kind
    rest: str = ""


@dataclass(frozen=True, slots=True)
class RestEndpoint:
    """How a data type is asked for over REST.

    Attributes:
        path: Path below the market's host.
        page: Rows asked for by one request: the size that costs least weight by row.
        weight: What such a request costs.
        max_span: Longest time between startTime and endTime in one request.
        reach: How far back from now it answers; None where there is no limit. Older rows come from the archive only.
    """

    path: str
    page: int
    weight: int
    max_span: timedelta | None = None
    reach: timedelta | None = None


@dataclass(frozen=True, slots=True)
class MarketSpec:
    """A market's REST API.

    Attributes:
        time_path: Endpoint of the server's clock.
        weight_per_minute: The budget of one IP address.
        budget: Markets with the same name here are counted together by Binance, whichever host is asked.
        microseconds: Whether the API speaks microseconds when asked by the header ``X-MBX-TIME-UNIT``.
        inverse: Contracts that are margined in the base asset: volume is in contracts, VWAP is Σq / Σ(q/p).
        first_agg_trade_id: The id of a symbol's first aggTrade.
    """

    time_path: str
    weight_per_minute: int
    budget: str
    microseconds: bool
    inverse: bool
    first_agg_trade_id: int


MARKETS: dict[Market, MarketSpec] = {
    Market.SPOT: MarketSpec("/api/v3/time", 6000, "spot", True, False, 0),
    # One budget since COIN-M was joined to USDⓈ-M on 2026-06-30.
    Market.UM: MarketSpec("/fapi/v1/time", 2400, "futures", False, False, 1),
    Market.CM: MarketSpec("/dapi/v1/time", 2400, "futures", False, True, 1),
}


@dataclass(frozen=True, slots=True)
class Spec:
    """What a data type looks like in a market.

    Attributes:
        columns: The CSV's columns in order.
        key: The column by which rows are unique and ordered.
        time: The column that says which day a row belongs to.
        rest: Its REST endpoint.
        monthly: Whether a monthly zip may stand for daily ones. Not for aggTrades: their months are a gigabyte, and
            what it would save is 30 requests among 30 big downloads.
        dictionary: Columns written with dictionary encoding (beside symbol and interval).
        delta: Columns written with DELTA_BINARY_PACKED.
        compression: How the columns are compressed.
    """

    market: Market
    data_type: DataType
    columns: tuple[Column, ...]
    key: str
    time: str
    rest: RestEndpoint
    monthly: bool
    dictionary: tuple[str, ...]
    delta: tuple[str, ...]
    compression: Compression


def _kline_columns(quote: str) -> tuple[Column, ...]:
    return (
        Column("open_time", "time"),
        Column("open", "float"),
        Column("high", "float"),
        Column("low", "float"),
        Column("close", "float"),
        Column("volume", "float"),
        Column("close_time", "time"),
        Column(f"{quote}_volume", "float"),
        Column("count", "int"),
        Column("taker_buy_volume", "float"),
        Column(f"taker_buy_{quote}_volume", "float"),
        Column("ignore", "ignore"),
    )


_AGG_TRADE_COLUMNS = (
    Column("agg_trade_id", "int", "a"),
    Column("price", "float", "p"),
    Column("quantity", "float", "q"),
    Column("first_trade_id", "int", "f"),
    Column("last_trade_id", "int", "l"),
    Column("transact_time", "time", "T"),
    Column("is_buyer_maker", "bool", "m"),
)


def _klines(market: Market, rest: RestEndpoint) -> Spec:
    # In cm, volume is in contracts, and the columns that hold the quote volume elsewhere hold the base asset's.
    columns = _kline_columns("base" if MARKETS[market].inverse else "quote")
    delta = ("open_time", "close_time", "count")
    # Against zstd, days of 1m take half of the time to write and to read and queries over months two thirds, for a
    # fifth more bytes: a column of a day is so short that zstd mostly prepares.
    return Spec(market, DataType.KLINES, columns, "open_time", "open_time", rest, True, (), delta, "lz4")


def _agg_trades(market: Market, columns: tuple[Column, ...], rest: RestEndpoint) -> Spec:
    delta = ("agg_trade_id", "first_trade_id", "last_trade_id", "transact_time")
    dictionary = ("quantity",)
    return Spec(
        market, DataType.AGG_TRADES, columns, "agg_trade_id", "transact_time", rest, False, dictionary, delta, "zstd"
    )


_HOUR = timedelta(hours=1)
# Futures klines weigh 2 up to 499 rows, 5 up to 1000, 10 above: pages of 499 are the cheapest by row. Futures aggTrades
# reach back 48 hours (um, since 2026-08-18) and 24 hours (cm, since 2026-06-26).
_ROWS = (
    _klines(Market.SPOT, RestEndpoint("/api/v3/klines", 1000, 2)),
    _klines(Market.UM, RestEndpoint("/fapi/v1/klines", 499, 2)),
    _klines(Market.CM, RestEndpoint("/dapi/v1/klines", 499, 2, max_span=timedelta(days=200))),
    _agg_trades(
        Market.SPOT,
        (*_AGG_TRADE_COLUMNS, Column("is_best_match", "bool", "M")),
        RestEndpoint("/api/v3/aggTrades", 1000, 4, max_span=_HOUR),
    ),
    _agg_trades(
        Market.UM,
        _AGG_TRADE_COLUMNS,
        RestEndpoint("/fapi/v1/aggTrades", 1000, 20, max_span=_HOUR, reach=48 * _HOUR),
    ),
    _agg_trades(
        Market.CM,
        _AGG_TRADE_COLUMNS,
        RestEndpoint("/dapi/v1/aggTrades", 1000, 20, max_span=_HOUR, reach=24 * _HOUR),
    ),
)

SPECS: dict[tuple[Market, DataType], Spec] = {(spec.market, spec.data_type): spec for spec in _ROWS}


_TRADE_PROFILE_COLUMNS = (
    Column("day", "day"),
    Column("vwap", "float"),
    Column("high", "float"),
    Column("low", "float"),
    Column("point_of_control", "float"),
    Column("point_of_control_volume", "float"),
    Column("level_size", "float"),
    Column("volume", "float"),
    Column("buy_volume", "float"),
    Column("sell_volume", "float"),
    Column("cumulative_delta", "float"),
    Column("trades", "int"),
    Column("agg_trades", "int"),
)
"""Of the derived tradeProfile: one row a day. Volumes are in the base asset, in contracts for cm."""


def spec_of(key: SeriesKey) -> Spec:
    """The row of the table for a series that Binance publishes."""
    return SPECS[key.market, key.data_type]


def data_types_of(market: Market) -> tuple[DataType, ...]:
    """The data types that a market has, derived ones included, in the order of :class:`DataType`."""
    return tuple(
        data_type
        for data_type in DataType
        if (market, DataType.AGG_TRADES if data_type is DataType.TRADE_PROFILE else data_type) in SPECS
    )


def lake_columns(market: Market, data_type: DataType) -> tuple[Column, ...]:
    """The columns of a series' files in the lake, derived types included: symbol (and interval), then its own."""
    labels = ("symbol", "interval") if data_type.has_interval else ("symbol",)
    own = _TRADE_PROFILE_COLUMNS if data_type is DataType.TRADE_PROFILE else SPECS[market, data_type].columns
    return (*(Column(label, "word") for label in labels), *(column for column in own if column.kind != "ignore"))


def monthly_may_stand(key: SeriesKey) -> bool:
    """Whether a monthly zip of the series is worth taking for its days (1s klines are as bulky as trades)."""
    return spec_of(key).monthly and key.interval is not None and INTERVALS[key.interval] >= 60


def closes_months(data_type: DataType) -> bool:
    """Whether the days of a month that is over are put into one file: candles are many small files otherwise."""
    return data_type is DataType.KLINES


def expected_rows(key: SeriesKey) -> int | None:
    """Candles in a whole day of a klines series; None where the number is not known beforehand."""
    return None if key.interval is None else 86_400 // INTERVALS[key.interval]


MOST_TRADES_A_DAY = 50_000_000
"""Upper bound of a day's aggTrades. The busiest days of spot BTCUSDT, in the months without fees of 2022 and 2023, have
10 to 20 million trades, and fewer aggTrades; a day of um BTCUSDT has 1 to 5 million."""

_REPEATED_ROWS = 100
"""Rows that an archive may have again, or off the grid, beside twice those that its days can have."""


def most_rows(key: SeriesKey, days: int) -> int:
    """Return how many rows an archive of so many days can have at most.

    Real archives repeat rows (binance-public-data #203) and have candles off the grid (2018-02-09), so the bound of
    candles is twice their number and a bit more.
    """
    expected = expected_rows(key)
    return MOST_TRADES_A_DAY * days if expected is None else most_repeated(expected * days)


def most_repeated(rows: int) -> int:
    """Return how many rows an archive can have at most that repeats so many."""
    return 2 * rows + _REPEATED_ROWS


ARCHIVE_BEGINS = date(2017, 7, 14)
"""The day of Binance's first trade: nothing can be older."""
