"""Assets of symbols: base, quote and settlement, which other tools name where Binance names a symbol."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime

from market_data_pipeline.errors import UsageError
from market_data_pipeline.lake import parquet, storage
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.model.binance_dialect import assets_of
from market_data_pipeline.model.series import Market, SeriesKey

_DELIVERY_FORM = "%y%m%d"


@dataclass(frozen=True, slots=True)
class Pair:
    """The assets of a symbol.

    Attributes:
        base: Traded asset.
        quote: Asset of the price.
        settle: Asset of the margin of futures. None in spot.
        delivery: Day of delivery. None for spot and perpetual futures.
        tick_size: Smallest step of the price. None if no snapshot of exchangeInfo is stored.
        step_size: Smallest step of the quantity. None as above.
        contract_size: Value of a cm contract in the quote asset. None as above.
    """

    base: str
    quote: str
    settle: str | None = None
    delivery: date | None = None
    tick_size: float | None = None
    step_size: float | None = None
    contract_size: float | None = None


class Pairs:
    """The assets of all symbols: of the newest snapshot of exchangeInfo, else read from the symbol."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._snapshots: dict[Market, dict[str, dict[str, object]]] = {}

    def of(self, key: SeriesKey) -> Pair:
        """Return the assets of a series.

        Raises:
            UsageError: No snapshot has the symbol, and it does not end with a known quote asset.
        """
        known = self._snapshot(key.market).get(key.symbol)
        suffix = key.symbol.partition("_")[2]
        base, quote = (str(known["base_asset"]), str(known["quote_asset"])) if known else _split(key)
        sizes = (_number(known, "tick_size"), _number(known, "step_size"), _number(known, "contract_size"))
        settle = {Market.SPOT: None, Market.UM: quote, Market.CM: base}[key.market]
        return Pair(base, quote, settle, _delivery(suffix), *sizes)

    def _snapshot(self, market: Market) -> dict[str, dict[str, object]]:
        if market not in self._snapshots:
            folder = self._layout.exchange_info(market)
            days = sorted(storage.list_named(folder))
            rows = parquet.read_table(folder / f"{days[-1]}.parquet").to_pylist() if days else []
            self._snapshots[market] = {str(row["symbol"]): row for row in rows}
        return self._snapshots[market]


def _split(key: SeriesKey) -> tuple[str, str]:
    base, quote = assets_of(key.market, key.symbol)
    if quote:
        return base, quote
    raise UsageError(
        f"The base and quote asset of {key.market} {key.symbol} are not known. Materialize the asset "
        f"{key.market}_exchange_info in Dagster once. Its snapshot has them."
    )


def _number(row: dict[str, object] | None, name: str) -> float | None:
    value = row and row[name]
    return value if isinstance(value, float) else None


def _delivery(suffix: str) -> date | None:
    try:
        return datetime.strptime(suffix, _DELIVERY_FORM).date()  # noqa: DTZ007 - a day has no zone
    except ValueError:
        return None
