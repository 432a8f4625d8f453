"""Facts about each market and data type in one table: columns, units, endpoints and bounds.

Code that downloads, parses or checks does not belong here. It reads the facts from here.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
from typing import Literal

from market_data_pipeline.model.series import INTERVALS, DataType, Market, SeriesKey

MOST_PAGES = 200
"""Most pages of one listing, which is 200,000 keys. A folder of daily files has eight pages after ten years."""

Compression = Literal["zstd", "lz4"]
ColumnKind = Literal["time", "day", "int", "float", "bool", "word", "ignore"]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the lake, and of the archive's CSV if the CSV has it.

    Attributes:
        name: Name in the lake.
        kind: Kind of the values. ``time`` is an integer in the source, in milliseconds or microseconds since 1970. A
            ``word`` is mostly the same from row to row. An ``ignore`` column is in the CSV only.
        rest: Field of the REST answer if its rows are objects. Kline rows are arrays in the CSV's order.
    """

    name: str
    kind: ColumnKind
    rest: str = ""


@dataclass(frozen=True, slots=True)
class RestEndpoint:
    """The REST endpoint of a data type.

    Attributes:
        path: Path below the market's host.
        page: Rows per request. This size costs the least weight per row.
        weight: Request weight of one page.
        max_span: Longest time between startTime and endTime in one request.
        reach: Age of the oldest rows that REST serves. None means no limit. Older rows come from the archive only.
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
        weight_per_minute: Request weight per minute and IP address.
        budget: Name of the weight budget. Binance counts markets of one budget together, on all hosts.
        microseconds: True if the API sends microseconds with the header ``X-MBX-TIME-UNIT``.
        inverse: True for contracts margined in the base asset. Volume is in contracts, VWAP is Σq / Σ(q/p).
        first_agg_trade_id: Id of a symbol's first aggTrade.
    """

    time_path: str
    weight_per_minute: int
    budget: str
    microseconds: bool
    inverse: bool
    first_agg_trade_id: int


MARKETS: dict[Market, MarketSpec] = {
    Market.SPOT: MarketSpec("/api/v3/time", 6000, "spot", True, False, 0),
    # Binance counts COIN-M and USDⓈ-M in one budget since 2026-06-30.
    Market.UM: MarketSpec("/fapi/v1/time", 2400, "futures", False, False, 1),
    Market.CM: MarketSpec("/dapi/v1/time", 2400, "futures", False, True, 1),
}


