"""One day of one series as rows of text in the archive's column order, generated or read from a zip.

Times here are always microseconds since 1970 (UTC), even if the file has milliseconds. Zips and faults do not belong
here.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

import numpy as np

from market_data_pipeline.model.series import DataType, Market
from market_data_pipeline.sandbox.csv_writer import Decimals, Texts, csv_text
from market_data_pipeline.sandbox.forms import FORMS
from market_data_pipeline.sandbox.generator import GeneratedTrades, Integers, Klines


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
        return split_lines(csv_text(self._columns(slice(start, stop), 1)))

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
        return split_lines(csv_text(self._columns(slice(start, stop), 1, trimmed=False)))

    def csv(self, *, microseconds: bool) -> bytes:
        """Return all rows in the archive's format without a header. Futures write numbers like floats."""
        return csv_text(self._columns(slice(None), 1 if microseconds else 1_000, trimmed=True))


@dataclass(frozen=True, slots=True)
class TextRows:
    """Rows read from a CSV, or changed by a fault."""

    data_type: DataType
    rows: list[list[str]]
    moved: int = 0
    """Microseconds that the archive adds to the times, where it labels periods by their end."""

    @property
    def times(self) -> Integers:
        """The open_time or transact_time of each row, in microseconds since 1970 (UTC)."""
        column = FORMS[self.data_type].times[0]
        return np.array([int(row[column]) for row in self.rows], np.int64)

    @property
    def ids(self) -> Integers | None:
        """The agg_trade_id of each row. None for rows without ids."""
        return np.array([int(row[0]) for row in self.rows], np.int64) if FORMS[self.data_type].ids else None

    def fields(self, start: int, stop: int) -> list[list[str]]:
        """Return the rows ``start`` to ``stop`` (exclusive) as text, with times in microseconds."""
        return self.rows[start:stop]

    def csv(self, *, microseconds: bool) -> bytes:
        """Return all rows in the archive's format without a header."""
        if FORMS[self.data_type].texts:
            return self._texts()
        if microseconds:
            return "".join(",".join(row) + "\n" for row in self.rows).encode()
        lines = []
        for row in self.rows:
            line = list(row)
            for column in FORMS[self.data_type].times:
                line[column] = str(int(line[column]) // 1_000)
            lines.append(",".join(line) + "\n")
        return "".join(lines).encode()

    def _texts(self) -> bytes:
        """Return the rows with times as text. If they are in no order, every second row comes first."""
        lines = []
        for at, *others in self.rows:
            moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=int(at) + self.moved)
            shown = f"{moment:%Y-%m-%d}" if FORMS[self.data_type].hours else f"{moment:%Y-%m-%d %H:%M:%S}"
            lines.append(",".join((shown, *others)) + "\n")
        return "".join([*lines[1::2], *lines[::2]] if FORMS[self.data_type].unordered else lines).encode()


def split_lines(text: bytes) -> list[list[str]]:
    """Return the fields of lines of CSV."""
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
    if FORMS[data_type].texts:
        times = [datetime.fromisoformat(row[0]).replace(tzinfo=UTC) for row in rows]
        if FORMS[data_type].hours:
            times = [at + timedelta(hours=int(row[1])) for at, row in zip(times, rows, strict=True)]
        timed = [[str(int(at.timestamp()) * 1_000_000), *row[1:]] for at, row in zip(times, rows, strict=True)]
        return TextRows(data_type, sorted(timed, key=lambda row: int(row[0])))
    for row in rows:
        for column in FORMS[data_type].times:
            if len(row[column]) < 16:
                # A kline closes in the last microsecond of its last millisecond.
                row[column] += "999" if column == 6 else "000"
    return TextRows(data_type, rows)
