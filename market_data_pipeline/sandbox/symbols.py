"""What trades in the sandbox: the table of generated symbols, and the default one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time

from market_data_pipeline.errors import UsageError
from market_data_pipeline.model.series import Market


@dataclass(frozen=True, slots=True)
class GeneratedSymbol:
    """One symbol of the sandbox's exchange, from which its trades are generated.

    All times are UTC. Prices are generated in steps of one unit of the last price decimal, quantities in steps
    of one unit of the last quantity decimal.

    Raises:
        UsageError: more decimals than Binance writes, delisted before it is listed, or a break outside of the listing.
    """

    market: Market
    symbol: str
    listed: date
    """Day of the first trade."""
    delisted: date | None = None
    """Day of the last trade; None while it trades."""
    breaks: tuple[tuple[date, date], ...] = ()
    """Times in which it was delisted, to be listed again: first and last day of each, whole days, between the two."""
    trades_per_day: int = 20_000
    """aggTrades a day on average; a day has between nine and eleven tenths of it."""
    price: float = 100.0
    """The price around which the symbol moves, within a factor of about three."""
    price_decimals: int = 2
    quantity_decimals: int = 3
    """0 in cm, where a quantity is a number of contracts."""
    notional: float = 1_000.0
    """Mean value of a trade, in the quote asset (in cm in US dollars)."""
    contract_size: int = 1
    """US dollars a contract stands for; cm only."""
    opens: time = time(0)
    """Time of day from which it trades on the day of its listing."""
    closes: time | None = None
    """Time of day at which trading ends on the day of its delisting; None for midnight."""
    archived_from: date | None = None
    """First day with archives where that is later than the listing: in um 2020-01-01, earlier days are in REST only."""

    def __post_init__(self) -> None:
        if self.market is not Market.CM and self.price_decimals + self.quantity_decimals > 8:
            raise UsageError(
                f"{self.symbol} cannot be generated: Binance writes turnover with 8 decimals, so price_decimals "
                f"({self.price_decimals}) and quantity_decimals ({self.quantity_decimals}) may be 8 together."
            )
        if self.delisted is not None and self.delisted <= self.listed:
            raise UsageError(f"{self.symbol} cannot be delisted on {self.delisted}: it is listed on {self.listed}.")
        for first, last in self.breaks:
            if not self.listed < first <= last < (self.delisted or date.max):
                raise UsageError(
                    f"{self.symbol} cannot be away from {first} to {last}: it is listed on {self.listed}, and a break "
                    "begins later, ends after it began and before the delisting."
                )

    @property
    def first_archived(self) -> date:
        """First day that the archive has."""
        return max(self.listed, self.archived_from or self.listed)

    @property
    def base_asset(self) -> str:
        """The asset bought and sold, by the usual ends of Binance's names."""
        return self.symbol.removesuffix("_PERP").removesuffix("USDT").removesuffix("USD")

    @property
    def quote_asset(self) -> str:
        """The asset it is priced in."""
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
)
"""What the sandbox lists unless told otherwise: with Binance's listing dates, but few trades, to keep a demo light."""
