"""Rows of a day from REST, in addition to stored ones: for today, and for days without an archive.

Filling gaps of the archive does not belong here (``gap_fill.py``).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import date, timedelta

import pyarrow as pa

from market_data_pipeline import clock
from market_data_pipeline.checks.gaps import expected_open_times
from market_data_pipeline.checks.ordering import in_order, ints, key_ranges
from market_data_pipeline.checks.verdicts import Ground, verdict_finding
from market_data_pipeline.errors import AbsentError, BeyondReachError, RestAnswerError, SourceError, UnpublishedError
from market_data_pipeline.ingest.day_rows import DayRows, joined
from market_data_pipeline.ingest.gap_fill import GapFiller
from market_data_pipeline.model.datasets import MARKETS, WORDS, precedes_listing, shows_trades, spec_of
from market_data_pipeline.model.findings import Finding, RestAnswer, Verdict
from market_data_pipeline.model.needs import pause_ended
from market_data_pipeline.model.outcomes import Action
from market_data_pipeline.model.provenance import Part, Source
from market_data_pipeline.model.series import DataType, ListingSpans, SeriesKey, interval_us
from market_data_pipeline.sources.binance.rest import RestApi, RestRows

logger = logging.getLogger(__name__)

_MAY_BE_LATE = timedelta(days=14)
"""Time during which a day may still get its archive although later days have theirs."""

_LATEST_ARCHIVE = timedelta(days=30)
"""Maximum delay of an archive. The longest known stall of publication is 9 days."""


@dataclass(frozen=True, slots=True)
class NoRows:
    """A day without rows to store, as expected.

    Attributes:
        findings: Reason that the day has no rows, if it is known.
    """

    action: Action
    findings: tuple[Finding, ...] = ()


@dataclass
class RestDays:
    """Days of one series from REST, for one run.

    Attributes:
        later_day: Return the first later day that has a file in the archive.
    """

    key: SeriesKey
    rest: Callable[[], RestApi]
    listing: ListingSpans
    later_day: Callable[[date], date | None]
    _first: date | None = field(default=None, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def __post_init__(self) -> None:
        self._gap_filler = GapFiller(self.key, self.rest, self.listing)

    def rows(self, day: date, stored: DayRows | None) -> DayRows | NoRows:
        """Fetch a day from REST and merge it with the stored rows: after them, and into their gaps.

        Args:
            day: The UTC day, not in the future.
            stored: Rows of the stored day. None if the day is not stored.

        Raises:
            SourceError: REST does not respond, is off, or has no rows of a day that should have some.
        """
        served = bool(spec_of(self.key).rest.path)
        return self._merged(day, stored) if served else self._without_rest(day, stored)

    def _merged(self, day: date, stored: DayRows | None) -> DayRows | NoRows:
        if stored is not None and self._is_over(day, stored):
            filled = self._filled(day, stored, stored)
            return NoRows(Action.HELD) if filled is stored else filled
        # Trades take 24 requests a day, one per hour. The first candle answers for all days in one request.
        if stored is None and self.key.interval is None and day < clock.today() and self._before_listing(day):
            return NoRows(Action.NOT_LISTED)
        try:
            fetched = self._fetch(day, stored)
        except BeyondReachError as error:
            if stored is None and (untraded := self._untraded_day(day)) is not None:
                return untraded
            if day < clock.today() - _LATEST_ARCHIVE:
                raise _with_archive_answer(AbsentError(str(error))) from error
            raise _with_archive_answer(BeyondReachError(f"{error}. The archive will have the day")) from error
        except SourceError as error:
            if day < clock.today():
                raise _with_archive_answer(error) from error
            raise
        new = fetched.table.num_rows
        if stored is None and new == 0:
            return self._nothing(day, fetched)
        # Check the stored rows again even without new ones: candles that should have closed since are missing.
        before, parts = (stored.table, stored.parts) if stored else (fetched.table.schema.empty_table(), ())
        table = pa.concat_tables([before, fetched.table])
        part = Part(
            source=Source.REST,
            url=fetched.url,
            first_row=before.num_rows,
            rows=new,
            fetched_at=fetched.asked_at,
        )
        ordered, findings, conflict = in_order(table, spec_of(self.key))
        if conflict is not None:
            raise RestAnswerError(
                f"REST answered two different rows with one key: {conflict.rows[0]} and {conflict.rows[1]}."
            )
        rows = DayRows(
            table=ordered,
            parts=joined((*parts, part)),
            final=False,
            known_until_us=clock.to_us(fetched.asked_at),
            findings=tuple(findings),
            cut=fetched.cut,
            action=Action.FETCHED if stored is None else Action.EXTENDED if new else Action.HELD,
        )
        return rows if stored is None else self._filled(day, stored, rows)

    def _without_rest(self, day: date, stored: DayRows | None) -> NoRows:
        """Return the result of a day without an archive, of a type that REST does not serve, or raise."""
        if stored is not None:
            return NoRows(Action.HELD)
        if day == clock.today():
            return NoRows(Action.EMPTY)
        if self._before_listing(day):
            return NoRows(Action.NOT_LISTED)
        if shows_trades(self.key) and (untraded := self._untraded_day(day)) is not None:
            return untraded
        why = f"REST of {self.key.market} has no {self.key.data_type}"
        if day < clock.today() - _LATEST_ARCHIVE or spec_of(self.key).ended is not None:
            raise _with_archive_answer(AbsentError(why))
        raise _with_archive_answer(UnpublishedError(f"{why}. The archive will have the day"))

    def _filled(self, day: date, stored: DayRows, rows: DayRows) -> DayRows:
        """Fill gaps between the stored rows with rows that REST has now.

        A past day is retried with the backoff of ``model.needs``. Today is fetched every hour, so the same backoff
        counts from the end of the gap.
        """
        gaps = self._gap_filler.gaps(day, stored)
        if gaps is None:
            return rows
        seen, now = clock.naive_from_us(stored.known_until_us), clock.naive_from_us(rows.known_until_us)
        if rows is not stored and not pause_ended(clock.naive_from_us(gaps.until_us), seen, now):
            return rows
        filled = self._gap_filler.fill_gaps(day, gaps, rows)
        if filled is rows:
            return rows
        grown = filled.table.num_rows > stored.table.num_rows
        return replace(filled, parts=joined(filled.parts), action=Action.EXTENDED if grown else Action.HELD)

    def _is_over(self, day: date, stored: DayRows) -> bool:
        """Return True if no row can follow the last stored one."""
        end = clock.day_start_us(day) + clock.US_PER_DAY
        if self.key.interval is not None:
            return int(ints(stored.table, "open_time")[-1]) + interval_us(self.key.interval) >= end
        return stored.known_until_us >= end and not stored.cut

    def _fetch(self, day: date, stored: DayRows | None) -> RestRows:
        start = clock.day_start_us(day)
        end = start + clock.US_PER_DAY
        last = int(ints(stored.table, spec_of(self.key).key)[-1]) if stored else None
        if spec_of(self.key).slots is not None:
            return self.rest().of_time(self.key, start if last is None else last + 1, end)
        if self.key.interval is None:
            if stored is None or last is None:
                return self.rest().agg_trades(self.key, start, end)
            return self.rest().agg_trades(self.key, start, end, last + 1, int(ints(stored.table, "transact_time")[-1]))
        return self.rest().klines(self.key, start if last is None else last + interval_us(self.key.interval), end)

    def _nothing(self, day: date, fetched: RestRows) -> NoRows:
        """Return the reason that neither source has rows of the day, or raise."""
        if fetched.cut:
            raise UnpublishedError(
                "the archive does not have it yet, and this run has used up its REST weight for aggTrades "
                "(MARKET_DATA_REST_TRADES_WEIGHT). The next run fetches it, from REST or from the archive."
            )
        if day == clock.today():
            return NoRows(Action.EMPTY)
        if self._before_listing(day):
            return NoRows(Action.NOT_LISTED)
        if (untraded := self._untraded_day(day)) is not None:
            return untraded
        if not spec_of(self.key).daily:  # REST has all of the history, so a day without rows is possible until then
            return NoRows(Action.EMPTY)
        raise _with_archive_answer(AbsentError("REST has no rows for it either"))

    def _untraded_day(self, day: date) -> NoRows | None:
        """Return a listed day without trades, if the archive and REST both confirm it. Else return None.

        The archive has later days but not this one (for example spot COCOSUSDT 2021-01-20 to 22), and REST has no
        candle with trades.
        """
        if day >= clock.today() - _MAY_BE_LATE:
            return None
        try:
            later = None if self._traded(day) else self.later_day(day)
        except SourceError as error:
            logger.info("%s %s: cannot check why it has no rows: %s", self.key, day, error)
            return None
        if later is None:
            return None
        spec = spec_of(self.key)
        nothing = "no candle with trades" if shows_trades(self.key) else "no row of it"
        of_day = f"no file of the day (the next is {later})" if spec.daily else "no row of the day in its months"
        evidence = f"the archive has {of_day}, and REST has {nothing}"
        times = expected_open_times(self.key, day) if self.key.interval else None
        ranges = () if times is None else key_ranges(times, interval_us(self.key.interval or ""))
        what, count = (WORDS[self.key.data_type].rows, 0) if times is None else ("candles", len(times))
        return NoRows(
            Action.EMPTY,
            (verdict_finding(Ground(Verdict.OUTAGE, evidence, rest=RestAnswer(answered=True)), what, count, ranges),),
        )

    def _traded(self, day: date) -> bool:
        """Return True if REST has a candle with trades on a day without rows. Other rows do not depend on trades."""
        spec = spec_of(self.key)
        if (spec.slots is not None and spec.rest.reach is None) or (self.key.interval and not shows_trades(self.key)):
            return False
        start = clock.day_start_us(day)
        candles = self.key if self.key.interval else replace(self.key, data_type=DataType.KLINES, interval="1d")
        had = self.rest().klines(candles, start, start + clock.US_PER_DAY).table
        return bool((ints(had, "count") > 0).any())

    def _before_listing(self, day: date) -> bool:
        """Return True if a day is before the symbol's first candle, which is requested once. False if unknown."""
        with self._lock:  # several threads work on the days of the series
            if self._first is None:
                # A price may be older or younger than what the listing has.
                known = None if precedes_listing(self.key) else self.listing.first
                self._first = known or self.listing.first or date.min
                if known is None and MARKETS[self.key.market].has_rest:
                    with suppress(SourceError):
                        self._first = self.rest().first_candle_day(self.key) or self._first
            return day < self._first


def _with_archive_answer(error: SourceError) -> SourceError:
    """Return the same error with the archive's answer before REST's."""
    return type(error)(f"the archive has no file for it (404), and: {error}")
