"""Format ``lean``: zips of a LEAN data folder, with trades of seconds, minutes, hours and days, and funding rates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

import pyarrow as pa
import pyarrow.compute as pc

from market_data_pipeline import clock
from market_data_pipeline.export.pairs import Pairs
from market_data_pipeline.export.rows import SeriesRows
from market_data_pipeline.model.series import DataType, Market, SeriesKey

LEAN_RESOLUTIONS = {"1s": "second", "1m": "minute", "1h": "hour", "1d": "daily"}
"""LEAN's resolutions by kline interval."""

_IN_ONE_ZIP = frozenset({"hour", "daily"})
"""Resolutions whose days are in one zip. The others have a zip per day."""

_ZIP_TIME = (1980, 1, 1, 0, 0, 0)
"""Modification time of all members, so that equal rows are equal bytes."""

_RATE_DIGITS = 8
"""Least number of decimals of a funding rate, as in LEAN's own files."""


def lean_path(key: SeriesKey, pairs: Pairs) -> str:  # noqa: ARG001 - the signature of all formats
    """Return the path of a series' zip, CSV or folder of zips below the target."""
    folder = f"{'crypto' if key.market is Market.SPOT else 'cryptofuture'}/binance"
    if key.data_type is DataType.FUNDING_RATE:
        return f"{folder}/margin_interest/{_name(key)}.csv"
    if (resolution := _resolution(key)) in _IN_ONE_ZIP:
        return f"{folder}/{resolution}/{_name(key)}_trade.zip"
    return f"{folder}/{resolution}/{_name(key)}"


def lean_refusal(key: SeriesKey) -> str:
    """Return a reason why LEAN cannot read a series; empty if it can."""
    if key.interval is not None and key.interval not in LEAN_RESOLUTIONS:
        return f"LEAN has no candles of {key.interval}, only of {', '.join(LEAN_RESOLUTIONS)}"
    if key.market is not Market.SPOT and _suffix(key) not in ("", "PERP"):
        return "LEAN reads perpetual futures of Binance, and no contracts with a delivery"
    return ""


def write_lean(series: SeriesRows, folder: Path, pairs: Pairs) -> None:
    """Write a series as zips, or funding rates as CSV."""
    path = folder / lean_path(series.key, pairs)
    (path.parent if path.suffix in (".csv", ".zip") else path).mkdir(parents=True, exist_ok=True)
    parts = series.parts(by_day=True)
    if series.key.data_type is DataType.FUNDING_RATE:
        with path.open("w", encoding="ascii", newline="") as file:
            for _, table in parts:
                file.writelines(f"{line}\n" for line in _funding_lines(table))
        return
    resolution = _resolution(series.key)
    if resolution in _IN_ONE_ZIP:
        _write_zip(
            path, _member(series.key, resolution), (line for _, table in parts for line in _bar_lines(table, _long))
        )
        return
    for day, table in parts:
        lines = _tick_lines(table) if resolution == "tick" else _bar_lines(table, _milliseconds)
        _write_zip(path / f"{day:%Y%m%d}_trade.zip", _member(series.key, resolution, day), lines)


def _resolution(key: SeriesKey) -> str:
    return LEAN_RESOLUTIONS[key.interval] if key.interval else "tick"


def _suffix(key: SeriesKey) -> str:
    return key.symbol.partition("_")[2]


def _name(key: SeriesKey) -> str:
    return key.symbol.partition("_")[0].lower()


def _member(key: SeriesKey, resolution: str, day: date | None = None) -> str:
    name, perpetual = _name(key), [] if key.market is Market.SPOT else ["perp"]
    if day is not None:
        return "_".join([f"{day:%Y%m%d}", name, resolution, "trade", *perpetual]) + ".csv"
    return "_".join([name, *(["trade", *perpetual] if perpetual else [])]) + ".csv"


def _write_zip(path: Path, member: str, lines: Iterable[str]) -> None:
    info = ZipInfo(member, _ZIP_TIME)
    info.compress_type = ZIP_DEFLATED
    with ZipFile(path, "w") as zipped, zipped.open(info, "w", force_zip64=True) as file:
        file.writelines(text.encode("ascii") for text in _joined_lines(lines))


def _joined_lines(lines: Iterable[str]) -> Iterator[str]:
    """Yield lines with a line feed between them, and none after the last, as in LEAN's own zips."""
    for number, line in enumerate(lines):
        yield f"\n{line}" if number else line


# --- lines ---------------------------------------------------------------------------------------------------------


def _bar_lines(table: pa.Table, time: Callable[[pa.Table, str], Iterable[str]]) -> Iterator[str]:
    numbers = [_plain_numbers(table[name]) for name in ("open", "high", "low", "close", "volume")]
    for row in zip(time(table, "open_time"), *numbers, strict=True):
        yield ",".join(row)


def _tick_lines(table: pa.Table) -> Iterator[str]:
    of_orders = "agg_trade_id" in table.column_names
    time, amount = ("transact_time", "quantity") if of_orders else ("time", "qty")
    numbers = [_plain_numbers(table[name]) for name in ("price", amount)]
    for row in zip(_milliseconds(table, time), *numbers, strict=True):
        yield f"{','.join(row)},0"


def _funding_lines(table: pa.Table) -> Iterator[str]:
    times = pc.round_temporal(table["calc_time"], unit="minute").to_pylist()
    for time, rate in zip(times, table["last_funding_rate"].to_pylist(), strict=True):
        digits = max(_RATE_DIGITS, -_exponent(number := Decimal(repr(rate))))
        yield f"{time:%Y%m%d %H:%M:%S},{number:.{digits}f}"


def _exponent(number: Decimal) -> int:
    exponent = number.as_tuple().exponent
    return exponent if isinstance(exponent, int) else 0


def _milliseconds(table: pa.Table, column: str) -> Iterator[str]:
    """Yield times as milliseconds since midnight, with decimals if there are microseconds."""
    times: list[Any] = table[column].cast(pa.int64()).to_pylist()
    for us in times:
        whole, rest = divmod(us % clock.US_PER_DAY, 1000)
        yield f"{whole}.{rest:03}".rstrip("0") if rest else str(whole)


def _long(table: pa.Table, column: str) -> Iterator[str]:
    times: list[Any] = table[column].to_pylist()
    return (f"{time:%Y%m%d %H:%M}" for time in times)


def _plain_numbers(column: pa.ChunkedArray[Any]) -> Iterator[str]:
    """Yield numbers with all their digits, and without an exponent, which LEAN does not read."""
    for number in column.to_pylist():
        text = repr(number)
        yield f"{Decimal(text):f}" if "e" in text else text.removesuffix(".0")
