"""The generated symbols of the sandbox and their default list. Trades and prices do not belong here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time

from market_data_pipeline.errors import UsageError
from market_data_pipeline.model.series import Market


@dataclass(frozen=True, slots=True)
class GeneratedSymbol:
    """One symbol of the sandbox's exchange, with the facts that its trades are generated from.

    All times are UTC. Prices are generated in steps of one unit of the last price decimal, quantities in steps
    of one unit of the last quantity decimal.

    Raises:
        UsageError: there are more decimals than Binance writes, it is not delisted after its listing, or a break is
            outside of the listing.
    """

    market: Market
    symbol: str
    listed: date
    """Day of the first trade."""
    delisted: date | None = None
    """Day of the last trade. None while it trades."""
    breaks: tuple[tuple[date, date], ...] = ()
    """Spans in which it was delisted and later listed again, as first and last whole day without trades."""
    trades_per_day: int = 20_000
    """Average number of aggTrades per day. A single day has 90 % to 110 % of it."""
    price: float = 100.0
    """Central price. The symbol moves around it within a factor of about three."""
    price_decimals: int = 2
    quantity_decimals: int = 3
    """0 in cm, because a quantity there is a number of contracts."""
    notional: float = 1_000.0
    """Mean value of a trade in the quote asset. In cm in US dollars."""
    contract_size: int = 1
    """Value of a contract in US dollars. cm only."""
    opens: time = time(0)
    """Time of day at which trading starts on the day of the listing."""
    closes: time | None = None
    """Time of day at which trading ends on the day of the delisting. None means midnight."""
    funding: tuple[tuple[date, int], ...] = ()
    """Funding intervals in hours, each with its first day, in order. Eight hours before them. Futures only."""
    prices_from: date | None = None
    """First day of mark and index prices, if it is earlier than the listing."""
    archived_from: date | None = None
    """First day with archives if it is later than the listing. In um it is 2020-01-01; REST alone has earlier days."""

    def __post_init__(self) -> None:
        if self.market is not Market.CM and self.price_decimals + self.quantity_decimals > 8:
            raise UsageError(
                f"{self.symbol} cannot be generated: price_decimals ({self.price_decimals}) and quantity_decimals "
                f"({self.quantity_decimals}) exceed the 8 decimals of Binance's turnover. Reduce their sum to 8."
            )
        if self.delisted is not None and self.delisted <= self.listed:
            raise UsageError(
                f"{self.symbol} cannot be delisted on {self.delisted}: it is listed on {self.listed}. Set a later day."
            )
        for first, last in self.breaks:
            if not self.listed < first <= last < (self.delisted or date.max):
                raise UsageError(
                    f"{self.symbol} cannot be away from {first} to {last}: it is listed on {self.listed}. A break must "
                    "begin after the listing, not end before it begins, and end before the delisting."
                )

    @property
    def first_archived(self) -> date:
        """First day in the archive."""
        return max(self.listed, self.archived_from or self.listed)

    @property
    def base_asset(self) -> str:
        """The traded asset: the symbol without its usual suffix."""
        return self.symbol.removesuffix("_PERP").removesuffix("USDT").removesuffix("USD")

    @property
    def quote_asset(self) -> str:
        """The asset of the price."""
        return "USD" if self.market is Market.CM else "USDT"

    @property
    def listed_at(self) -> datetime:
        """Moment at which trading opens."""
        return datetime.combine(self.listed, self.opens, UTC)


def _spot(symbol: str, listed: date, price: float, decimals: tuple[int, int], trades: int) -> GeneratedSymbol:
    return GeneratedSymbol(
        Market.SPOT,
        symbol,
        listed,
        price=price,
        price_decimals=decimals[0],
        quantity_decimals=decimals[1],
        trades_per_day=trades,
    )


def _um(symbol: str, listed: date, price: float, decimals: tuple[int, int], trades: int) -> GeneratedSymbol:
    spot = _spot(symbol, listed, price, decimals, trades)
    return replace(spot, market=Market.UM, notional=3_000.0, archived_from=date(2020, 1, 1))


DEFAULT_SYMBOLS: tuple[GeneratedSymbol, ...] = (
    GeneratedSymbol(
        Market.SPOT,
        "BTCUSDT",
        date(2017, 8, 17),
        price=60_000.0,
        price_decimals=2,
        quantity_decimals=5,
        opens=time(4),
    ),
    GeneratedSymbol(
        Market.SPOT,
        "ETHUSDT",
        date(2017, 8, 17),
        price=3_000.0,
        price_decimals=2,
        quantity_decimals=4,
        opens=time(4),
    ),
    _spot("SOLUSDT", date(2020, 8, 11), 150.0, (2, 3), 10_000),
    _spot("BNBUSDT", date(2017, 11, 6), 500.0, (2, 3), 8_000),
    _spot("币安人生USDT", date(2025, 10, 9), 0.2, (4, 1), 4_000),
    GeneratedSymbol(
        Market.SPOT,
        "LUNAUSDT",
        date(2020, 8, 21),
        date(2022, 5, 13),
        trades_per_day=6_000,
        price=30.0,
        price_decimals=4,
        quantity_decimals=2,
        opens=time(10),
        closes=time(0, 40),
    ),
    _um("BTCUSDT", date(2019, 9, 8), 60_000.0, (2, 3), 20_000),
    _um("ETHUSDT", date(2019, 11, 27), 3_000.0, (2, 3), 20_000),
    _um("SOLUSDT", date(2020, 9, 14), 150.0, (4, 0), 10_000),
    GeneratedSymbol(
        Market.CM,
        "BTCUSD_PERP",
        date(2020, 8, 10),
        trades_per_day=10_000,
        price=60_000.0,
        price_decimals=1,
        quantity_decimals=0,
        notional=2_000.0,
        contract_size=100,
    ),
    # A symbol of options is an index of volatility, or the underlying of the options in a summary.
    GeneratedSymbol(Market.OPTION, "BTCBVOLUSDT", date(2023, 6, 20), price=55.0, price_decimals=4),
    GeneratedSymbol(Market.OPTION, "BTCUSDT", date(2023, 5, 18), date(2023, 10, 23), price=60_000.0),
)
"""Symbols listed by default. They have Binance's listing dates but few trades, so that a demo stays light."""
