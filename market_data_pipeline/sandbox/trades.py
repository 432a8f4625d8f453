"""Split generated aggTrades into the single trades that they join. Klines do not belong here (``generator.py``)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from market_data_pipeline.model.series import Market
from market_data_pipeline.sandbox.csv_writer import Decimals, Texts, csv_text
from market_data_pipeline.sandbox.generator import GeneratedTrades, Integers
from market_data_pipeline.sandbox.rows import TradeRows, split_lines

_PARTS = 100
"""Quantities of single trades have two more decimals, so that no part of a small aggTrade is 0."""


def single_trades(trades: GeneratedTrades) -> SingleTradeRows:
    """Return the trades inside aggTrades. Their quantities add up to those of the aggTrades exactly."""
    sizes = trades.last_trade_id - trades.first_trade_id + 1
    of = np.repeat(np.arange(len(trades)), sizes)
    ids = trades.first_trade_id[of] + np.arange(len(of)) - (np.cumsum(sizes) - sizes)[of]
    whole = trades.quantity >= sizes
    part = np.where(whole, trades.quantity // sizes * _PARTS, trades.quantity * _PARTS // sizes)
    quantity = np.where(ids == trades.last_trade_id[of], (trades.quantity * _PARTS - part * (sizes - 1))[of], part[of])
    return SingleTradeRows(
        replace(
            trades,
            agg_trade_id=trades.agg_trade_id[of],
            price=trades.price[of],
            quantity=quantity,
            first_trade_id=ids,
            last_trade_id=ids,
            time=trades.time[of],
            is_buyer_maker=trades.is_buyer_maker[of],
        )
    )


class SingleTradeRows(TradeRows):
    """Single trades as rows. Quantities are in hundredths of the symbol's last decimal."""

    @property
    def ids(self) -> Integers:
        """The id of each row."""
        return self.trades.first_trade_id

    def fields(self, start: int, stop: int) -> list[list[str]]:
        """Return the rows ``start`` to ``stop`` (exclusive) as text, with times in microseconds."""
        return split_lines(csv_text(self._of_trades(slice(start, stop), 1)))

    def csv(self, *, microseconds: bool) -> bytes:
        """Return all rows in the archive's format without a header."""
        return csv_text(self._of_trades(slice(None), 1 if microseconds else 1_000))

    def _of_trades(self, rows: slice, divisor: int) -> list[Decimals | Texts]:
        t, symbol = self.trades, self.trades.symbol
        p, q, spot = symbol.price_decimals, symbol.quantity_decimals + 2, symbol.market is Market.SPOT
        maker, price, quantity = t.is_buyer_maker[rows], t.price[rows], t.quantity[rows]
        value = Decimals(price * quantity, p + q, trimmed=not spot)
        if symbol.market is Market.CM:
            dollars = quantity * (symbol.contract_size * 10 ** (8 + p))
            value = Decimals((dollars + price * _PARTS // 2) // (price * _PARTS), 8, trimmed=True)
        columns: list[Decimals | Texts] = [
            Decimals(t.first_trade_id[rows]),
            Decimals(price, p, 8 if spot else 0, trimmed=not spot),
            Decimals(quantity, q, 8 if spot else 0, trimmed=not spot),
            value,
            Decimals(t.time[rows] // divisor),
            Texts(maker, "True", "False") if spot else Texts(maker, "true", "false"),
        ]
        return [*columns, Texts(np.ones(len(maker), np.bool_), "True", "False")] if spot else columns
