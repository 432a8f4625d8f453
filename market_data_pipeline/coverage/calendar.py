"""Draw calendars of coverage: the state of each day as runs of days, and a picture with a square for each day.

Weeks are columns, Monday at the top. A run of days in the same state is one shape under the grid, so that the size of
a picture depends on the number of changes, not of days. Reading the lake does not belong here.
"""

from __future__ import annotations

import base64
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from html import escape
from itertools import accumulate
from typing import NamedTuple

from market_data_pipeline import clock
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.model.states import DayState


class Look(NamedTuple):
    """Label of a state in the legend, and its colour on a light and on a dark background."""

    label: str
    light: str
    dark: str


LOOKS: Mapping[DayState, Look] = {
    DayState.FINAL: Look("final", "#92c3e9", "#2f5583"),
    DayState.PROVISIONAL: Look("provisional", "#065ed8", "#90b3e7"),
    DayState.HEALED: Look("healed from REST", "#0cd48a", "#12ea9f"),
    DayState.OUTAGE: Look("outage inside", "#e7a50c", "#f8ce3f"),
    DayState.INCOMPLETE: Look("incomplete", "#e8208e", "#b631d5"),
    DayState.FAULTY: Look("faulty", "#56016a", "#867263"),
    DayState.FAILED: Look("failed", "#bf110d", "#d22112"),
    DayState.MISSING: Look("missing", "#1f1f1f", "#ffffff"),
    DayState.NOT_LISTED: Look("not listed", "#e6e6e6", "#2c2f33"),
}
"""The states that a calendar shows, in the order of its legend.

Final is pale. All colours of a background are distinct for red-, green- and blue-blind readers.
"""


