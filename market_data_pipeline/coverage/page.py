"""Render the page of ``market-data coverage --html``: a calendar of each series, in one self-contained file.

Runs of days in the same state are one shape, so that a page of hundreds of series opens at once. A short script shows
the day under the mouse. Everything else works without the script. Reading the lake does not belong here.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from market_data_pipeline import clock
from market_data_pipeline.coverage.calendar import LOOKS, Run, SeriesCalendar, Strip, labelled, shapes, strips_of
from market_data_pipeline.model.states import DayState

_CELL, _YEARS, _TICKS = 8, 2, 16
MOST_LISTED = 50
"""Most lines below a calendar."""


def coverage_page(calendars: Sequence[SeriesCalendar], root: str, made_at: datetime) -> str:
    """Render the page as HTML, with a light and a dark colour scheme.

    Args:
        calendars: Calendars of the series, in the order of the page.
        root: Folder of the lake.
        made_at: Time shown on the page (UTC).
    """
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, keep_trailing_newline=True
    )
    templates.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "ensure_ascii": False}
    return templates.get_template("page.html.j2").render(
        root=root,
        made_at=f"{made_at:%Y-%m-%d %H:%M}",
        days=labelled(sum((one.counts() for one in calendars), Counter())),
        looks=LOOKS,
        cell=_CELL,
        most_lines=MOST_LISTED,
        sections=[_section(one) for one in calendars],
        data={
            "cell": _CELL,
            "meaning": [look.label for look in LOOKS.values()],
            "series": [_data(one) for one in calendars],
        },
    )


def calendar_shapes(one: SeriesCalendar) -> list[dict[str, Any]]:
    """Return one picture for each year, newest first, as SVG path data by state. A day is a unit square."""
    if not one.runs:
        return []
    years = range(one.runs[-1].last.year, one.runs[0].first.year - 1, -1)
    return [_year(one.runs, Strip(date(year, 1, 1), date(year, 12, 31), ())) for year in years]


def _year(runs: Sequence[Run], strip: Strip) -> dict[str, Any]:
    paths = defaultdict[str, str](str)
    for state, drawn in shapes(runs, strip, 1):
        paths[state.value] += drawn
    return {"year": strip.first.year, "weeks": strip.weeks, "paths": paths}


def _section(one: SeriesCalendar) -> Mapping[str, Any]:
    """Return the values of a series for the template."""
    strips, paths = _strips(one), defaultdict[DayState, str](str)
    for n, strip in enumerate(strips):
        for state, drawn in shapes(one.runs, strip, _CELL, _top(n)):
            paths[state] += drawn
    return {
        "name": one.key.short,
        "whole": one.runs and not one.days_incomplete,
        "summary": one.runs and f"{one.runs[0].first} to {one.runs[-1].last}: {labelled(one.counts())}",
        "verdicts": ", ".join(f"{rows:,} {verdict}" for verdict, rows in one.verdicts.items()),
        "width": max((strip.weeks for strip in strips), default=0) * _CELL,
        "height": len(strips) * (_TICKS + 7 * _CELL),
        "paths": paths,
        "ticks": [(week * _CELL, _top(n) - 4, text) for n, strip in enumerate(strips) for week, text in strip.ticks],
        "lines": list(_lines(one)),
    }


def _strips(one: SeriesCalendar) -> list[Strip]:
    return strips_of(one.runs[0].first, one.runs[-1].last, _YEARS) if one.runs else []


def _top(strip: int) -> int:
    """Return the top of a row's Mondays in pixels, aligned with the lines of the grid."""
    return strip * (_TICKS + 7 * _CELL) + _TICKS


def _lines(one: SeriesCalendar) -> Iterator[str]:
    """Yield the days that need attention as text, newest first, for readers who cannot see the calendar."""
    for run, note in one.attention():
        yield f"{_when(run)}: {LOOKS[run.state].label}" + (f". {note}" if note else "")


def _when(run: Run) -> str:
    return str(run.first) if run.first == run.last else f"{run.first} to {run.last}"


def _data(one: SeriesCalendar) -> Mapping[str, Any]:
    """Return the data for the script, with days as numbers since 1970."""
    states = list(LOOKS)
    return {
        "runs": [
            [clock.day_number(run.first), clock.day_number(run.last), states.index(run.state)] for run in one.runs
        ],
        "strips": [[clock.day_number(strip.first), _top(n)] for n, strip in enumerate(_strips(one))],
        "notes": {clock.day_number(day): note for day, note in one.notes.items()},
    }
