"""An exchange read from a folder with the archive's layout. It serves the zips and computes rows for REST from them.

Generated data do not belong here.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path

import numpy as np

from market_data_pipeline.clock import day_start_us
from market_data_pipeline.errors import UsageError
from market_data_pipeline.model.series import DataType, Market, SeriesKey
from market_data_pipeline.sandbox.cache import Cache
from market_data_pipeline.sandbox.exchange import (
    ArchiveKey,
    BucketObject,
    Exchange,
    ListedSymbol,
    ServedFile,
    Where,
    apply_row_faults,
    read_key,
)
from market_data_pipeline.sandbox.faults import Faults
from market_data_pipeline.sandbox.generator import moment_us
from market_data_pipeline.sandbox.rows import Rows, TextRows, read_csv


class MirrorExchange(Exchange):
    """An exchange whose archive is a folder.

    Args:
        now: returns the current time.
        faults: the active faults.
        folder: the folder that contains ``data/…``.
        publish_at: time of day (UTC) at which the archive of the previous day appears.

    Raises:
        UsageError: the folder does not contain ``data``.
    """

    def __init__(self, now: Callable[[], datetime], faults: Faults, folder: Path, publish_at: time = time(8)) -> None:
        super().__init__(now, faults, publish_at)
        if not (folder / "data").is_dir():
            raise UsageError(f"{folder} cannot be mirrored: it has no folder `data`. Give the folder that contains it.")
        self.folder = folder.resolve()
        self._parsed: Cache[TextRows] = Cache(400_000, lambda rows: len(rows.rows) + 1)

    def __repr__(self) -> str:
        return f"MirrorExchange({self.folder})"

    def symbols(self, market: Market) -> list[ListedSymbol]:
        """Return the symbols that have a folder."""
        names = {
            path.name
            for path in (self.folder / "data" / market.archive_folder).glob("*/*/*")
            if path.is_dir() and path.parent.name in (DataType.KLINES, DataType.AGG_TRADES)
        }
        quote = "USD" if market is Market.CM else "USDT"
        start = datetime(2017, 7, 14, tzinfo=UTC)
        return [
            ListedSymbol(name, name.removesuffix("_PERP").removesuffix(quote), quote, True, start, 8, 8, 1)
            for name in sorted(names)
        ]

    def days(self, series: SeriesKey) -> Sequence[date]:
        """Return the days that the zips of a series cover, up to today."""
        today = self.now().date()
        return sorted({day for archive in self._archives(series) for day in archive.days if day <= today})

    def day_of_agg_trade(self, series: SeriesKey, agg_trade_id: int) -> date | None:
        """Return the day of an aggTrade, or the first day after it. Return None if there is no such day."""
        for day in self.days(series):
            ids = self.rows(series, day, "rest").ids
            if ids is not None and len(ids) and ids[-1] >= agg_trade_id:
                return day
        return None

    def rows(self, series: SeriesKey, day: date, where: Where) -> Rows:
        """Return the rows of a day up to now, from its daily zip or else from its monthly zip."""
        candidates = (ArchiveKey(series, "daily", day), ArchiveKey(series, "monthly", day.replace(day=1)))
        path = next(path for archive in candidates if (path := self._path(archive.key)) is not None)
        stat = path.stat()
        whole = self._parsed.get((path, stat.st_mtime_ns, stat.st_size), lambda: _read_zip(series.data_type, path))
        now = moment_us(self.now()) + 1
        bounds = (day_start_us(day), min(day_start_us(day + timedelta(1)), now))
        times = whole.times
        low, high = (int(np.searchsorted(times, bound, "left")) for bound in bounds)
        rows = TextRows(series.data_type, whole.rows[low:high])
        return apply_row_faults(series, rows, self.faults.of_data(str(series)), where, generated=False)

    def children(self, folder: str) -> list[str]:
        """Return the keys and folders directly in a folder of the bucket."""
        here = self._path(folder) if folder else self.folder
        if here is None or not here.is_dir():
            return []
        return [f"{folder}{path.name}/" if path.is_dir() else f"{folder}{path.name}" for path in here.iterdir()]

    def cached(self, key: str) -> ServedFile | None:
        """Return a file if no data fault is active. Check the folder on each call, because it can grow."""
        return None if self._has_data_faults() else self.file(key)

    def _path(self, key: str) -> Path | None:
        if ".." in key.split("/"):
            return None
        path = self.folder / key
        return path if path.exists() else None

    def _archives(self, series: SeriesKey) -> list[ArchiveKey]:
        found = []
        for cadence in ("daily", "monthly"):
            folder = series.archive_folder(cadence)
            found += [archive for key in self.children(folder) if (archive := read_key(key)) is not None]
        return found

    def _plain(self, key: str) -> ServedFile | None:
        path = self._path(key)
        if path is None or path.is_dir():
            return None
        stat = path.stat()
        return self._files.get((key, stat.st_mtime_ns, stat.st_size), lambda: _read_file(path))

    def _checksum(self, zip_key: str) -> ServedFile | None:
        archive = read_key(zip_key)
        if archive is not None and self._is_changed(archive):
            return super()._checksum(zip_key)
        return self._plain(f"{zip_key}.CHECKSUM")

    def _describe_checksum(self, zip_file: BucketObject) -> BucketObject:
        return self._describe_plain(f"{zip_file.key}.CHECKSUM") or super()._describe_checksum(zip_file)

    def _describe_plain(self, key: str) -> BucketObject | None:
        file = self._plain(key)
        return None if file is None else BucketObject(key, len(file.body), file.etag, file.last_modified)


def _read_file(path: Path) -> ServedFile:
    body = path.read_bytes()
    modified = datetime.fromtimestamp(int(path.stat().st_mtime), UTC)
    return ServedFile(body, hashlib.md5(body, usedforsecurity=False).hexdigest(), modified)


def _read_zip(data_type: DataType, path: Path) -> TextRows:
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
        name = min(archive.namelist(), key=lambda name: (not name.endswith(f"{path.stem}.csv"), name))
        return read_csv(data_type, archive.read(name).decode())
