"""Forms of the data types in the sandbox: header, time columns, cadences and markets.

The sandbox has its own facts, apart from the pipeline's table, so that a wrong fact there fails a test.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date

from market_data_pipeline.model.series import DataType, Market

_FUTURES = (Market.UM, Market.CM)


@dataclass(frozen=True, slots=True)
class Form:
    """Form of a data type.

    Attributes:
        header: First line of archives that have a header.
        times: Indexes of the time columns. The first one determines the day of a row.
        cadences: Folders that have it: ``daily``, ``monthly`` or both.
        markets: Markets that have it.
        value: Index of the column that damage changes: a price, a rate or a close.
        amount: Index of the column that a replaced archive changes.
        ids: True if its first column is an id.
        texts: True if its archive has times as text.
        hours: True if that text is a day, and the second column has the hour.
        unordered: True if the rows of its archive are in no order.
        other_trees: Markets that have it in another tree of the bucket than ``data``.
        ended: Last day by market, if Binance no longer publishes it.
    """

    header: str
    times: tuple[int, ...]
    cadences: tuple[str, ...] = ("daily", "monthly")
    markets: tuple[Market, ...] = (Market.SPOT, *_FUTURES)
    value: int = 4
    amount: int = 5
    ids: bool = False
    texts: bool = False
    hours: bool = False
    unordered: bool = False
    other_trees: tuple[Market, ...] = ()
    ended: Mapping[Market, date] = field(default_factory=dict)


KLINES_HEADER = (
    "open_time,open,high,low,close,volume,close_time,quote_volume,count,taker_buy_volume,taker_buy_quote_volume,ignore"
)

FORMS: dict[DataType, Form] = {
    DataType.KLINES: Form(KLINES_HEADER, (0, 6)),
    DataType.AGG_TRADES: Form(
        "agg_trade_id,price,quantity,first_trade_id,last_trade_id,transact_time,is_buyer_maker",
        (5,),
        value=1,
        amount=2,
        ids=True,
    ),
    DataType.TRADES: Form("id,price,qty,quote_qty,time,is_buyer_maker", (4,), value=1, amount=2, ids=True),
    **dict.fromkeys(
        (DataType.MARK_PRICE_KLINES, DataType.INDEX_PRICE_KLINES, DataType.PREMIUM_INDEX_KLINES),
        Form(KLINES_HEADER, (0, 6), markets=_FUTURES, amount=4),
    ),
    DataType.METRICS: Form(
        "create_time,symbol,sum_open_interest,sum_open_interest_value,count_toptrader_long_short_ratio,"
        "sum_toptrader_long_short_ratio,count_long_short_ratio,sum_taker_long_short_vol_ratio",
        (0,),
        ("daily",),
        _FUTURES,
        value=2,
        amount=2,
        texts=True,
        unordered=True,
    ),
    DataType.BOOK_DEPTH: Form(
        "timestamp,percentage,depth,notional", (0,), ("daily",), _FUTURES, value=2, amount=2, texts=True
    ),
    DataType.BOOK_TICKER: Form(
        "update_id,best_bid_price,best_bid_qty,best_ask_price,best_ask_qty,transaction_time,event_time",
        (5, 6),
        markets=_FUTURES,
        value=1,
        amount=2,
        ids=True,
        ended={Market.UM: date(2024, 3, 30), Market.CM: date(2024, 10, 15)},
    ),
    DataType.LIQUIDATION_SNAPSHOT: Form(
        "time,side,order_type,time_in_force,original_quantity,price,average_price,order_status,last_fill_quantity,"
        "accumulated_fill_quantity",
        (0,),
        ("daily",),
        (Market.CM,),
        value=5,
        amount=4,
        other_trees=(Market.UM,),
        ended={Market.UM: date(2024, 3, 31), Market.CM: date(2024, 10, 14)},
    ),
    DataType.FUNDING_RATE: Form(
        "calc_time,funding_interval_hours,last_funding_rate", (0,), ("monthly",), _FUTURES, value=2, amount=2
    ),
    DataType.BVOL_INDEX: Form(
        "calc_time,symbol,base_asset,quote_asset,index_value", (0,), ("daily",), (Market.OPTION,), amount=4
    ),
    DataType.EOH_SUMMARY: Form(
        "date,hour,symbol,underlying,type,strike,open,high,low,close,volume_contracts,volume_usdt,best_bid_price,"
        "best_ask_price,best_bid_qty,best_ask_qty,best_buy_iv,best_sell_iv,mark_price,mark_iv,delta,gamma,vega,theta,"
        "openinterest_contracts,openinterest_usdt",
        (0,),
        ("daily",),
        (Market.OPTION,),
        value=18,
        amount=10,
        texts=True,
        hours=True,
        ended={Market.OPTION: date(2023, 10, 23)},
    ),
}
"""Forms by data type, as Binance publishes them."""


PRICES = (DataType.MARK_PRICE_KLINES, DataType.INDEX_PRICE_KLINES, DataType.PREMIUM_INDEX_KLINES)
"""Data types of candles without trades."""


OLDER_PRICES = (DataType.MARK_PRICE_KLINES, DataType.INDEX_PRICE_KLINES)
"""Data types that may begin before the listing of a symbol."""


def last_day(market: Market, data_type: DataType) -> date:
    """Return the last day of a type in the archive. It is far in the future if Binance publishes it."""
    return FORMS[data_type].ended.get(market, date.max)


def has_type(market: Market, symbol: str, data_type: DataType) -> bool:
    """Return True if a symbol's market has it in a data type. In options, each symbol has one type."""
    return market is not Market.OPTION or ("BVOL" in symbol) == (data_type is DataType.BVOL_INDEX)


def types_in(market: Market, cadence: str) -> list[DataType]:
    """Return the data types of a folder of the archive."""
    return [one for one, form in FORMS.items() if market in form.markets and cadence in form.cadences]
