"""Calendars of coverage: what each day of a series is, as runs of days, and a picture with a square for each day. Pure.

Weeks are columns, Monday to Sunday from top to bottom. Days in a row that are alike are drawn as one shape over which
the grid is laid, so that a picture takes as many bytes as there are changes, not days.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from html import escape
from itertools import pairwise

from market_data_pipeline.lake.states import DayState
from market_data_pipeline.series import SeriesKey

_DAY = timedelta(days=1)

SHOWN_STATES = (
    DayState.FINAL,
    DayState.PROVISIONAL,
    DayState.HEALED,
    DayState.OUTAGE,
    DayState.INCOMPLETE,
    DayState.FAILED,
    DayState.MISSING,
    DayState.NOT_LISTED,
)
"""The states that a calendar knows, in the order of its legend; a day that was empty is missing once it is over."""

MEANING: Mapping[DayState, str] = {
    DayState.FINAL: "final",
    DayState.PROVISIONAL: "provisional",
    DayState.HEALED: "healed from REST",
    DayState.OUTAGE: "outage inside",
    DayState.INCOMPLETE: "rows missing, unexplained",
    DayState.FAILED: "failed",
    DayState.MISSING: "missing",
    DayState.NOT_LISTED: "not listed",
}
"""What a legend says."""

ON_LIGHT: Mapping[DayState, str] = {
    DayState.FINAL: "#92c3e9",
    DayState.PROVISIONAL: "#065ed8",
    DayState.HEALED: "#0cd48a",
    DayState.OUTAGE: "#e7a50c",
    DayState.INCOMPLETE: "#e8208e",
    DayState.FAILED: "#bf110d",
    DayState.MISSING: "#1f1f1f",
    DayState.NOT_LISTED: "#efefef",
}
"""Colours on a light ground: pale for what is as it should be, and red-, green- and blue-blind eyes tell all apart."""

ON_DARK: Mapping[DayState, str] = {
    DayState.FINAL: "#2f5583",
    DayState.PROVISIONAL: "#90b3e7",
    DayState.HEALED: "#12ea9f",
    DayState.OUTAGE: "#f8ce3f",
    DayState.INCOMPLETE: "#b631d5",
    DayState.FAILED: "#d22112",
    DayState.MISSING: "#ffffff",
    DayState.NOT_LISTED: "#2c2f33",
}
"""Colours on a dark ground, chosen in the same way."""


@dataclass(frozen=True, slots=True)
class Run:
    """Days in a row that are alike, both ends included."""

    state: DayState
    first: date
    last: date

    @property
    def days(self) -> int:
        """How many."""
        return (self.last - self.first).days + 1


@dataclass(frozen=True, slots=True)
class SeriesCalendar:
    """What each day of a series is.

    Attributes:
        key: The series.
        runs: In order of days. A day that is in none is neither collected nor held.
        verdicts: Rows by verdict of the gaps check.
        notes: Of days that are not simply final: what is to be said of them.
    """

    key: SeriesKey
    runs: tuple[Run, ...]
    verdicts: Mapping[str, int] = field(default_factory=dict)
    notes: Mapping[date, str] = field(default_factory=dict)

    def counts(self) -> Counter[DayState]:
        """Days by state."""
        counted: Counter[DayState] = Counter()
        for run in self.runs:
            counted[run.state] += run.days
        return counted

    @property
    def lacking(self) -> int:
        """Days that should be there and are not, or not whole."""
        counted = self.counts()
        return counted[DayState.MISSING] + counted[DayState.FAILED] + counted[DayState.INCOMPLETE]


def calendar_of(
    key: SeriesKey,
    states: Mapping[date, DayState],
    wanted: Sequence[tuple[date, date]],
    today: date,
    verdicts: Mapping[str, int] | None = None,
    notes: Mapping[date, str] | None = None,
) -> SeriesCalendar:
    """The calendar of a series.

    Args:
        key: The series.
        states: What the ledger knows of its days.
        wanted: Spans of days to collect, both ends included, in order; between them the symbol was not listed.
        today: The present day in UTC: what is not there of it, or after it, is not missing.
        verdicts: Rows by verdict of the gaps check.
        notes: What is to be said of days.
    """
    found = {day: state for day, state in states.items() if state is not DayState.EMPTY}
    for first, last in wanted:
        for day in _days(first, min(last, today - _DAY)):
            found.setdefault(day, DayState.MISSING)
    for (_, last), (first, _) in pairwise(wanted):
        for day in _days(last + _DAY, first - _DAY):
            found.setdefault(day, DayState.NOT_LISTED)
    return SeriesCalendar(key, tuple(_runs(found)), dict(verdicts or {}), dict(notes or {}))


def _days(first: date, last: date) -> Iterator[date]:
    return (first + timedelta(days=n) for n in range((last - first).days + 1))


def _runs(states: Mapping[date, DayState]) -> Iterator[Run]:
    run: Run | None = None
    for day in sorted(states):
        if run is not None and run.state is states[day] and run.last + _DAY == day:
            run = Run(run.state, run.first, day)
            continue
        if run is not None:
            yield run
        run = Run(states[day], day, day)
    if run is not None:
        yield run


# --- shapes --------------------------------------------------------------------------------------------------------


def week_of(day: date, origin: date) -> int:
    """Column of a day: whole weeks since the week of ``origin``."""
    return (day.toordinal() - 1) // 7 - (origin.toordinal() - 1) // 7


def shape(run: Run, origin: date, cell: int, top: int = 0) -> str:
    """A run of days as SVG path data: the end of a week, whole weeks, and the beginning of one.

    Args:
        run: The days.
        origin: A day of the first column's week.
        cell: Width and height of a day in pixels.
        top: Where Mondays begin.
    """
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

WIDTH = 900
MOST_BYTES = 20_000
_CELLS = (2, 12)
_LABEL, _HEAD, _MARGIN, _TICK = 18, 44, 8, 60
_TEXT = "#4a4a4a"


def calendar_markdown(calendars: Iterable[SeriesCalendar], most_bytes: int = MOST_BYTES) -> str:
    """Markdown that shows the calendars of series as one picture, those that lack most first.

    Dagster's UI strips raw HTML and shows pictures. Every event keeps its own copy: series are left out, and said to
    be, where the picture would be longer than allowed.

    Args:
        calendars: Of the series, in any order.
        most_bytes: Longest text.
    """
    ordered = sorted((one for one in calendars if one.runs), key=lambda one: (-one.lacking, one.key))
    if not ordered:
        return "No day is held or collected yet."
    shown = len(ordered)
    while shown:
        left_out = len(ordered) - shown
        text = _picture(ordered[:shown]) + (_not_shown(left_out) if left_out else "")
        if len(text) <= most_bytes:
            return text
        shown = min(shown - 1, shown * most_bytes // len(text))
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
    told = ", ".join(f"{counted[state]} {MEANING[state]}" for state in SHOWN_STATES if counted[state])
    return f"Calendar of {len(calendars)} series, a square for each day: {told}"


def calendar_svg(calendars: Sequence[SeriesCalendar]) -> str:
    """Draw the calendars of series below each other, over the same weeks, with a legend.

    Args:
        calendars: At least one, each with at least one run.
    """
    begin = min(one.runs[0].first for one in calendars)
    end = max(one.runs[-1].last for one in calendars)
    weeks = week_of(end, begin) + 1
    cell = max(_CELLS[0], min(_CELLS[1], WIDTH // weeks))
    pitch = -(-(_LABEL + 7 * cell) // cell) * cell + cell
    width = max(weeks * cell, WIDTH)
    paths: dict[DayState, list[str]] = {}
    labels = []
    for number, one in enumerate(calendars):
        # Squares begin at whole cells, where the grid has its lines.
        top = number * pitch + -(-_LABEL // cell) * cell
        for run in one.runs:
            paths.setdefault(run.state, []).append(shape(run, begin, cell, top))
        labels.append(f'<text y="{top - 5}">{escape(_label(one))}</text>')
    height = _HEAD + len(calendars) * pitch
    drawn = "".join(f'<path fill="{ON_LIGHT[state]}" d="{"".join(parts)}"/>' for state, parts in paths.items())
    gap = 0.5 if cell < 5 else 1
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-labelledby="t" width="{width + 2 * _MARGIN}" '
        f'height="{height + 2 * _MARGIN}" font-family="sans-serif" font-size="11" fill="{_TEXT}">'
        f'<title id="t">{escape(_described(calendars))}</title>'
        f'<defs><pattern id="g" width="{cell}" height="{cell}" patternUnits="userSpaceOnUse">'
        f'<path d="M0 {cell}H{cell}V0" fill="none" stroke="#fff" stroke-width="{2 * gap}"/></pattern></defs>'
        f'<rect width="100%" height="100%" rx="4" fill="#fff"/><g transform="translate({_MARGIN} {_MARGIN})">'
        f'{_legend([state for state in SHOWN_STATES if state in paths])}<g transform="translate(0 {_HEAD})">'
        f'{_ticks(begin, end, cell)}{drawn}<rect width="{weeks * cell}" height="{height}" fill="url(#g)"/>'
        f"{''.join(labels)}</g></g></svg>"
    )


def _label(one: SeriesCalendar) -> str:
    counted = one.counts()
    told = ", ".join(f"{counted[state]:,} {MEANING[state]}" for state in SHOWN_STATES if counted[state])
    name = "/".join(str(one.key).split("/")[1:])
    return f"{name} · {one.runs[0].first} to {one.runs[-1].last} · {told}"


def _legend(states: Sequence[DayState]) -> str:
    parts, x = [], 0
    for state in states:
        parts.append(f'<rect x="{x}" width="11" height="11" fill="{ON_LIGHT[state]}"/>')
        parts.append(f'<text x="{x + 16}" y="10">{MEANING[state]}</text>')
        x += 34 + 6 * len(MEANING[state])
    return "".join(parts)


def _ticks(begin: date, end: date, cell: int) -> str:
    """Names of years above the weeks in which they begin, or of months where there are few."""
    by_month = week_of(end, begin) <= 60
    starts = [begin.replace(day=1)]
    while starts[-1] <= end:
        starts.append((starts[-1] + timedelta(days=32)).replace(day=1))
    shown = [day for day in starts if begin <= day <= end and (by_month or day.month == 1)]
    if not shown or week_of(shown[0], begin) * cell >= _TICK:
        shown.insert(0, begin)
    parts = []
    for day in shown:
        text = day.strftime("%b %Y" if day.month == 1 or day is shown[0] else "%b") if by_month else str(day.year)
        x = week_of(day, begin) * cell
        parts.append(f'<text x="{x}" y="-14">{text}</text><path stroke="#aaa" d="M{x} -11v7"/>')
    return "".join(parts)
