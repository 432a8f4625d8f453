"""``market-data plan``: the cost of a backfill before it begins. ``download.py`` asks with the same estimate.

Sizes come from the archive's listing, else from the newest stored days, else from typical days. Fetching does not
belong here.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import click

from market_data_pipeline import clock
from market_data_pipeline.cli.console import aside, counted, in_bytes, json_option, out, print_json, table
from market_data_pipeline.cli.selection import Selection, choose, choosing, collected
from market_data_pipeline.coverage.holdings import StoredDays, stored_days
from market_data_pipeline.defs.platform.records import (
    BYTES_A_DAY,
    EMPTY_HOME_BYTES,
    USUAL_BYTES_A_DAY,
    USUAL_BYTES_A_SERIES,
)
from market_data_pipeline.errors import NetworkError
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.ledger import Ledger, may_need_fetch
from market_data_pipeline.model.datasets import expected_rows, monthly_may_replace, spec_of
from market_data_pipeline.model.needs import NeedKind, needs, reach_of
from market_data_pipeline.model.outages import lacks_candles
from market_data_pipeline.model.places import local_of
from market_data_pipeline.model.schema import lake_schema
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.settings import Settings, load_settings
from market_data_pipeline.universe import load_universe
from market_data_pipeline.universe.listings import with_listings

# Sizes of what Binance publishes and of the files made of it, as measured: 1,440 candles are a zip of 60-75 kB, a day
# of 1s candles 2.4 MB, a million aggTrades 15 MB. A file has about 250 bytes of metadata per column.
_ZIP_BYTES_A_CANDLE, _ZIP_BYTES_A_SECOND_CANDLE, _ZIP_OVERHEAD = 48, 28, 500
_FILE_TO_ZIP, _TRADES_FILE_TO_ZIP = 1.05, 0.9
_FILE_OVERHEAD, _FILE_OVERHEAD_A_COLUMN = 1_000, 247
_AGG_TRADES_ZIP = 12_000_000
"""A day of trades of a busy symbol: the estimate for symbols without stored days."""
_SAMPLE = 30

_REST_TRADE_REQUESTS = 24
"""Fewest requests for a day of trades: one per hour."""

_BYTES_A_SECOND = 12_500_000
_SECONDS_A_DAY, _SECONDS_A_REQUEST, _SECONDS_TO_START = 0.03, 0.02, 3.0
"""The time of a download at 100 Mbit/s, with several requests at a time."""


@dataclass(frozen=True, slots=True)
class Size:
    """The estimated size of a download.

    Attributes:
        days: Days that are not final yet.
        download: Bytes to download.
        disk: Bytes on disk for the files of those days.
    """

    days: int
    download: int
    disk: int

    @property
    def records(self) -> int:
        """Return the maximum size of Dagster's records of those days, in bytes."""
        return self.days * BYTES_A_DAY


@dataclass(frozen=True, slots=True)
class SeriesPlan:
    """The estimated cost of fetching days of one series.

    Attributes:
        days: Days to fetch. Final days are not fetched again.
        files: Zips to download. One of a month counts once.
        download: Bytes of these zips.
        requests: Requests for zips, checksums and rows of REST.
        gap_requests: Those of them that are expected for missing rows of days with an archive.
        disk: Bytes on disk for the days' files.
        records: Bytes on disk for Dagster's records.
        listed: True if the sizes of zips come from the archive's listing.
    """

    key: SeriesKey
    days: int
    files: int
    download: int
    requests: int
    gap_requests: int
    disk: int
    records: int
    listed: bool

    @property
    def minutes(self) -> float:
        """Return the estimated time of the download in minutes, at 100 Mbit/s and without a start."""
        seconds = self.download / _BYTES_A_SECOND + self.days * _SECONDS_A_DAY + self.requests * _SECONDS_A_REQUEST
        return seconds / 60


def _rows(key: SeriesKey) -> int | None:
    """Return the most rows of a whole day. None if it is not known in advance."""
    slots = spec_of(key).slots
    return expected_rows(key) if slots is None else slots.most_a_day


