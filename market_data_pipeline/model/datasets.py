"""Facts about each market and data type in one table: columns, units, endpoints and bounds.

Code that downloads, parses or checks does not belong here. It reads the facts from here.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
from typing import Literal

from market_data_pipeline import clock
from market_data_pipeline.model.series import INTERVALS, DataType, ListingSpans, Market, SeriesKey

MOST_PAGES = 200
"""Most pages of one listing, which is 200,000 keys. A folder of daily files has eight pages after ten years."""

Compression = Literal["zstd", "lz4"]
ColumnKind = Literal["time", "day", "int", "float", "bool", "word", "text", "ignore"]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the lake, and of the archive's CSV if the CSV has it.

    Attributes:
        name: Name in the lake.
        kind: Kind of the values. ``time`` is an integer in the source, in milliseconds or microseconds since 1970. A
            ``word`` is mostly the same from row to row. An ``ignore`` column is in the CSV only.
        rest: Field of the REST answer if its rows are objects. Kline rows are arrays in the CSV's order.
        text: True if the archive has times as text such as ``2026-09-30 02:30:00`` (UTC).
        hours: True if it has the hours of the row's time, whose own column has the day only. It is in the CSV only.
        nullable: True if the exchange may leave the value out.
        spacing: True if REST does not have it, and it is computed as the hours since the previous row.
    """

    name: str
    kind: ColumnKind
    rest: str = ""
    text: bool = False
    hours: bool = False
    nullable: bool = False
    spacing: bool = False


@dataclass(frozen=True, slots=True)
class RestEndpoint:
    """The REST endpoint of a data type.

    Attributes:
        path: Path below the market's host. Empty if REST does not serve the type.
        page: Rows per request. This size costs the least weight per row.
        weight: Request weight of one page.
        max_span: Longest time between startTime and endTime in one request.
        reach: Age of the oldest rows that REST serves. None means no limit. Older rows come from the archive only.
        symbol: Name of the parameter with the symbol.
        period: Value of the parameter ``period``. Empty if there is none.
        joined: Further endpoints: path, field, and the column that it fills. Rows are joined on their time.
        budget: Name in :data:`REQUEST_BUDGETS` if Binance counts its requests apart from the weight. Else empty.
    """

    path: str
    page: int
    weight: int
    max_span: timedelta | None = None
    reach: timedelta | None = None
    symbol: Literal["symbol", "pair"] = "symbol"
    period: str = ""
    joined: tuple[tuple[str, str, str], ...] = ()
    budget: str = ""


@dataclass(frozen=True, slots=True)
class RequestBudget:
    """Most requests of one IP address to a group of endpoints, in a span of time."""

    requests: int
    seconds: int


REQUEST_BUDGETS: dict[str, RequestBudget] = {
    "funding": RequestBudget(500, 300),
    "statistics": RequestBudget(1000, 300),
}
"""Groups of endpoints with a limit of requests. Binance counts fundingRate and fundingInfo together, and all of
``/futures/data``."""


