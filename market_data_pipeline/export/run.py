"""Export series: choose those that a format has, write each one, and describe it with its gaps and its version."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path

from market_data_pipeline import clock
from market_data_pipeline.client.versions import final_only as final_days
from market_data_pipeline.client.versions import version_of
from market_data_pipeline.errors import MarketDataError, UsageError
from market_data_pipeline.export.formats import ExportFormat
from market_data_pipeline.export.gaps import ExportGap, export_gaps
from market_data_pipeline.export.pairs import Pairs
from market_data_pipeline.export.rows import SeriesRows
from market_data_pipeline.export.target import ExportFolder
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.partitions import day_files_between, stored_dates
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.universe.resolved import Listings

_ATTEMPTS = 3
"""Attempts at a series whose days are replaced while they are read."""


@dataclass(frozen=True, slots=True)
class SeriesExport:
    """An exported series.

    Attributes:
        series: Its name.
        first: First day of the range.
        last: Last day of the range, included.
        days: Stored days in the range.
        rows: Rows written.
        version: Hash over the contents of the days, as of ``MarketData``.
        files: Paths of its files below the folder.
        gaps: Its gaps, explained ones included.
    """

    series: str
    first: date
    last: date
    days: int
    rows: int
    version: str
    files: tuple[str, ...]
    gaps: tuple[ExportGap, ...]

    @property
    def unexplained(self) -> int:
        """Return the number of gaps without an explanation."""
        return sum(not gap.explained for gap in self.gaps)


@dataclass(frozen=True, slots=True)
class ChosenSeries:
    """The series of an export.

    Attributes:
        keys: Series to write.
        left_out: Reasons for series that the format does not have, with their number.
    """

    keys: tuple[SeriesKey, ...]
    left_out: dict[str, int]


def choose_series(
    layout: Layout, form: ExportFormat, keys: Sequence[SeriesKey], is_named: Callable[[SeriesKey], bool]
) -> ChosenSeries:
    """Return the series that a format has.

    Args:
        is_named: Returns True if somebody named the data type or interval of a series. It is then refused if the
            format does not have it. Otherwise it is left out.

    Raises:
        UsageError: The format does not have a named series, or would write it to the file of another one. Or nothing
            is left.
    """
    pairs, taken = Pairs(layout), dict[str, SeriesKey]()
    left_out: dict[str, int] = {}
    for key in sorted(keys, key=lambda key: (_preference(form, key), key)):
        reason = form.refuses(key)
        if not reason:
            try:
                other = taken.setdefault(form.path(key, pairs), key)
                reason = "" if other is key else f"{form.name} has one file for {other.data_type} and {key.data_type}"
            except UsageError as error:  # its assets are not known
                reason = str(error).removesuffix(".")
        if reason and is_named(key):
            raise UsageError(f"{key} cannot be exported: {reason}.")
        if reason:
            left_out[reason] = left_out.get(reason, 0) + 1
    if not taken:
        reasons = "; ".join(left_out) or "nothing is stored"
        raise UsageError(f"There is no series to export as {form.name}: {reasons}.")
    return ChosenSeries(tuple(sorted(taken.values())), left_out)


def _preference(form: ExportFormat, key: SeriesKey) -> int:
    types = form.data_types
    return types.index(key.data_type) if key.data_type in types else len(types)


def days_to_export(
    layout: Layout, keys: Collection[SeriesKey], first: date | None, last: date | None
) -> dict[SeriesKey, list[date]]:
    """Return the stored days of series in a range, without series that have none.

    Raises:
        UsageError: No day is stored.
    """
    found = {}
    for key in keys:
        days = sorted(stored_dates(layout, key))
        found[key] = [day for day in days if (first is None or day >= first) and (last is None or day <= last)]
    if not any(found.values()):
        raise UsageError("No day of the selected series is stored in this range.")
    return {key: days for key, days in found.items() if days}


def export_series(
    layout: Layout,
    form: ExportFormat,
    folder: Path,
    days: Mapping[SeriesKey, Sequence[date]],
    first: date | None,
    last: date | None,
    listings: Callable[[], Listings],
    *,
    final_only: bool = False,
    on_days: Callable[[SeriesKey, int], object] | None = None,
) -> Iterator[SeriesExport]:
    """Write series below a folder, and yield each one when it is in its place.

    Files are replaced one by one, and each one atomically. Files of other series in the folder stay.

    Args:
        days: Days from :func:`days_to_export`.
        first: First UTC day; None means the first stored day of each series.
        last: Last UTC day, included; None means the last stored day of each series.
        listings: Reads the known listings of symbols. Outside a listing, no day is missing.
        final_only: Leave out days that are provisional or fail the integrity check.
        on_days: Receives a number of days when they are written.

    Raises:
        UsageError: The folder has other files, or is inside of the data folder.
        DamagedFileError: A file of the lake is damaged. The message names it.
        MarketDataError: Days were replaced again and again while they were read.
        StorageError: The folder is not writable.
    """
    target = ExportFolder(folder, form.name, layout.local)
    work = _Work(layout, form, target, Pairs(layout), listings, final_only)
    with target.opened():
        for key, stored in days.items():
            yield work.export(key, first or stored[0], last or stored[-1], partial(on_days or _ignore, key))


def _ignore(key: SeriesKey, days: int) -> None:
    """Do nothing when days are written."""


@dataclass(frozen=True, slots=True)
class _Work:
    """All that the export of one series needs."""

    layout: Layout
    form: ExportFormat
    target: ExportFolder
    pairs: Pairs
    listings: Callable[[], Listings]
    final_only: bool

    def export(self, key: SeriesKey, first: date, last: date, on_days: Callable[[int], object]) -> SeriesExport:
        """Write a series, again if its days are replaced meanwhile."""
        for _ in range(_ATTEMPTS):
            with self.target.staging() as staged:
                try:
                    made = self._write(key, first, last, staged, on_days)
                except FileNotFoundError:  # a day was moved into the file of its month after it was listed
                    continue
                if made is not None:
                    return made
        raise MarketDataError(f"Days of {key} were replaced {_ATTEMPTS} times during the export. Run it again.")

    def _write(
        self, key: SeriesKey, first: date, last: date, staged: Path, on_days: Callable[[int], object]
    ) -> SeriesExport | None:
        """Write a series. Return None if a day was replaced meanwhile, so that its version is not known."""
        days = day_files_between(self.layout, key, first, last)
        series = SeriesRows(key, final_days(self.layout, days) if self.final_only else days, on_days)
        self.form.write(series, staged, self.pairs)
        gaps = export_gaps(self.layout, key, first, last, self.listings, final_only=self.final_only)
        version = version_of(self.layout, series.days)
        if version is None:
            return None
        facts = {
            "first": first.isoformat(),
            "last": last.isoformat(),
            "days": len(series.days),
            "rows": series.rows,
            "version": version,
            "exported_at": clock.now().isoformat(timespec="seconds").replace("+00:00", "Z"),
        }
        place = self.form.path(key, self.pairs)
        files = self.target.replace(str(key), place, staged, facts, [gap.as_json() for gap in gaps])
        return SeriesExport(str(key), first, last, len(series.days), series.rows, version, tuple(files), tuple(gaps))
