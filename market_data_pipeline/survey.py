"""How complete series are, as their ledgers and the files on the disk have it. Reads only; nothing here is Dagster's.

What belongs here: reading the ledgers for it. What is worked out of them is in ``quality/standing.py`` and
``quality/calendar.py``; it is shown by ``defs/bodies/coverage.py`` and ``cli/coverage.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from itertools import groupby

from market_data_pipeline import clock
from market_data_pipeline.day import NOT_LISTED, DayRecord
from market_data_pipeline.findings import shortened
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.ledger import Ledger, reconcile
from market_data_pipeline.lake.states import DayState
from market_data_pipeline.needs import is_still_unlisted
from market_data_pipeline.quality.calendar import SeriesCalendar, calendar_of
from market_data_pipeline.quality.standing import SeriesCoverage, cover, states_of
from market_data_pipeline.series import SeriesKey
from market_data_pipeline.universe import Universe

_NOTE = 200
"""Characters of what is said of a day."""


@dataclass(frozen=True, slots=True)
class Surveyed:
    """How complete a series is.

    Attributes:
        coverage: In sums, and the days that are not as they should be.
        calendar: Day by day.
    """

    coverage: SeriesCoverage
    calendar: SeriesCalendar


def survey(layout: Layout, universe: Universe, keys: Iterable[SeriesKey], provisional_days: int) -> Iterator[Surveyed]:
    """Look at series, one after another.

    A ledger that is lost or behind is worked out from the footers, in memory: its next writer writes it. Of a series
    that is no longer collected, no day is missing.

    Args:
        layout: Where the lake lies.
        universe: Which days should be held.
        keys: The series.
        provisional_days: After how many days a day that is still provisional is overdue.

    Raises:
        UsageError: the universe does not know from when on a series is collected.
    """
    today = clock.today()
    for key in keys:
        ledger = Ledger.read(layout.ledger(key))
        reconcile(ledger, layout, key)
        # A day that was not listed when it was asked for may be, as the listing knows by now.
        listing = universe.listing(key)
        rows = {
            day: row for day, row in ledger.rows.items() if row.outcome != NOT_LISTED or is_still_unlisted(row, listing)
        }
        wanted = universe.spans(key) if key in universe else []
        states = states_of(rows, wanted, today)
        coverage = cover(key, rows, states, wanted, today, provisional_days)
        verdicts = {gap.verdict.value: gap.rows for gap in coverage.gaps}
        calendar = calendar_of(key, states, verdicts, dict(_notes(rows.values(), states, coverage.doubtful)))
        yield Surveyed(coverage, calendar)


def _notes(
    rows: Iterable[DayRecord], states: Mapping[date, DayState], doubtful: Mapping[date, str]
) -> Iterator[tuple[date, str]]:
    for row in rows:
        state, note = states.get(row.day), ""
        if state is DayState.FAILED:
            note = ": ".join(filter(None, (row.failure, row.reason)))
        elif state in (DayState.INCOMPLETE, DayState.FAULTY, DayState.OUTAGE, DayState.HEALED):
            gaps = sorted(
                (found for found in row.findings_list() if found.check == "gaps"), key=lambda found: found.rule
            )
            told = []
            for rule, some in groupby(gaps, key=lambda found: found.rule):
                findings = list(some)
                told.append(f"{sum(found.count for found in findings):,} rows {rule} ({findings[0].evidence})")
            note = "; ".join(told)
        if said := "; ".join(filter(None, (note, doubtful.get(row.day)))):
            yield row.day, shortened(said, _NOTE)