_NOTABLE = (DayState.INCOMPLETE, DayState.FAULTY, DayState.FAILED, DayState.MISSING, DayState.OUTAGE, DayState.HEALED)


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive days in the same state, both ends included."""

    state: DayState
    first: date
    last: date

    @property
    def days(self) -> int:
        """Return the number of days."""
        return (self.last - self.first).days + 1


@dataclass(frozen=True, slots=True)
class SeriesCalendar:
    """The state of each day of a series.

    Attributes:
        runs: Runs in order of days. A day in no run is neither collected nor stored.
        verdicts: Rows by verdict of the gaps check.
        notes: Notes on days that are not final, or are final with doubts.
    """

    key: SeriesKey
    runs: tuple[Run, ...]
    verdicts: Mapping[str, int] = field(default_factory=dict)
    notes: Mapping[date, str] = field(default_factory=dict)

    def counts(self) -> Counter[DayState]:
        """Return the number of days by state."""
        counted: Counter[DayState] = Counter()
        for run in self.runs:
            counted[run.state] += run.days
        return counted

    def attention(self) -> list[tuple[Run, str]]:
        """Return the days with a note, and runs that a reader should know of, newest first. A note may be empty."""
        days, found = sorted(self.notes), list[tuple[Run, str]]()
        for run in reversed(self.runs):
            noted = days[bisect_left(days, run.first) : bisect_right(days, run.last)]
            if not noted and run.state in _NOTABLE:
                found.append((run, ""))
            found += [(Run(run.state, day, day), self.notes[day]) for day in reversed(noted)]
        return found

    @property
    def days_incomplete(self) -> int:
        """Return the number of missing, failed, incomplete and faulty days."""
        counted = self.counts()
        return sum(
            counted[state] for state in (DayState.MISSING, DayState.FAILED, DayState.INCOMPLETE, DayState.FAULTY)
        )


def calendar_of(
    key: SeriesKey,
    states: Mapping[date, DayState],
    verdicts: Mapping[str, int] | None = None,
    notes: Mapping[date, str] | None = None,
) -> SeriesCalendar:
    """Build the calendar of a series.

    Args:
        states: States of its days, see ``coverage.summary.states_of``. States without a look in :data:`LOOKS` are left
            out.
        verdicts: Rows by verdict of the gaps check.
        notes: Notes on days.
    """
    shown = {day: state for day, state in states.items() if state in LOOKS}
    return SeriesCalendar(key, tuple(_runs(shown)), dict(verdicts or {}), dict(notes or {}))


def _runs(states: Mapping[date, DayState]) -> list[Run]:
    runs: list[Run] = []
    for day, state in sorted(states.items()):
        if runs and (runs[-1].state, runs[-1].last + clock.DAY) == (state, day):
            runs[-1] = Run(state, runs[-1].first, day)
        else:
            runs.append(Run(state, day, day))
    return runs


# --- shapes --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Strip:
    """A row of weeks in a calendar.

    Attributes:
        first: Its first day.
        last: Its last day.
        ticks: Columns of weeks with a label above them, and the labels.
    """

    first: date
    last: date
    ticks: tuple[tuple[int, str], ...]

    @property
    def weeks(self) -> int:
        """Return the number of columns."""
        return week_of(self.last, self.first) + 1


def week_of(day: date, origin: date) -> int:
    """Return the column of a day: whole weeks since the week of ``origin``."""
    return (day.toordinal() - 1) // 7 - (origin.toordinal() - 1) // 7


def strips_of(begin: date, end: date, years: int) -> list[Strip]:
    """Return the rows of a calendar. A span of up to about a year is one row with labels of months.

    Args:
        begin: The first day.
        end: The last day.
        years: Number of calendar years in a row. 0 means one row for all.
    """
    if week_of(end, begin) <= _WEEKS_WITH_MONTHS:
        return [Strip(begin, end, tuple(_months(begin, end)))]
    if not years:
        return [Strip(begin, end, tuple(_years(begin, end)))]
    spans = [(date(year, 1, 1), date(year + years - 1, 12, 31)) for year in range(begin.year, end.year + 1, years)]
    return [Strip(first, last, tuple(_years(first, min(last, end)))) for first, last in spans]


def _years(begin: date, end: date) -> Iterator[tuple[int, str]]:
    starts = [date(year, 1, 1) for year in range(begin.year + 1, end.year + 1)]
    if not starts or week_of(starts[0], begin) >= _TICK_WEEKS:
        yield 0, str(begin.year)
    for start in starts:
        yield week_of(start, begin), str(start.year)


def _months(begin: date, end: date) -> Iterator[tuple[int, str]]:
    starts = [begin.replace(day=1)]
    while (following := (starts[-1] + timedelta(days=32)).replace(day=1)) <= end:
        starts.append(following)
    # If the first two labels overlap, drop the first: its month has fewer days here.
    columns = [(max(0, week_of(start, begin)), start) for start in starts]
    if len(columns) > 1 and columns[1][0] < _MONTH_WEEKS:
        del columns[0]
    for column, start in columns:
        yield column, start.strftime("%Y" if start.month == 1 else "%b")


def shapes(runs: Iterable[Run], strip: Strip, cell: int, top: int = 0) -> Iterator[tuple[DayState, str]]:
    """Yield the runs of days inside a row as SVG path data, each with its state.

    Args:
        runs: The days.
        cell: Width and height of a day in pixels.
        top: Top of its Mondays in pixels.
    """
    for run in runs:
        first, last = max(run.first, strip.first), min(run.last, strip.last)
        if first <= last:
            yield run.state, _shape(Run(run.state, first, last), strip.first, cell, top)


def _shape(run: Run, origin: date, cell: int, top: int) -> str:
    """Draw a run as the end of a week, whole weeks and the beginning of a week."""
    first, last = week_of(run.first, origin), week_of(run.last, origin)
    from_day, to_day = run.first.weekday(), run.last.weekday()
    if first == last:
        return _rectangle(first, from_day, 1, to_day - from_day + 1, cell, top)
    parts = []
    if from_day > 0:
        parts.append(_rectangle(first, from_day, 1, 7 - from_day, cell, top))
        first += 1
    if to_day < 6:
        parts.append(_rectangle(last, 0, 1, to_day + 1, cell, top))
        last -= 1
    if first <= last:
        parts.append(_rectangle(first, 0, last - first + 1, 7, cell, top))
    return "".join(parts)


def _rectangle(week: int, weekday: int, weeks: int, days: int, cell: int, top: int) -> str:
    width = weeks * cell
    return f"M{week * cell} {top + weekday * cell}h{width}v{days * cell}h-{width}z"


# --- the picture ---------------------------------------------------------------------------------------------------

MOST_BYTES = 20_000
_MOST_HEIGHT = 1200
"""Pixels that all series together should fit into. Squares are as large as that allows."""

_WIDTH = 900
_WEEKS_WITH_MONTHS, _TICK_WEEKS, _MONTH_WEEKS = 60, 13, 5
_LAYOUTS = ((1, 12), (2, 8), (4, 4), (0, 2))
"""Years per row, and the side of a day's square in pixels."""

_LEAST_A_SERIES, _LEAST_A_RUN = 60, 12
"""Least bytes for a series, and for a run of its days. Encoding adds a third."""

_GRID = {12: 2, 8: 2, 4: 1, 2: 0.6}
_LABEL, _TICKS, _LEGEND, _MARGIN = 26, 14, 20, 8
_LETTER = 6
_TEXT = "#4a4a4a"