@dataclass(frozen=True, slots=True)
class Slots:
    """Times at which a data type without interval has rows.

    Attributes:
        tolerance: Largest distance of a row from its slot. Binance's times are late by some milliseconds.
        most_a_day: Most rows of a day.
        hours: Column with the hours until the next row. A change of it is a fact, not a gap.
        step: Fixed distance of the rows, if no column has it.
        longest: Longest regular pause, if the distance of rows is only about ``step``.
    """

    tolerance: timedelta
    most_a_day: int
    hours: str = ""
    step: timedelta | None = None
    longest: timedelta | None = None


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
        has_rest: False if the market's data types come from the archive alone.
    """

    time_path: str
    weight_per_minute: int
    budget: str
    microseconds: bool
    inverse: bool
    first_agg_trade_id: int
    has_rest: bool = True


MARKETS: dict[Market, MarketSpec] = {
    Market.SPOT: MarketSpec("/api/v3/time", 6000, "spot", True, False, 0),
    # Binance counts COIN-M and USDⓈ-M in one budget since 2026-06-30.
    Market.UM: MarketSpec("/fapi/v1/time", 2400, "futures", False, False, 1),
    Market.CM: MarketSpec("/dapi/v1/time", 2400, "futures", False, True, 1),
    # REST of options has no history of BVOLIndex and EOHSummary, so it is not used.
    Market.OPTION: MarketSpec("", 0, "option", False, False, 0, has_rest=False),
}


@dataclass(frozen=True, slots=True)
class Spec:
    """The form of a data type in a market.

    Attributes:
        columns: Columns of the CSV in order.
        key: Column by which rows are ordered, and unique unless ``also`` names further columns.
        time: Column that assigns a row to its day.
        monthly: True if a monthly zip may replace daily ones. False for aggTrades: a month is a gigabyte, and saves
            only 30 requests among 30 big downloads.
        dictionary: Columns with dictionary encoding, in addition to symbol and interval.
        delta: Columns with the encoding DELTA_BINARY_PACKED.
        daily: True if the archive has daily zips. Without them, a monthly zip fills the files of its days.
        slots: Times of the rows, if neither an interval nor consecutive ids show which rows are missing.
        closes_months: True if the days of a past month become one file. Candles would be many small files otherwise.
        unordered: True if the archive's rows are in no order, which is then no fault.
        signed: True if values may be negative.
        gapless: True if the key is an id without holes, so that a jump shows missing rows.
        also: Further columns of the key, if several rows share the first one.
        begins: First day in the archive of any symbol, if the type is younger than its market.
        ended: Last day in the archive, if Binance no longer publishes the type. No later day is missing.
        precedes: True if its history may begin before the symbol's listing. Prices follow other exchanges.
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
    daily: bool = True
    slots: Slots | None = None
    closes_months: bool = False
    unordered: bool = False
    signed: bool = False
    gapless: bool = False
    also: tuple[str, ...] = ()
    begins: date | None = None
    ended: date | None = None
    precedes: bool = False


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
    return Spec(
        market,
        DataType.KLINES,
        columns,
        "open_time",
        "open_time",
        rest,
        True,
        (),
        delta,
        "lz4",
        closes_months=True,
    )


def _price_klines(data_type: DataType, market: Market, rest: RestEndpoint, *, signed: bool = False) -> Spec:
    """Return the spec of candles of a price without trades. Binance fills their columns of volume with 0.

    Their count is the number of samples, not of trades, so it is not stored.
    """
    stored = ("open_time", "open", "high", "low", "close", "close_time")
    columns = tuple(
        column if column.name in stored else Column(column.name, "ignore") for column in _kline_columns("quote")
    )
    return Spec(
        market,
        data_type,
        columns,
        "open_time",
        "open_time",
        rest,
        True,
        (),
        ("open_time", "close_time"),
        "lz4",
        closes_months=True,
        signed=signed,
        precedes=not signed,
    )


def _agg_trades(market: Market, columns: tuple[Column, ...], rest: RestEndpoint) -> Spec:
    delta = ("agg_trade_id", "first_trade_id", "last_trade_id", "transact_time")
    dictionary = ("quantity",)
    return Spec(
        market,
        DataType.AGG_TRADES,
        columns,
        "agg_trade_id",
        "transact_time",
        rest,
        False,
        dictionary,
        delta,
        "zstd",
        gapless=True,
    )


def _trades(market: Market, weight: int) -> Spec:
    """Return the spec of single trades.

    REST serves them only to users with a key, so they come from the archive alone. Ids of futures have holes: trades
    of the insurance fund and of auto-deleveraging are not published.
    """
    spot = market is Market.SPOT
    value = "base" if MARKETS[market].inverse else "quote"
    columns = (
        Column("id", "int", "id"),
        Column("price", "float", "price"),
        Column("qty", "float", "qty"),
        Column(f"{value}_qty", "float", f"{value}Qty"),
        Column("time", "time", "time"),
        Column("is_buyer_maker", "bool", "isBuyerMaker"),
        *([Column("is_best_match", "bool", "isBestMatch")] if spot else []),
    )
    return Spec(
        market,
        DataType.TRADES,
        columns,
        "id",
        "time",
        RestEndpoint("", 1000, weight),
        False,
        ("qty",),
        ("id", "time"),
        "zstd",
        gapless=spot,
    )


