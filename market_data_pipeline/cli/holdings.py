"""What the lake holds of a series, from its ledger and its folder, and how much is still to be downloaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from market_data_pipeline.day import EMPTY, FAILED, HELD, NOT_LISTED, DayRecord
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.on_record import rows_as_on_disk
from market_data_pipeline.lake.states import CHECKS_DO_NOT_PASS, is_complete
from market_data_pipeline.records import BYTES_A_DAY
from market_data_pipeline.series import SeriesKey
from market_data_pipeline.specs import expected_rows

_OF_CHECKS = ("day", "outcome", "final", "integrity", "gaps", "verdicts", "failure", "replaced_by")
_COLUMNS = (*_OF_CHECKS, "rows", "bytes")
_EPOCH = date(1970, 1, 1)


@dataclass(frozen=True, slots=True)
class Holding:
    """A series' ledger in columns, one element a day that was ever asked for.

    Attributes:
        day: Days since 1970-01-01 (UTC).
        held: Whether a file is there.
        final: Whether that file is settled.
        failed: Whether the newest attempt failed and nothing is held.
        empty: Whether it is settled that there is nothing to hold.
        not_listed: Whether the symbol was not listed, as far as was known when the day was asked for.
        rows: Rows in the file.
        bytes: Its size.
        incomplete: Whether a file is there, and the day is not complete (see ``lake.states``).
    """

    day: npt.NDArray[np.int64]
    held: npt.NDArray[np.bool_]
    final: npt.NDArray[np.bool_]
    failed: npt.NDArray[np.bool_]
    empty: npt.NDArray[np.bool_]
    not_listed: npt.NDArray[np.bool_]
    rows: npt.NDArray[np.int64]
    bytes: npt.NDArray[np.int64]
    incomplete: npt.NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, dtype=bool))

    @property
    def settled(self) -> set[date]:
        """Days that are final: nothing is downloaded for them again."""
        return {day_of(day) for day in self.day[self.held & self.final].tolist()}

    def missing_in(self, spans: Sequence[tuple[date, date]], *, listing_known: bool) -> int:
        """How many days inside spans (both ends included) are neither held nor failed, though they should be.

        Args:
            spans: Days to collect, which are over.
            listing_known: Whether the spans are those of the listing: a day inside them that was not listed when it
                was asked for is, as the listing knows by now.
        """
        known = self.held | self.failed | self.empty
        if not listing_known:
            known |= self.not_listed
        days = self.day[known]
        return sum(
            (last - first).days
            + 1
            - int(np.count_nonzero((days >= (first - _EPOCH).days) & (days <= (last - _EPOCH).days)))
            for first, last in spans
        )


def day_of(number: int) -> date:
    """The UTC day that is so many days after 1970-01-01."""
    return date.fromordinal(number + _EPOCH.toordinal())


def holding(layout: Layout, key: SeriesKey) -> Holding:
    """Read what is held of a series, as it lies on the disk."""
    table, _ = rows_as_on_disk(layout, key, _COLUMNS)
    outcome = np.asarray(table["outcome"].to_pylist(), dtype=object)
    held = outcome == HELD
    final = np.asarray(table["final"].to_pylist(), dtype=bool)
    return Holding(
        day=np.asarray(table["day"].cast(pa.date32()).cast(pa.int32()).to_numpy(), dtype=np.int64),
        held=np.asarray(held, dtype=bool),
        final=final,
        failed=np.asarray(outcome == FAILED, dtype=bool),
        empty=np.asarray((outcome == EMPTY) & final, dtype=bool),
        not_listed=np.asarray(outcome == NOT_LISTED, dtype=bool),
        rows=np.asarray(table["rows"].to_pylist(), dtype=np.int64),
        bytes=np.asarray(table["bytes"].to_pylist(), dtype=np.int64),
        incomplete=_incomplete(table),
    )


def _incomplete(table: pa.Table) -> npt.NDArray[np.bool_]:
    """Return which days are stored and not complete; only rows whose checks warn or fail are looked at one by one."""
    table = table.select(_OF_CHECKS).append_column("place", pa.array(range(table.num_rows), pa.int64()))
    found = np.zeros(table.num_rows, dtype=bool)
    for row in table.filter(CHECKS_DO_NOT_PASS).to_pylist():
        place = row.pop("place")
        found[place] = not is_complete(DayRecord(**row))
    return found


# Sizes of what Binance publishes and of the files made of it, as measured: 1,440 candles are a zip of 60-75 kB, a day
# of 1s candles 2.4 MB, a million aggTrades 15 MB.
_ZIP_BYTES_A_CANDLE, _ZIP_BYTES_A_SECOND_CANDLE, _ZIP_OVERHEAD = 48, 28, 500
_CANDLES_FILE_TO_ZIP, _TRADES_FILE_TO_ZIP = 1.1, 0.9
_FILE_OVERHEAD = 8_000
_AGG_TRADES_ZIP = 12_000_000
"""A day of a busy symbol's trades: what a symbol is taken for of which nothing is held."""
_SAMPLE = 30


@dataclass(frozen=True, slots=True)
class Size:
    """How much work is ahead.

    Attributes:
        days: Days that are not held and final.
        download: Bytes to download.
        disk: Bytes that the files of those days take.
    """

    days: int
    download: int
    disk: int

    @property
    def records(self) -> int:
        """Most bytes that Dagster's records of those days take."""
        return self.days * BYTES_A_DAY


def day_size(key: SeriesKey, held: Holding) -> tuple[float, float]:
    """Bytes of a day's zip and of its file: from the newest days that are held, else from what is usual.

    >>> from market_data_pipeline.series import DataType, Market
    >>> nothing = Holding(*(np.empty(0, dtype=t) for t in (int, *[bool] * 5, int, int)))
    >>> key = SeriesKey("binance", Market.SPOT, DataType.KLINES, "BTCUSDT", "1m")
    >>> [round(size) for size in day_size(key, nothing)]
    [69620, 84582]
    """
    rows = expected_rows(key)
    if rows is None:
        usual = float(_AGG_TRADES_ZIP)
    else:
        usual = _ZIP_OVERHEAD + rows * (_ZIP_BYTES_A_SECOND_CANDLE if key.interval == "1s" else _ZIP_BYTES_A_CANDLE)
    file = _FILE_OVERHEAD + usual * (_CANDLES_FILE_TO_ZIP if key.interval else _TRADES_FILE_TO_ZIP)
    sample = held.bytes[held.held & held.final][-_SAMPLE:]
    if not sample.size:
        return usual, file
    seen = float(sample.mean())
    return usual * seen / file, seen


def size_of(wanted: Mapping[SeriesKey, Sequence[date]], holdings: Mapping[SeriesKey, Holding]) -> Size:
    """Estimate what days of series will cost that are not held and final."""
    days, download, disk = 0, 0.0, 0.0
    for key, asked in wanted.items():
        left = len(set(asked) - holdings[key].settled)
        zipped, filed = day_size(key, holdings[key])
        days, download, disk = days + left, download + left * zipped, disk + left * filed
    return Size(days, round(download), round(disk))