def calendar_markdown(calendars: Iterable[SeriesCalendar]) -> str:
    """Return Markdown with one picture of all calendars. Series with the most missing days come first.

    Dagster's UI strips raw HTML but shows pictures. Every event stores its own copy, so series that exceed the size
    limit are left out, and the text reports their number.
    """
    ordered = sorted((one for one in calendars if one.runs), key=lambda one: (-one.days_incomplete, one.key))
    if not ordered:
        return "No day is stored or collected yet."
    # Start with an upper bound for the number of series that fit.
    least = accumulate((_LEAST_A_SERIES + _LEAST_A_RUN * len(one.runs)) * 4 // 3 for one in ordered)
    shown = max(1, sum(size <= MOST_BYTES for size in least))
    while shown:
        left_out = len(ordered) - shown
        text = _picture(ordered[:shown]) + (_not_shown(left_out) if left_out else "")
        if len(text) <= MOST_BYTES:
            return text
        shown = min(shown - 1, shown * MOST_BYTES // len(text))
    return _not_shown(len(ordered)).strip()


def _picture(calendars: Sequence[SeriesCalendar]) -> str:
    encoded = base64.b64encode(calendar_svg(calendars).encode()).decode()
    return f"![{_described(calendars)}](data:image/svg+xml;base64,{encoded})"


def _not_shown(number: int) -> str:
    what = "1 series is" if number == 1 else f"{number} series are"
    return f"\n\n{what} not in the picture: `market-data coverage --html coverage.html` shows every series."


def _described(calendars: Sequence[SeriesCalendar]) -> str:
    counted: Counter[DayState] = Counter()
    for one in calendars:
        counted += one.counts()
    return f"Calendar of {len(calendars)} series, a square for each day: {labelled(counted)}"


def labelled(counted: Mapping[DayState, int]) -> str:
    """Return the number of days by state as text, with the labels of the legend."""
    return ", ".join(f"{counted[state]:,} {look.label}" for state, look in LOOKS.items() if counted.get(state))


def calendar_svg(calendars: Sequence[SeriesCalendar]) -> str:
    """Draw the calendars of series below each other, over the same weeks, with a legend.

    Args:
        calendars: At least one, each with at least one run.
    """
    begin = min(one.runs[0].first for one in calendars)
    end = max(one.runs[-1].last for one in calendars)
    for years, cell in _LAYOUTS:
        strips = strips_of(begin, end, years)
        if len(calendars) * (_LABEL + len(strips) * (_TICKS + 7 * cell)) <= _MOST_HEIGHT:
            break
    return _drawn(calendars, strips, cell)


def _drawn(calendars: Sequence[SeriesCalendar], strips: Sequence[Strip], cell: int) -> str:
    paths: dict[DayState, list[str]] = {}
    texts: list[str] = []
    top, wide = _LEGEND, max(strip.weeks for strip in strips) * cell
    for one in calendars:
        label = _label(one)
        wide = max(wide, _LETTER * len(label))
        top += _LABEL
        texts.append(f'<text y="{top - 5}">{escape(label)}</text>')
        for strip in strips:
            if strip.last < one.runs[0].first or strip.first > one.runs[-1].last:
                continue
            # Align squares with the lines of the grid.
            top = -(-(top + _TICKS) // cell) * cell
            texts += [f'<text class="t" x="{week * cell}" y="{top - 3}">{text}</text>' for week, text in strip.ticks]
            for state, drawn in shapes(one.runs, strip, cell, top):
                paths.setdefault(state, []).append(drawn)
            top += 7 * cell
    width = max(wide, _WIDTH)
    filled = "".join(f'<path fill="{LOOKS[state].light}" d="{"".join(parts)}"/>' for state, parts in paths.items())
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-labelledby="t" width="{width + 2 * _MARGIN}" '
        f'height="{top + 2 * _MARGIN}" font-family="sans-serif" font-size="11" fill="{_TEXT}">'
        f'<title id="t">{escape(_described(calendars))}</title><style>.t{{font-size:9px;fill:#6e6e6e}}</style>'
        f'<defs><pattern id="g" width="{cell}" height="{cell}" patternUnits="userSpaceOnUse">'
        f'<path d="M0 {cell}H{cell}V0" fill="none" stroke="#fff" stroke-width="{_GRID[cell]}"/></pattern></defs>'
        f'<rect width="100%" height="100%" rx="4" fill="#fff"/><g transform="translate({_MARGIN} {_MARGIN})">'
        f"{_legend([look for state, look in LOOKS.items() if state in paths])}{filled}"
        f'<rect y="{_LEGEND}" width="{width}" height="{top - _LEGEND}" fill="url(#g)"/>{"".join(texts)}</g></svg>'
    )


def _label(one: SeriesCalendar) -> str:
    return f"{one.key.short} · {one.runs[0].first} to {one.runs[-1].last} · {labelled(one.counts())}"


def _legend(looks: Sequence[Look]) -> str:
    parts, x = [], 0
    for look in looks:
        parts.append(f'<rect x="{x}" width="11" height="11" fill="{look.light}"/>')
        parts.append(f'<text x="{x + 16}" y="10">{look.label}</text>')
        x += 34 + _LETTER * len(look.label)
    return "".join(parts)