_FUNDING_RATE_COLUMNS = (
    Column("calc_time", "time", "fundingTime"),
    Column("funding_interval_hours", "int", spacing=True),
    Column("last_funding_rate", "float", "fundingRate"),
)


def _funding_rate(market: Market, path: str) -> Spec:
    return Spec(
        market,
        DataType.FUNDING_RATE,
        _FUNDING_RATE_COLUMNS,
        "calc_time",
        "calc_time",
        RestEndpoint(path, 1000, 1, budget="funding"),
        True,
        (),
        ("calc_time", "funding_interval_hours"),
        "lz4",
        daily=False,
        slots=Slots(timedelta(minutes=1), 24, hours="funding_interval_hours"),
        closes_months=True,
    )


_FIVE_MINUTES = timedelta(minutes=5)


def _metrics(market: Market, rest: RestEndpoint) -> Spec:
    return Spec(
        market,
        DataType.METRICS,
        (
            Column("create_time", "time", "timestamp", text=True),
            Column("symbol", "ignore"),
            Column("sum_open_interest", "float", "sumOpenInterest", nullable=True),
            Column("sum_open_interest_value", "float", "sumOpenInterestValue", nullable=True),
            *(
                Column(name, "float", name, nullable=True)
                for name in (
                    "count_toptrader_long_short_ratio",
                    "sum_toptrader_long_short_ratio",
                    "count_long_short_ratio",
                    "sum_taker_long_short_vol_ratio",
                )
            ),
        ),
        "create_time",
        "create_time",
        rest,
        False,
        (),
        ("create_time",),
        "lz4",
        slots=Slots(timedelta(0), 288, step=_FIVE_MINUTES),
        closes_months=True,
        unordered=True,
        begins=date(2020, 9, 1),
    )


_METRICS_REST = RestEndpoint(
    "/futures/data/openInterestHist",
    500,
    1,
    max_span=499 * _FIVE_MINUTES,  # beyond its page, REST leaves out the oldest rows
    reach=timedelta(days=30),
    period="5m",
    joined=(
        ("/futures/data/topLongShortAccountRatio", "longShortRatio", "count_toptrader_long_short_ratio"),
        ("/futures/data/topLongShortPositionRatio", "longShortRatio", "sum_toptrader_long_short_ratio"),
        ("/futures/data/globalLongShortAccountRatio", "longShortRatio", "count_long_short_ratio"),
        ("/futures/data/takerlongshortRatio", "buySellRatio", "sum_taker_long_short_vol_ratio"),
    ),
    budget="statistics",
)


def _book_depth(market: Market) -> Spec:
    return Spec(
        market,
        DataType.BOOK_DEPTH,
        (
            Column("timestamp", "time", text=True),
            Column("percentage", "float"),
            Column("depth", "float"),
            Column("notional", "float"),
        ),
        "timestamp",
        "timestamp",
        RestEndpoint("", 500, 1),
        False,
        ("percentage",),
        ("timestamp",),
        "zstd",
        slots=Slots(
            timedelta(seconds=15), 3_600 * 12, step=timedelta(seconds=30), longest=timedelta(minutes=2)
        ),  # distances of 24 to 37 seconds are regular
        also=("percentage",),
        begins=date(2023, 1, 1),
    )


def _book_ticker(market: Market, ended: date) -> Spec:
    prices = ("best_bid_price", "best_bid_qty", "best_ask_price", "best_ask_qty")
    return Spec(
        market,
        DataType.BOOK_TICKER,
        (
            Column("update_id", "int"),
            *(Column(name, "float") for name in prices),
            Column("transaction_time", "time"),
            Column("event_time", "time"),
        ),
        "update_id",
        "transaction_time",
        RestEndpoint("", 500, 1),
        False,
        prices,
        ("update_id", "transaction_time", "event_time"),
        "zstd",
        begins=date(2023, 5, 16),
        ended=ended,
    )


