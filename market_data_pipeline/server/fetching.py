"""``cache_strategy``: fetch the missing days of a page, within a deadline, and name what is being fetched."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta

from market_data_pipeline.client.pages import MissingSpan, PageRequest, RowsPage
from market_data_pipeline.errors import UsageError
from market_data_pipeline.model.series import EXCHANGE, SeriesKey, intervals_of
from market_data_pipeline.server.jobs import JobStatus, ServerJob
from market_data_pipeline.server.state import ServerState
from market_data_pipeline.universe import load_universe

DEADLINE_SECONDS = 0.5
"""Time that a request waits for missing days."""

_RETRY_AFTER = {"Retry-After": "5"}
_MOST_DAYS = 400
"""Most days that a request for rows fetches."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """Result of fetching for a page.

    Attributes:
        page: The page, with reasons of what is being fetched.
        again: Read the page again: days were stored.
        notes: Sentences for the answer.
        headers: Headers for the answer.
        asked: The page needed a request to the exchange.
    """

    page: RowsPage
    again: bool = False
    notes: list[str] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    asked: bool = False

    def origins(self, page: RowsPage) -> tuple[tuple[str, int], ...]:
        """Return the origins of the rows of a page that was read after the fetch.

        Rows that the page before it did not have came from the exchange.
        """
        if not self.asked:
            return page.origins
        new, left = max(0, page.table.num_rows - self.page.table.num_rows), dict(page.origins)
        left["lake"] = max(0, left.get("lake", 0) - new)
        return (*left.items(), ("exchange", new))


async def complete(state: ServerState, series: SeriesKey, page: RowsPage, *, force: bool) -> Fetched:
    """Fetch the days of a page that are missing; with ``force`` also those that are not final.

    The work goes on after the deadline. The page then names what is being fetched.
    """
    notes = []
    days = {day for span in page.missing if span.fetchable for day in (span.first.date(), _last_day(span.until))}
    if force:
        days |= {day for one in page.states if one.state != "final" for day in (one.first.date(), _last_day(one.until))}
        if any(one.state == "final" for one in page.states):
            notes.append("Final days cannot get fresher. Only days that are not final were fetched again.")
    if not days:
        return Fetched(page, notes=notes)
    refusal = await state.workers.run(lambda: _refusal(state, series))
    if refusal is not None:
        return Fetched(page, notes=[*notes, refusal])
    first, last = min(days), max(days)
    first = max(first, last - timedelta(days=_MOST_DAYS - 1))
    job = state.jobs.fetch(series, first, last)
    if job is None:
        return Fetched(page, notes=[*notes, "Too many fetches wait already."], headers=_RETRY_AFTER)
    try:
        await asyncio.wait_for(job.done.wait(), DEADLINE_SECONDS)
    except TimeoutError:
        page = _being_fetched(page, first, last)
        return Fetched(page, notes=[*notes, _follow(job)], headers=_RETRY_AFTER, asked=True)
    if job.status is JobStatus.FAILED:
        text = f"Some days could not be fetched. {job.errors.strip()[-300:]}"
        return Fetched(page, True, [*notes, text], asked=True)
    return Fetched(page, True, notes, asked=True)


async def collected_series(state: ServerState, wanted: PageRequest) -> SeriesKey | None:
    """Return the series of a request if the universe has it, although nothing of it is stored; else None."""
    if wanted.interval is not None and wanted.interval not in intervals_of(wanted.market):
        return None
    try:
        key = SeriesKey(EXCHANGE, wanted.market, wanted.data_type, wanted.symbol, wanted.interval)
    except UsageError:
        return None
    return None if await state.workers.run(lambda: _refusal(state, key)) else key


def _refusal(state: ServerState, series: SeriesKey) -> str | None:
    """Return why a series is not fetched; None if it is."""
    try:
        universe = load_universe(state.settings.universe, resolve=False)
    except UsageError as error:
        return f"Nothing was fetched. {error}"
    return None if series in universe else f"Nothing was fetched: {series} is not in the universe of this server."


def _being_fetched(page: RowsPage, first: date, last: date) -> RowsPage:
    def told(span: MissingSpan) -> MissingSpan:
        inside = span.fetchable and first <= _last_day(span.until) and span.first.date() <= last
        return replace(span, reason=f"being fetched ({span.reason})") if inside else span

    return replace(page, missing=tuple(map(told, page.missing)), final=False)


def _follow(job: ServerJob) -> str:
    return f"Missing days are being fetched. Send the request again, or follow /api/v1/admin/jobs/{job.id}."


def _last_day(until: datetime) -> date:
    return (until - timedelta(microseconds=1)).date()