@dataclass(frozen=True, slots=True)
class Spec:
    """The form of a data type in a market.

    Attributes:
        columns: Columns of the CSV in order.
        key: Column by which rows are unique and ordered.
        time: Column that assigns a row to its day.
        monthly: True if a monthly zip may replace daily ones. False for aggTrades: a month is a gigabyte, and saves
            only 30 requests among 30 big downloads.
        dictionary: Columns with dictionary encoding, in addition to symbol and interval.
        delta: Columns with the encoding DELTA_BINARY_PACKED.
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
    # In cm, volume is in contracts, and base asset volume takes the place of quote volume.
    columns = _kline_columns("base" if MARKETS[market].inverse else "quote")
    delta = ("open_time", "close_time", "count")
    # Compared with zstd, lz4 halves the time to write and read a day of 1m and takes two thirds of the time of queries
    # over months. Files are a fifth larger. The columns of a day are so short that zstd mostly spends time on setup.
    return Spec(market, DataType.KLINES, columns, "open_time", "open_time", rest, True, (), delta, "lz4")


def _agg_trades(market: Market, columns: tuple[Column, ...], rest: RestEndpoint) -> Spec:
    delta = ("agg_trade_id", "first_trade_id", "last_trade_id", "transact_time")
    dictionary = ("quantity",)
    return Spec(
        market, DataType.AGG_TRADES, columns, "agg_trade_id", "transact_time", rest, False, dictionary, delta, "zstd"
    )


_HOUR = timedelta(hours=1)
# Futures klines cost 2 up to 499 rows, 5 up to 1000 and 10 above, so pages of 499 are the cheapest per row. Futures
# aggTrades reach back 48 hours (um, since 2026-08-18) and 24 hours (cm, since 2026-06-26).
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
"""Columns of the derived tradeProfile, one row per day. Volumes are in the base asset, for cm in contracts."""


@dataclass(frozen=True, slots=True)
class Words:
    """Words for a data type where people read its series.

    Attributes:
        suffix: Word after the symbol in an asset's name, without ``_``. Empty if the interval is enough.
        headline: First line of an asset's description, with ``{symbol}``, ``{interval}`` and ``{market}``.
    """

    suffix: str
    headline: str


WORDS: dict[DataType, Words] = {
    DataType.KLINES: Words("", "Candles of {symbol} every {interval} from Binance {market}, one row per candle."),
    DataType.AGG_TRADES: Words(
        "aggTrades", "Aggregated trades of {symbol} from Binance {market}, one row per order, price and time."
    ),
    DataType.TRADE_PROFILE: Words(
        "tradeProfile", "Daily trade statistics of {symbol} from Binance {market}, one row per day."
    ),
}


def spec_of(key: SeriesKey) -> Spec:
    """Return the facts of a series that Binance publishes."""
    return SPECS[key.market, key.data_type]


def data_types_of(market: Market) -> tuple[DataType, ...]:
    """Return the data types of a market, including derived ones, in the order of :class:`DataType`."""
    return tuple(
        data_type
        for data_type in DataType
        if (market, DataType.AGG_TRADES if data_type is DataType.TRADE_PROFILE else data_type) in SPECS
    )


def lake_columns(market: Market, data_type: DataType) -> tuple[Column, ...]:
    """Return the columns of a series' files in the lake, also for derived types. Symbol and interval come first."""
    labels = ("symbol", "interval") if data_type.has_interval else ("symbol",)
    own = _TRADE_PROFILE_COLUMNS if data_type is DataType.TRADE_PROFILE else SPECS[market, data_type].columns
    return (*(Column(label, "word") for label in labels), *(column for column in own if column.kind != "ignore"))


def monthly_may_replace(key: SeriesKey) -> bool:
    """Return True if a monthly zip may replace the daily zips. 1s klines are too bulky, like trades."""
    return spec_of(key).monthly and key.interval is not None and INTERVALS[key.interval] >= 60


def closes_months(data_type: DataType) -> bool:
    """Return True if the days of a past month become one file. Candles would be many small files otherwise."""
    return data_type is DataType.KLINES


def expected_rows(key: SeriesKey) -> int | None:
    """Return the number of candles in a whole day. None means that it is not known in advance."""
    return None if key.interval is None else 86_400 // INTERVALS[key.interval]


_MOST_TRADES_A_DAY = 50_000_000
"""Upper bound of a day's aggTrades. The busiest days of spot BTCUSDT have 10 to 20 million trades and fewer aggTrades.
They lie in the months without fees of 2022 and 2023. A day of um BTCUSDT has 1 to 5 million."""

_REPEATED_ROWS = 100
"""Allowance for repeated and off-grid rows of an archive, in addition to twice the rows of its days."""


def most_rows(key: SeriesKey, days: int) -> int:
    """Return the upper bound of rows in an archive of ``days`` days.

    Some archives repeat rows (binance-public-data #203) or have candles off the grid (2018-02-09). The bound for
    candles is therefore a little above twice their number.
    """
    expected = expected_rows(key)
    return _MOST_TRADES_A_DAY * days if expected is None else most_repeated(expected * days)


def most_repeated(rows: int) -> int:
    """Return the upper bound of rows in an archive that repeats ``rows`` rows."""
    return 2 * rows + _REPEATED_ROWS


ARCHIVE_BEGINS = date(2017, 7, 14)
"""Day of Binance's first trade. No data is older."""
