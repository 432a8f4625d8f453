"""``market-data status``: count the stored days of each series, from the ledgers and the folders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date, timedelta

import click
import numpy as np
from rich.console import Console
from rich.text import Text

from market_data_pipeline import clock
from market_data_pipeline.cli.console import counted, in_bytes, json_option, out, print_json, red, table
from market_data_pipeline.coverage.condition import record_collected
from market_data_pipeline.coverage.holdings import StoredDays, stored_days
from market_data_pipeline.defs.platform.records import BIG, size_of_records
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.model.series import EXCHANGE, SeriesKey
from market_data_pipeline.settings import Settings, load_settings
from market_data_pipeline.universe import Universe, load_universe

_WIDTH_WITH_DAYS = 105


@dataclass(frozen=True, slots=True)
class SeriesStatus:
    """Numbers of one series.

    Attributes:
        series: Its name.
        collected: True if the universe still has it.
        first: First UTC day with a file. None without a file.
        last: Last UTC day with a file.
        held: Final days.
        provisional: Days with a file that is not final yet.
        incomplete: Days with a file that are incomplete or fail their checks; they are among the two above.
        failed: Days that could not be fetched.
        missing: Past days of the universe that were never fetched.
        rows: Rows in all files.
        bytes: Size of all files.
    """

    series: str
    collected: bool
    first: date | None
    last: date | None
    held: int
    provisional: int
    incomplete: int
    failed: int
    missing: int
    rows: int
    bytes: int


def status_of(key: SeriesKey, found: StoredDays, universe: Universe) -> SeriesStatus:
    """Count the stored days of a series, and the days of its universe that are missing."""
    collected = key in universe
    yesterday = clock.today() - timedelta(days=1)
    spans = universe.spans(key) if collected else []
    over = [(first, min(last, yesterday)) for first, last in spans if first <= yesterday]
    days = found.day[found.stored]
    return SeriesStatus(
        series=str(key),
        collected=collected,
        first=clock.day_of_number(int(days.min())) if days.size else None,
        last=clock.day_of_number(int(days.max())) if days.size else None,
        held=int(np.count_nonzero(found.stored & found.final)),
        provisional=int(np.count_nonzero(found.stored & ~found.final)),
        incomplete=int(np.count_nonzero(found.incomplete)),
        failed=int(np.count_nonzero(found.failed)),
        missing=found.missing_in(over, listing_known=bool(universe.listing(key).spans)),
        rows=int(found.rows[found.stored].sum()),
        bytes=int(found.bytes[found.stored].sum()),
    )


def all_series(settings: Settings, universe: Universe) -> list[SeriesStatus]:
    """Return the status of every collected or stored series."""
    from market_data_pipeline.lake.partitions import known_series

    layout = Layout(settings.root)
    keys = dict.fromkeys([*universe.series(), *known_series(layout)])
    return [status_of(key, stored_days(layout, key), universe) for key in keys]


def print_status(statuses: Sequence[SeriesStatus], root: str, console: Console) -> None:
    """Print the table. On a narrow screen, leave out the first and last day."""
    with_days = console.width >= _WIDTH_WITH_DAYS
    with_incomplete = any(s.incomplete for s in statuses)
    numbers = ("held", "prov.", *(["incompl."] if with_incomplete else []), "failed", "missing", "rows", "size")
    shown = table(f"Series in {root}", "series", *(["from", "through"] if with_days else []), *numbers, right=numbers)
    for s in statuses:
        days = (str(s.first or "–"), str(s.last or "–")) if with_days else ()
        name = s.series.removeprefix(f"{EXCHANGE}/")
        shown.add_row(name if s.collected else f"{name} (no longer collected)", *days, *_numbers(s, with_incomplete))
    if len(statuses) > 1:
        shown.add_section()
        shown.add_row(
            "total", *(("", "") if with_days else ()), *_numbers(_total(statuses), with_incomplete), style="bold"
        )
    console.print(shown)
    if incomplete := _total(statuses).incomplete:
        said = f"{counted(incomplete, 'day')} incomplete: stored, and rows are missing unexplained or checks fail."
        console.print(red(said), soft_wrap=True)
        advice = "`market-data coverage` explains them, and `market-data backfill` of those days prints what to do."
        console.print(f"  {advice}", soft_wrap=True)


def tell_records(layout: Layout, days: int, console: Console) -> None:
    """Print the size of Dagster's records, in all and per stored day, and the remedy if it is large."""
    size = size_of_records(layout.dagster_home)
    a_day = f", {in_bytes(size / days)} for each day" if days else ""
    advice = " `market-data prune` drops old runs and gives their space back." if size > BIG else ""
    console.print(f"Dagster's records: {in_bytes(size)}{a_day}.{advice}", soft_wrap=True)


def _total(statuses: Sequence[SeriesStatus]) -> SeriesStatus:
    names = ("held", "provisional", "incomplete", "failed", "missing", "rows", "bytes")
    sums = {name: sum(getattr(s, name) for s in statuses) for name in names}
    return SeriesStatus(series="total", collected=True, first=None, last=None, **sums)


def _numbers(s: SeriesStatus, with_incomplete: bool) -> tuple[str | Text, ...]:
    incomplete, failed = (red(f"{number:,}") if number else "0" for number in (s.incomplete, s.failed))
    wrong = (incomplete, failed) if with_incomplete else (failed,)
    return (f"{s.held:,}", f"{s.provisional:,}", *wrong, f"{s.missing:,}", f"{s.rows:,}", in_bytes(s.bytes))


@click.command()
@json_option
def status(as_json: bool) -> None:
    """Show the stored days of each series.

    The column "held" counts final days. They are verified. Provisional days (prov.) came from REST, or without a
    checksum. They are fetched again when the archive has them. Incomplete days (incompl.) are among both. They have
    unexplained missing rows, or fail their checks. Failed days could not be fetched. Missing days are past days of
    universe.yaml that were never fetched. SQL has the reasons of failures:

      market-data sql "FROM quality.coverage WHERE failure IS NOT NULL"
    """
    from market_data_pipeline.sql.publish import refresh_catalog

    settings = load_settings()
    universe = load_universe(settings.universe)
    record_collected(Layout(settings.root), universe)
    refresh_catalog(Layout(settings.root))
    statuses = all_series(settings, universe)
    if as_json:
        print_json(asdict(s) for s in statuses)
    else:
        print_status(statuses, str(settings.root), out())
        tell_records(Layout(settings.root), sum(s.held + s.provisional for s in statuses), out())
