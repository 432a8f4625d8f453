"""One day of one series as rows of text in the archive's column order, generated or read from a zip.

Times here are always microseconds since 1970 (UTC), even if the file has milliseconds. Zips and faults do not belong
here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from market_data_pipeline.model.series import DataType, Market
from market_data_pipeline.sandbox.csv_writer import Decimals, Texts, csv_text
from market_data_pipeline.sandbox.generator import GeneratedTrades, Integers, Klines

KLINES_HEADER = (
    "open_time,open,high,low,close,volume,close_time,quote_volume,count,taker_buy_volume,taker_buy_quote_volume,ignore"
)
AGG_TRADES_HEADER = "agg_trade_id,price,quantity,first_trade_id,last_trade_id,transact_time,is_buyer_maker"
TIME_COLUMNS = {DataType.KLINES: (0, 6), DataType.AGG_TRADES: (5,)}
"""Indexes of the time columns. The first one determines the day of a row."""


class Rows(Protocol):
    """Rows of one series and day."""

    @property
    def times(self) -> Integers:
        """The open_time or transact_time of each row, in microseconds since 1970 (UTC)."""
        ...

    @property
    def ids(self) -> Integers | None:
        """The agg_trade_id of each row. None for klines."""
        ...

    def fields(self, start: int, stop: int) -> list[list[str]]:
        """Return the rows ``start`` to ``stop`` (exclusive) as text, with times in microseconds."""
        ...

    def csv(self, *, microseconds: bool) -> bytes:
        """Return all rows in the archive's format without a header. Times are in microseconds or milliseconds."""
        ...


@dataclass(frozen=True, slots=True)
class KlineRows:
    """Generated klines as rows."""

    klines: Klines

    @property
    def times(self) -> Integers:
        """The open_time of each row, in microseconds since 1970 (UTC)."""
        return self.klines.open_time

    @property
    def ids(self) -> Integers | None:
        """None, because klines have no ids."""
        return None

    def _columns(self, rows: slice, divisor: int) -> list[Decimals | Texts]:
        k, symbol = self.klines, self.klines.symbol
        p, q = symbol.price_decimals, symbol.quantity_decimals
        shown = 8 if symbol.market is Market.SPOT else 0
        turnover = 8 if symbol.market is Market.CM else p + q
        open_time, n = k.open_time[rows], len(k.open_time[rows])
        prices = [Decimals(column[rows], p, shown) for column in (k.open, k.high, k.low, k.close)]
        return [
            Decimals(open_time // divisor),
            *prices,
            Decimals(k.volume[rows], q, shown),
            Decimals((open_time + k.interval_us - 1) // divisor),
            Decimals(k.turnover[rows], turnover, shown),
            Decimals(k.count[rows]),
            Decimals(k.taker_volume[rows], q, shown),
            Decimals(k.taker_turnover[rows], turnover, shown),
            Texts(np.zeros(n, np.bool_), "", "0"),
        ]

    def fields(self, start: int, stop: int) -> list[list[str]]:
        """Return the rows ``start`` to ``stop`` (exclusive) as text, with times in microseconds."""
        return _split(csv_text(self._columns(slice(start, stop), 1)))

    def csv(self, *, microseconds: bool) -> bytes:
        """Return all rows in the archive's format without a header."""
        return csv_text(self._columns(slice(None), 1 if microseconds else 1_000))


@dataclass(frozen=True, slots=True)
class TradeRows:
    """Generated aggTrades as rows."""

    trades: GeneratedTrades

    @property
    def times(self) -> Integers:
        """The transact_time of each row, in microseconds since 1970 (UTC)."""
        return self.trades.time

    @property
    def ids(self) -> Integers | None:
        """The agg_trade_id of each row."""
        return self.trades.agg_trade_id

    def _columns(self, rows: slice, divisor: int, *, trimmed: bool) -> list[Decimals | Texts]:
        t, symbol = self.trades, self.trades.symbol
        spot = symbol.market is Market.SPOT
        shown = 8 if spot else 0
        trimmed = trimmed and not spot
        maker = t.is_buyer_maker[rows]
        columns: list[Decimals | Texts] = [
            Decimals(t.agg_trade_id[rows]),
            Decimals(t.price[rows], symbol.price_decimals, shown, trimmed),
            Decimals(t.quantity[rows], symbol.quantity_decimals, shown, trimmed),
            Decimals(t.first_trade_id[rows]),
            Decimals(t.last_trade_id[rows]),
            Decimals(t.time[rows] // divisor),
            Texts(maker, "True", "False") if spot else Texts(maker, "true", "false"),
        ]
        return [*columns, Texts(np.ones(len(maker), np.bool_), "True", "False")] if spot else columns

    def fields(self, start: int, stop: int) -> list[list[str]]:
        """Return the rows ``start`` to ``stop`` (exclusive) as text, with times in microseconds."""
        return _split(csv_text(self._columns(slice(start, stop), 1, trimmed=False)))

    def csv(self, *, microseconds: bool) -> bytes:
        """Return all rows in the archive's format without a header. Futures write numbers like floats."""
        return csv_text(self._columns(slice(None), 1 if microseconds else 1_000, trimmed=True))


@dataclass(frozen=True, slots=True)
class TextRows:
    """Rows read from a CSV, or changed by a fault."""

    data_type: DataType
    rows: list[list[str]]

    @property
    def times(self) -> Integers:
        """The open_time or transact_time of each row, in microseconds since 1970 (UTC)."""
        column = TIME_COLUMNS[self.data_type][0]
        return np.array([int(row[column]) for row in self.rows], np.int64)

    @property
    def ids(self) -> Integers | None:
        """The agg_trade_id of each row. None for klines."""
        return None if self.data_type is DataType.KLINES else np.array([int(row[0]) for row in self.rows], np.int64)

    def fields(self, start: int, stop: int) -> list[list[str]]:
        """Return the rows ``start`` to ``stop`` (exclusive) as text, with times in microseconds."""
        return self.rows[start:stop]

    def csv(self, *, microseconds: bool) -> bytes:
        """Return all rows in the archive's format without a header."""
        if microseconds:
            return "".join(",".join(row) + "\n" for row in self.rows).encode()
        lines = []
        for row in self.rows:
            line = list(row)
            for column in TIME_COLUMNS[self.data_type]:
                line[column] = str(int(line[column]) // 1_000)
            lines.append(",".join(line) + "\n")
        return "".join(lines).encode()


def _split(text: bytes) -> list[list[str]]:
    return [line.split(",") for line in text.decode("ascii").splitlines()]


def text_rows(data_type: DataType, rows: Rows) -> TextRows:
    """Convert any rows to rows of text."""
    return rows if isinstance(rows, TextRows) else TextRows(data_type, rows.fields(0, len(rows.times)))


def read_csv(data_type: DataType, text: str) -> TextRows:
    """Read the CSV of an archive.

    The first character shows if there is a header. The number of digits shows if times are in milliseconds or
    microseconds.
    """
    lines = text.splitlines()
    if lines and not lines[0][:1].isdigit():
        del lines[0]
    rows = [line.split(",") for line in lines]
    for row in rows:
        for column in TIME_COLUMNS[data_type]:
            if len(row[column]) < 16:
                # A kline closes in the last microsecond of its last millisecond.
                row[column] += "999" if column == 6 else "000"
    return TextRows(data_type, rows)
