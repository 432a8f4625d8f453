"""``market-data coverage``: days by state and gaps by verdict, as a table, and as a page with calendars."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

from market_data_pipeline import clock
from market_data_pipeline.cli.console import aside, counted, html_option, json_option, out, print_json, red, table
from market_data_pipeline.cli.selection import Selection, choosing, series_among
from market_data_pipeline.coverage.calendar import SeriesCalendar
from market_data_pipeline.coverage.condition import record_collected
from market_data_pipeline.coverage.page import coverage_page
from market_data_pipeline.coverage.summary import SeriesCoverage, Surveyed, survey
from market_data_pipeline.errors import UsageError
from market_data_pipeline.lake import storage
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.model.findings import Verdict
from market_data_pipeline.model.states import DayState
from market_data_pipeline.settings import load_settings
from market_data_pipeline.universe import Universe, load_universe

_HEADS = {
    DayState.FINAL: "final",
    DayState.PROVISIONAL: "prov.",
    DayState.HEALED: "healed",
    DayState.OUTAGE: "outage",
    DayState.INCOMPLETE: "incompl.",
    DayState.FAULTY: "faulty",
    DayState.FAILED: "failed",
    DayState.MISSING: "missing",
    DayState.NOT_LISTED: "not listed",
}
_ALWAYS = (DayState.FINAL, DayState.PROVISIONAL, DayState.FAILED, DayState.MISSING)
_WRONG = (DayState.INCOMPLETE, DayState.FAULTY, DayState.FAILED)
_WIDTH_WITH_GAPS = 130
_SHOWN_DOUBTFUL = 20


@click.command()
@choosing()
@html_option("Write an HTML page with a calendar of each series, as one self-contained file.")
@json_option
def coverage(what: Selection, page: Path | None, as_json: bool) -> None:
    """Show how complete each series is.

    The table counts days by state, and missing rows inside of them by verdict.

    Final days need no more work. Healed days have rows from REST that are missing in the archive. On outage days the
    exchange was halted. Incomplete days (incompl.) have missing rows without an explanation. Failed and missing mean
    the same as in `market-data status`. So does provisional (prov.), without incomplete days.

    Stored days with a doubt are listed below the table: the archive that replaced theirs was refused, a person accepted
    a checksum that does not match, or their integrity check fails. What you leave out selects all.

      market-data coverage BTCUSDT 1m --market um
      market-data coverage --html coverage.html
    """
    from market_data_pipeline.lake.partitions import known_series
    from market_data_pipeline.sql.publish import refresh_catalog

    settings = load_settings()
    layout = Layout(settings.root)
    held = known_series(layout)
    universe = universe_or_none(settings.universe, or_without=bool(held))
    if universe.entries:
        record_collected(layout, universe)
    refresh_catalog(layout)
    there = list(dict.fromkeys([*universe.series(), *held]))
    keys = series_among(there, what, str(settings.root), "`market-data add` adds a series to the universe.")
    surveyed = list(survey(layout, universe, keys, settings.provisional_days))
    calendars = [one.calendar for one in surveyed]
    if as_json:
        print_json(map(_as_object, surveyed))
    else:
        print_coverage(calendars, str(settings.root), out())
        tell_doubtful([one.coverage for one in surveyed], out())
    if page is not None:
        text = coverage_page(calendars, str(settings.root), clock.now())
        storage.put(page.absolute(), text.encode())
        (aside() if as_json else out()).print(f"{page} shows {counted(len(calendars), 'calendar')}.", soft_wrap=True)


def universe_or_none(path: Path, *, or_without: bool) -> Universe:
    """Return the universe. If it cannot be read and ``or_without`` is set, return an empty one."""
    try:
        return load_universe(path)
    except UsageError as error:
        if not or_without:
            raise
        aside().print(f"{error} Stored data is shown without it, so no day counts as missing.")
        return Universe((), {}, path)


def _as_object(one: Surveyed) -> dict[str, object]:
    days = one.calendar.counts()
    return {
        "series": str(one.calendar.key),
        **{state.value: days[state] for state in _HEADS},
        "doubtful": len(one.coverage.doubtful),
        **{f"rows_{verdict}": one.calendar.verdicts.get(verdict, 0) for verdict in Verdict},
    }


def print_coverage(calendars: Sequence[SeriesCalendar], root: str, console: Console) -> None:
    """Print the table, with those states that there are; a narrow screen has the gaps below it, all series together."""
    wide = console.width >= _WIDTH_WITH_GAPS
    days: Counter[DayState] = Counter()
    for one in calendars:
        days += one.counts()
    states = [state for state in _HEADS if state in _ALWAYS or days[state]]
    heads = [_HEADS[state] for state in states]
    verdicts = ["rows by verdict"] if wide else []
    shown = table(f"Days in {root}", "series", *heads, *verdicts, right=heads, fold="rows by verdict")
    rows: Counter[str] = Counter()
    for one in calendars:
        rows.update(one.verdicts)
        shown.add_row(one.key.short, *_numbers(one.counts(), states), *([_verdicts(one.verdicts)] if wide else []))
    if len(calendars) > 1:
        shown.add_section()
        shown.add_row("total", *_numbers(days, states), *([_verdicts(rows)] if wide else []), style="bold")
    console.print(shown)
    if not wide and rows:
        console.print(f"Rows by verdict: {_verdicts(rows)}", soft_wrap=True)


def tell_doubtful(covered: Iterable[SeriesCoverage], console: Console) -> None:
    """List stored days that are in doubt, the newest of each series first."""
    told = [(one.key, day, one.doubtful[day]) for one in covered for day in sorted(one.doubtful, reverse=True)]
    if not told:
        return
    console.print(f"{counted(len(told), 'day')} stored, but in doubt:", style="yellow")
    for key, day, said in told[:_SHOWN_DOUBTFUL]:
        console.print(Text(f"  {key.short} {day}: {said}"), soft_wrap=True)
    if len(told) > _SHOWN_DOUBTFUL:
        console.print(f"  and {len(told) - _SHOWN_DOUBTFUL:,} more.")


def _numbers(counts: Mapping[DayState, int], states: Iterable[DayState]) -> list[str | Text]:
    return [
        red(f"{counts[state]:,}") if state in _WRONG and counts[state] else f"{counts[state]:,}" for state in states
    ]


def _verdicts(rows: Mapping[str, int]) -> str:
    return ", ".join(f"{number:,} {verdict}" for verdict, number in rows.items())