def _liquidations(market: Market, ended: date) -> Spec:
    """Return the spec of forced orders. Rows have no id, so all columns together are the key."""
    texts = ("side", "order_type", "time_in_force", "order_status")
    columns = (
        Column("time", "time"),
        *(
            Column(name, "text" if name in texts else "float")
            for name in (
                "side",
                "order_type",
                "time_in_force",
                "original_quantity",
                "price",
                "average_price",
                "order_status",
                "last_fill_quantity",
                "accumulated_fill_quantity",
            )
        ),
    )
    return Spec(
        market,
        DataType.LIQUIDATION_SNAPSHOT,
        columns,
        "time",
        "time",
        RestEndpoint("", 500, 1),
        False,
        texts,
        ("time",),
        "zstd",
        unordered=True,
        also=tuple(column.name for column in columns[1:]),
        begins=date(2023, 6, 25),
        ended=ended,
    )


_HOUR = timedelta(hours=1)


def _bvol_index() -> Spec:
    labels = ("symbol", "base_asset", "quote_asset")  # the same in all rows
    return Spec(
        Market.OPTION,
        DataType.BVOL_INDEX,
        (
            Column("calc_time", "time"),
            *(Column(name, "ignore") for name in labels),
            Column("index_value", "float"),
        ),
        "calc_time",
        "calc_time",
        RestEndpoint("", 500, 1),
        False,
        (),
        ("calc_time",),
        "zstd",
        slots=Slots(timedelta(0), 86_400, step=timedelta(seconds=1), longest=timedelta(seconds=10)),
        begins=date(2023, 6, 20),
    )


_EOH_FLOATS = (
    "open",
    "high",
    "low",
    "close",
    "volume_contracts",
    "volume_usdt",
    "best_bid_price",
    "best_ask_price",
    "best_bid_qty",
    "best_ask_qty",
    "best_buy_iv",
    "best_sell_iv",
    "mark_price",
    "mark_iv",
    "delta",
    "gamma",
    "vega",
    "theta",
    "openinterest_contracts",
    "openinterest_usdt",
)


def _eoh_summary() -> Spec:
    """Return the spec of summaries of options. The series' symbol is the underlying, so the CSV's is ``contract``."""
    return Spec(
        Market.OPTION,
        DataType.EOH_SUMMARY,
        (
            Column("time", "time", text=True),
            Column("hour", "ignore", hours=True),
            Column("contract", "text"),
            Column("underlying", "ignore"),
            Column("type", "text"),
            Column("strike", "text"),
            *(Column(name, "float", nullable=True) for name in _EOH_FLOATS),
        ),
        "time",
        "time",
        RestEndpoint("", 500, 1),
        False,
        ("contract", "type", "strike"),
        ("time",),
        "zstd",
        slots=Slots(timedelta(0), 24 * 3_000, step=_HOUR),
        unordered=True,
        also=("contract",),
        begins=date(2023, 5, 18),
        ended=date(2023, 10, 23),
    )


_FUTURES = ((Market.UM, "/fapi/v1", None), (Market.CM, "/dapi/v1", timedelta(days=200)))
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
    _trades(Market.SPOT, 25),
    _trades(Market.UM, 20),
    _trades(Market.CM, 20),
    *(
        _price_klines(
            DataType.MARK_PRICE_KLINES,
            market,
            RestEndpoint(f"{path}/markPriceKlines", 499, 2, max_span=span),
        )
        for market, path, span in _FUTURES
    ),
    *(
        _price_klines(
            DataType.INDEX_PRICE_KLINES,
            market,
            RestEndpoint(f"{path}/indexPriceKlines", 499, 2, max_span=span, symbol="pair"),
        )
        for market, path, span in _FUTURES
    ),
    *(
        _price_klines(
            DataType.PREMIUM_INDEX_KLINES,
            market,
            RestEndpoint(f"{path}/premiumIndexKlines", 499, 2, max_span=span),
            signed=True,
        )
        for market, path, span in _FUTURES
    ),
    _metrics(Market.UM, _METRICS_REST),
    # REST of cm takes a pair and a type of contract, and has no taker ratio. So cm comes from the archive alone.
    _metrics(Market.CM, RestEndpoint("", 500, 1)),
    _book_depth(Market.UM),
    _book_depth(Market.CM),
    _book_ticker(Market.UM, date(2024, 3, 30)),
    _book_ticker(Market.CM, date(2024, 10, 15)),
    _liquidations(Market.UM, date(2024, 3, 31)),
    _liquidations(Market.CM, date(2024, 10, 14)),
    _funding_rate(Market.UM, "/fapi/v1/fundingRate"),
    _funding_rate(Market.CM, "/dapi/v1/fundingRate"),
    _bvol_index(),
    _eoh_summary(),
)