def _file_size(key: SeriesKey, zipped: float) -> float:
    columns = len(lake_schema(key.market, key.data_type))
    of_rows = zipped * (_FILE_TO_ZIP if spec_of(key).slots or key.interval else _TRADES_FILE_TO_ZIP)
    return _FILE_OVERHEAD + columns * _FILE_OVERHEAD_A_COLUMN + of_rows


def day_size(key: SeriesKey, held: StoredDays) -> tuple[float, float]:
    """Return the bytes of a day's zip and of its file: those of the newest stored days, else typical ones.

    >>> import numpy as np
    >>> from market_data_pipeline.model.series import DataType, Market
    >>> nothing = StoredDays(*(np.empty(0, dtype=t) for t in (int, *[bool] * 5, int, int)))
    >>> key = SeriesKey("binance", Market.SPOT, DataType.KLINES, "BTCUSDT", "1m")
    >>> [round(size) for size in day_size(key, nothing)]
    [69620, 77312]
    """
    rows = _rows(key)
    if rows is None:
        usual = float(_AGG_TRADES_ZIP)
    else:
        usual = _ZIP_OVERHEAD + rows * (_ZIP_BYTES_A_SECOND_CANDLE if key.interval == "1s" else _ZIP_BYTES_A_CANDLE)
    file = _file_size(key, usual)
    sample = held.bytes[held.stored & held.final][-_SAMPLE:]
    if not sample.size:
        return usual, file
    seen = float(sample.mean())
    return usual * seen / file, seen


def plan_of(
    key: SeriesKey, wanted: Iterable[date], held: StoredDays, sizes: Mapping[str, int] | None = None, retries: int = 0
) -> SeriesPlan:
    """Estimate the cost of fetching days of a series.

    Args:
        sizes: Bytes of each zip in the archive's listing, by its key. None if the listing was not read: then every
            past day counts as one zip.
        retries: Stored days whose missing rows are requested again.
    """
    today, of_day, disk_of_day = clock.today(), *day_size(key, held)
    is_sampled = bool((held.stored & held.final).any())
    left = sorted(set(wanted) - held.final_days)
    jobs, alone = _split(key, left, today)
    files, requests, download, disk, gaps = 0, 0, 0.0, 0.0, 0.0
    often = _share_with_gaps(key, held)

    def take(path: str, days: int, *, again: bool = False) -> bool:
        """Count a zip of some days, ``again`` if they are stored anyway. Return False if it does not exist."""
        nonlocal files, requests, download, disk
        size = of_day * days if sizes is None else sizes.get(path)
        requests += 1 if size is None else 2
        if size is None:
            return False
        files, download = files + 1, download + size
        disk += 0 if again else days * (disk_of_day if sizes is None or is_sampled else _file_size(key, size / days))
        return True

    for month in jobs:
        if not take(key.archive_monthly(month[0]), len(month)):
            alone += month
            continue
        gaps += sum(_expected_gaps(key, day, often) for day in month)
        if spec_of(key).daily:  # the daily zip of an incomplete day is read too
            known = [day for day in month if lacks_candles(key, day)]
            for day in known:
                take(key.archive_daily(day), 1, again=True)
            others = round(often * (len(month) - len(known)))
            files, requests, download = files + others, requests + 2 * others, download + others * of_day
    for day in alone:
        if day < today and spec_of(key).daily and take(key.archive_daily(day), 1):
            gaps += _expected_gaps(key, day, often)
            continue
        requests += _rest_requests(key, held)
        disk += disk_of_day
    gap_requests = round((gaps + retries) * _requests_a_gap(key))
    return SeriesPlan(
        key,
        len(left),
        files,
        round(download),
        requests + gap_requests,
        gap_requests,
        round(disk),
        len(left) * USUAL_BYTES_A_DAY + bool(left) * USUAL_BYTES_A_SERIES,
        sizes is not None,
    )


def _split(key: SeriesKey, left: Sequence[date], today: date) -> tuple[list[list[date]], list[date]]:
    """Return the days that come from zips of months, by month, and the days that come alone, as ``ingest`` does it."""
    months: dict[date, list[date]] = {}
    for day in left:
        months.setdefault(day.replace(day=1), []).append(day)
    jobs, alone = [], list[date]()
    for first, days in months.items():
        month = clock.days_of_month(first)
        whole = not spec_of(key).daily or (monthly_may_replace(key) and len(days) == len(month))
        if whole and month[-1] < today:
            jobs.append(days)
        else:
            alone += days
    return jobs, alone


def _share_with_gaps(key: SeriesKey, held: StoredDays) -> float:
    """Return the share of the stored days with missing rows in their source, without known halts."""
    chosen = held.stored & held.final
    if not chosen.any() or held.gapped.size != chosen.size:
        return 0.0
    gapped = sum(not lacks_candles(key, clock.day_of_number(day)) for day in held.day[chosen & held.gapped].tolist())
    return gapped / int(chosen.sum())


def _expected_gaps(key: SeriesKey, day: date, often: float) -> float:
    return 1.0 if lacks_candles(key, day) else often


def _requests_a_gap(key: SeriesKey) -> int:
    """Return the number of requests for the missing rows of a day. 0 if REST does not have the data type."""
    rest = spec_of(key).rest
    return 1 + len(rest.joined) if rest.path else 0


def days_to_retry(layout: Layout, key: SeriesKey, days: Iterable[date]) -> int:
    """Return the number of final days whose missing rows a backfill requests again."""
    rows, now, reach = Ledger.read(layout.ledger(key), may_need_fetch()).rows, clock.now(), reach_of(key)
    kept = (rows[day] for day in days if day in rows and rows[day].is_stored_final)
    found = (needs(row, now, reach) for row in kept)
    return sum(need.kind is NeedKind.REST and not need.is_met for need in found)


def _rest_requests(key: SeriesKey, held: StoredDays) -> int:
    """Return the number of REST requests for a day. 0 if REST does not have the data type."""
    rest = spec_of(key).rest
    if not rest.path:
        return 0
    rows = _rows(key)
    if rows is None:
        seen = held.rows[held.stored & held.final][-_SAMPLE:]
        return max(_REST_TRADE_REQUESTS, math.ceil(float(seen.mean()) / rest.page) if seen.size else 0)
    return math.ceil(rows / rest.page) * (1 + len(rest.joined))


def size_of(wanted: Mapping[SeriesKey, Sequence[date]], holdings: Mapping[SeriesKey, StoredDays]) -> Size:
    """Estimate the size of the days of series that are not final yet, without network."""
    plans = [plan_of(key, days, holdings[key]) for key, days in wanted.items()]
    return Size(sum(p.days for p in plans), sum(p.download for p in plans), sum(p.disk for p in plans))


def listed_sizes(settings: Settings, wanted: Mapping[SeriesKey, Sequence[date]]) -> dict[SeriesKey, dict[str, int]]:
    """Read the sizes of zips from the archive's listing: 500 zips in a request, and only around the wanted days.

    Raises:
        NetworkError: The listing cannot be read.
    """
    from market_data_pipeline.maintenance.archive_sweep import find_listed
    from market_data_pipeline.sources.binance.archive import ArchiveClient
    from market_data_pipeline.sources.binance.listing_page import ListedFile

    today = clock.today()
    with closing(ArchiveClient(settings)) as archive:
        found: dict[SeriesKey, dict[str, int]] = {}
        for key, days in wanted.items():
            jobs, alone = _split(key, days, today)
            months, _ = find_listed(
                archive, key.archive_folder("monthly"), (key.archive_monthly(month[0]) for month in jobs)
            )
            alone += [day for month in jobs if key.archive_monthly(month[0]) not in months for day in month]
            alone += [day for month in jobs for day in month if lacks_candles(key, day)]
            past = [key.archive_daily(day) for day in alone if day < today] if spec_of(key).daily else []
            dailies, _ = find_listed(archive, key.archive_folder("daily"), past)
            files = [file for file in (*months.values(), *dailies.values()) if isinstance(file, ListedFile)]
            found[key] = {file.key: file.size for file in files}
    return found