SPECS: dict[tuple[Market, DataType], Spec] = {(spec.market, spec.data_type): spec for spec in _ROWS}


@dataclass(frozen=True, slots=True)
class MeaningChange:
    """A change of the meaning of a type's rows in the archive that the lake undoes.

    Attributes:
        market: The market.
        data_type: The data type.
        since: First UTC day with the new meaning, which the lake has for all days.
        shift: Distance to add to the times of older files.
        what: Description for people.
        source: Where it is documented.
    """

    market: Market
    data_type: DataType
    since: date
    shift: timedelta
    what: str
    source: str


MEANING_CHANGES: tuple[MeaningChange, ...] = (
    MeaningChange(
        Market.UM,
        DataType.METRICS,
        date(2026, 6, 25),
        -_FIVE_MINUTES,
        "the archive labels periods with their end until 2026-06-24, and with their start since",
        "https://github.com/binance/binance-public-data/issues/491",
    ),
)


def meaning_change(key: SeriesKey, day: date) -> MeaningChange | None:
    """Return the change of meaning that a file of a day precedes. None if there is none."""
    for change in MEANING_CHANGES:
        if (change.market, change.data_type) == (key.market, key.data_type) and day < change.since:
            return change
    return None


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
        rows: Word for its rows in messages.
    """

    suffix: str
    headline: str
    rows: str = "rows"


WORDS: dict[DataType, Words] = {
    DataType.KLINES: Words("", "Candles of {symbol} every {interval} from Binance {market}, one row per candle."),
    DataType.AGG_TRADES: Words(
        "aggTrades",
        "Aggregated trades of {symbol} from Binance {market}, one row per order, price and time.",
        "aggregated trades",
    ),
    DataType.TRADES: Words("trades", "Trades of {symbol} from Binance {market}, one row per trade.", "trades"),
    DataType.MARK_PRICE_KLINES: Words(
        "markPrice", "Candles of the mark price of {symbol} every {interval} from Binance {market}."
    ),
    DataType.INDEX_PRICE_KLINES: Words(
        "indexPrice", "Candles of the index price of the pair of {symbol} every {interval} from Binance {market}."
    ),
    DataType.PREMIUM_INDEX_KLINES: Words(
        "premiumIndex", "Candles of the premium of {symbol} over its index every {interval} from Binance {market}."
    ),
    DataType.METRICS: Words(
        "metrics", "Open interest and long/short ratios of {symbol} from Binance {market}, one row per five minutes."
    ),
    DataType.BOOK_DEPTH: Words(
        "bookDepth",
        "Depth of the order book of {symbol} from Binance {market}, one row per snapshot and band around the price.",
        "snapshots",
    ),
    DataType.BOOK_TICKER: Words(
        "bookTicker",
        "Best bid and ask of {symbol} from Binance {market}, one row per change. Binance ended this type in 2024.",
    ),
    DataType.LIQUIDATION_SNAPSHOT: Words(
        "liquidationSnapshot",
        "Forced orders of {symbol} from Binance {market}, at most one per second. Binance ended this type in 2024.",
    ),
    DataType.FUNDING_RATE: Words(
        "fundingRate", "Funding rates of {symbol} from Binance {market}, one row per payment. The interval may change."
    ),
    DataType.BVOL_INDEX: Words(
        "BVOLIndex", "Index {symbol} of the volatility that options imply, from Binance {market}, one row per second."
    ),
    DataType.EOH_SUMMARY: Words(
        "EOHSummary",
        "Options of {symbol} from Binance {market}, one row per option and hour. Binance ended this type in 2023.",
        "hours",
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


def published_types(market: Market) -> tuple[DataType, ...]:
    """Return the data types that Binance publishes for a market, in the order of :class:`DataType`."""
    return tuple(data_type for data_type in DataType if (market, data_type) in SPECS)


def lake_columns(market: Market, data_type: DataType) -> tuple[Column, ...]:
    """Return the columns of a series' files in the lake, also for derived types. Symbol and interval come first."""
    labels = ("symbol", "interval") if data_type.has_interval else ("symbol",)
    own = _TRADE_PROFILE_COLUMNS if data_type is DataType.TRADE_PROFILE else SPECS[market, data_type].columns
    return (*(Column(label, "word") for label in labels), *(column for column in own if column.kind != "ignore"))


def shows_trades(key: SeriesKey) -> bool:
    """Return True if rows of a series show if something was traded: trades, or candles with a volume."""
    names = {column.name for column in spec_of(key).columns if column.kind != "ignore"}
    return not names.isdisjoint(("volume", "quantity", "qty"))


def monthly_may_replace(key: SeriesKey) -> bool:
    """Return True if a monthly zip may fill days. 1s klines are too bulky, like trades."""
    return spec_of(key).monthly and (key.interval is None or INTERVALS[key.interval] >= 60)


_CLOSING_MONTHS = frozenset(spec.data_type for spec in _ROWS if spec.closes_months)


def closes_months(data_type: DataType) -> bool:
    """Return True if the days of a past month become one file."""
    return data_type in _CLOSING_MONTHS


_KEYED_BY_ID = frozenset(spec.data_type for spec in _ROWS if spec.key != spec.time)


def keyed_by_time(data_type: DataType) -> bool:
    """Return True if the key of a row is its time. Keys of aggTrades are ids."""
    return data_type not in _KEYED_BY_ID


_SHARING_TIMES = _KEYED_BY_ID | {spec.data_type for spec in _ROWS if spec.also}


def has_shared_times(data_type: DataType) -> bool:
    """Return True if several rows of a symbol may have the same time."""
    return data_type in _SHARING_TIMES


GAPLESS_KEYS = frozenset(spec.key for spec in _ROWS if spec.gapless)
"""Key columns whose jumps show missing rows."""


def archived_spans(key: SeriesKey, listing: ListingSpans) -> ListingSpans:
    """Return the spans of days that the archive can have: the symbol's listing, while the type is published.

    Args:
        listing: Spans of the symbol. If they are not known, only the end of a type limits the days.
    """
    spec = SPECS.get((key.market, key.data_type))
    if spec is None or (spec.begins, spec.ended) == (None, None) or not (listing.spans or spec.ended):
        return listing
    begins, ended = spec.begins or ARCHIVE_BEGINS, spec.ended or date.max
    cut = [(max(first, begins), min(last or date.max, ended)) for first, last in listing.spans or ((begins, None),)]
    spans = tuple((first, None if last == date.max else last) for first, last in cut if first <= last)
    # Without spans nothing would be known, so a span without days means that there are none.
    return ListingSpans(spans or ((ended + clock.DAY, ended) if spec.ended else (begins, begins - clock.DAY),))


def precedes_listing(key: SeriesKey) -> bool:
    """Return True if the history of a series may begin before its symbol's listing."""
    spec = SPECS.get((key.market, key.data_type))
    return spec is not None and spec.precedes


def archive_day(key: SeriesKey, day: date) -> date:
    """Return the UTC day after which the archive of a day is due: the day, or the end of its month without dailies."""
    spec = SPECS.get((key.market, key.data_type))
    return day if spec is None or spec.daily else clock.days_of_month(day)[-1]


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
    expected = _most_a_day(key)
    return _MOST_TRADES_A_DAY * days if expected is None else most_repeated(expected * days)


def _most_a_day(key: SeriesKey) -> int | None:
    slots = spec_of(key).slots
    return expected_rows(key) if slots is None else slots.most_a_day


def is_bounded(key: SeriesKey) -> bool:
    """Return True if the number of rows in a day has a known limit. Trades have none."""
    return _most_a_day(key) is not None


def most_repeated(rows: int) -> int:
    """Return the upper bound of rows in an archive that repeats ``rows`` rows."""
    return 2 * rows + _REPEATED_ROWS


ARCHIVE_BEGINS = date(2017, 7, 14)
"""Day of Binance's first trade. No data is older."""