def existing(path: Path) -> Path:
    """Return the path itself if it exists, else the nearest folder above it that does."""
    return next(folder for folder in (path, *path.parents) if folder.exists())


@click.command("plan")
@choosing(days=("the start in universe.yaml", "today, or the delisting"))
@click.option("--offline", is_flag=True, help="Do not read the archive's listing. Sizes are estimates.")
@json_option
def plan_command(what: Selection, offline: bool, as_json: bool) -> None:
    """Show what a backfill would cost.

    Prints days, files, bytes, requests, minutes and disk for each series, and fetches no data. Sizes come from the
    archive's listing; with --offline, from stored days, else from typical ones. Disk includes Dagster's records.
    Final days cost nothing, except requests for their missing rows. Gaps of other days are expected as often as in the
    stored days of a series, and in known halts of spot. The minutes are for 100 Mbit/s. What you leave out selects all.

      market-data plan BTCUSDT ETHUSDT 1m --from 2024-01 --through 2024-03
      market-data plan aggTrades --offline --json
    """
    settings = load_settings()
    universe = load_universe(settings.universe)
    if not offline:
        universe = with_listings(settings, universe, collected(universe, what), aside().print)
    chosen = choose(universe, what)
    for note in chosen.notes:
        aside().print(note)
    layout = Layout(settings.root)
    holdings = {key: stored_days(layout, key) for key in chosen.wanted}
    left = {key: sorted(set(days) - holdings[key].final_days) for key, days in chosen.wanted.items()}
    sizes: Mapping[SeriesKey, Mapping[str, int]] = {}
    if not offline:
        try:
            sizes = listed_sizes(settings, left)
        except NetworkError as error:
            aside().print(f"{error} The sizes below are estimates without the listing.")
    plans = [
        plan_of(key, days, holdings[key], sizes.get(key), days_to_retry(layout, key, chosen.wanted[key]))
        for key, days in left.items()
    ]
    if as_json:
        print_json(map(_as_object, plans))
    else:
        _print(plans, 0 if layout.dagster_home.exists() else EMPTY_HOME_BYTES, settings.root)


def _as_object(one: SeriesPlan) -> dict[str, object]:
    return {
        "series": str(one.key),
        "days": one.days,
        "files": one.files,
        "bytes": one.download,
        "requests": one.requests,
        "gap_requests": one.gap_requests,
        "minutes": round(one.minutes, 2),
        "disk": one.disk + one.records,
        "records": one.records,
        "listed": one.listed,
    }


def _print(plans: Sequence[SeriesPlan], home: int, root: Path) -> None:
    numbers = ("days", "files", "download", "requests", "minutes", "disk")
    shown = table("", "series", *numbers, right=numbers)
    for one in plans:
        shown.add_row(one.key.short, *_cells([one]))
    if len(plans) > 1:
        shown.add_section()
        shown.add_row("total", *_cells(plans), style="bold")
    console = out()
    console.print(shown)
    records = sum(one.records for one in plans) + home
    free = shutil.disk_usage(existing(local_of(root))).free
    minutes = sum(one.minutes for one in plans) + _SECONDS_TO_START / 60
    console.print(
        f"{counted(sum(one.days for one in plans), 'day')} in about {max(1, math.ceil(minutes)):,} min at 100 Mbit/s. "
        f"{in_bytes(sum(one.disk for one in plans) + records)} on disk, {in_bytes(records)} of them Dagster's records; "
        f"{in_bytes(free)} are free.",
        soft_wrap=True,
    )


def _cells(plans: Sequence[SeriesPlan]) -> list[str]:
    return [
        f"{sum(one.days for one in plans):,}",
        f"{sum(one.files for one in plans):,}",
        in_bytes(sum(one.download for one in plans)),
        f"{sum(one.requests for one in plans):,}",
        f"{sum(one.minutes for one in plans):,.1f}",
        in_bytes(sum(one.disk + one.records for one in plans)),
    ]
