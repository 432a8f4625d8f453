"""Routes of the stored series: how fresh each is, and the calendar of one. The page for people reads them.

Rows do not belong here (``market.py``), nor does the health of all series (``system.py``).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import date, datetime, timedelta
from functools import cache
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from market_data_pipeline import clock
from market_data_pipeline.coverage.page import MOST_LISTED, calendar_shapes
from market_data_pipeline.coverage.summary import survey
from market_data_pipeline.errors import UsageError
from market_data_pipeline.lake.day_records import rows_on_record
from market_data_pipeline.lake.feed_status import read_status
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.partitions import day_files_between, known_series, stored_dates
from market_data_pipeline.lake.reader import time_column
from market_data_pipeline.model.datasets import spec_of
from market_data_pipeline.model.day import DayRecord
from market_data_pipeline.model.series import EXCHANGE, INTERVALS, DataType, Market, SeriesKey
from market_data_pipeline.server import documented
from market_data_pipeline.server.answers import iso
from market_data_pipeline.server.event_stream import COMMENT, EventAnswer, event_text, hub_of
from market_data_pipeline.server.live_hub import LiveClient
from market_data_pipeline.server.market import path_name
from market_data_pipeline.server.parameters import MOST_CHARACTERS, symbol_in
from market_data_pipeline.server.problems import ProblemError, ProblemKind
from market_data_pipeline.server.state import ServerState, state_of_app
from market_data_pipeline.universe import Universe, load_universe

_JSON = "application/json"
_SECONDS = 2
"""Seconds for which the list of series is cached: pages poll it."""

_ALIVE = timedelta(seconds=15)
"""Age up to which the status of the live feed is one of a running feed: it is written each second."""

_LATE_DAYS = 1
"""Days by which a current series may be behind yesterday: an archive appears up to a day after its day."""


@cache
def series_routes() -> APIRouter:
    """Return the routes."""
    router = APIRouter(prefix="/api/v1/system", tags=["system"])

    @router.get(
        "/series",
        summary="Return the stored series, and the newest moment of each.",
        responses=documented.of_json("Series, their first and last days, and how fresh they are.", 503),
    )
    async def series(request: Request) -> Response:
        return Response(await _listed(state_of_app(request)), media_type=_JSON, headers={"Cache-Control": "no-cache"})

    @router.get(
        "/series/stream",
        summary="Follow the newest moment of each series as server-sent events, if the live feed runs in this server.",
        response_class=Response,
        responses=documented.of_events(),
    )
    async def freshness(request: Request) -> Response:
        state = state_of_app(request)
        return _FreshnessEvents(state, hub_of(state).client())

    @router.get(
        "/calendar",
        summary="Return the state of each day of a series, as runs of days and as shapes to draw.",
        responses=documented.of_json("Runs of days, shapes by year, and days that need attention.", 404, 503),
    )
    async def calendar(
        request: Request,
        market: Annotated[Market, Query(description="`spot`, `um`, `cm` or `option`.")],
        data_type: Annotated[DataType, Query(description="As `/api/v1/system/series` spells it.")],
        symbol: Annotated[str, Query(max_length=MOST_CHARACTERS, description="As Binance spells it.")],
        interval: Annotated[str | None, Query(max_length=8, description="The stored interval.")] = None,
    ) -> Response:
        state = state_of_app(request)
        try:
            key = SeriesKey(EXCHANGE, market, data_type, symbol_in(symbol), interval)
        except UsageError as error:
            raise ProblemError(ProblemKind.UNKNOWN_SERIES, str(error)) from None
        body = await state.workers.run(lambda: orjson.dumps(_calendar(state, key)))
        return Response(body, media_type=_JSON, headers={"Cache-Control": "no-cache"})

    return router


class _FreshnessEvents(EventAnswer):
    """The newest moments of followed series: all of them first, and then those that changed."""

    def __init__(self, state: ServerState, client: LiveClient) -> None:
        super().__init__(client)
        self._state = state

    async def texts(self) -> AsyncIterator[bytes]:
        """Yield an event as soon as a newest moment changed, at most every two seconds."""
        known: dict[str, str | None] = {}
        while True:
            found = orjson.loads(await _listed(self._state))
            until = {_name(one): one["until"] for one in found["series"] if one["live"] is not None}
            changed = {name: moment for name, moment in until.items() if known.get(name) != moment}
            known |= changed
            yield event_text("series", {"as_of": found["as_of"], "until": changed}) if changed else COMMENT
            await asyncio.sleep(_SECONDS)


def _name(one: dict[str, Any]) -> str:
    """Return the name of a series as the page has it in its address."""
    return "/".join(filter(None, (one["market"], one["data_type"], one["symbol"], one["interval"])))


async def _listed(state: ServerState) -> bytes:
    now = clock.now().timestamp()
    known = state.listed
    if known is None or not 0 <= now - known[0] <= _SECONDS:

        async def make() -> tuple[float, bytes]:
            return now, await state.workers.run(lambda: orjson.dumps(list_series(state)))

        known = state.listed = await state.shared.run("series", make)
    return known[1]


def list_series(state: ServerState) -> dict[str, object]:
    """Return every stored series with its first and last day, and how far its rows reach.

    ``until`` is the first moment after the newest row of candles. For other data types, it is the end of the last day,
    or the time at which that day was fetched. ``state`` is ``live``, ``current``, ``behind``, ``ended`` or ``empty``.
    ``live`` is the state of the series in the live feed. ``streams`` is true if that runs in this process.
    """
    layout = Layout(state.settings.root)
    universe, live = _universe(state), _followed(layout)
    found = []
    followed = [key for key in universe.series() if str(key) in live] if live else []
    for key in sorted({*known_series(layout), *followed}):
        fingerprint = state.source.fingerprint(key)
        reach = state.reaches.get(key)
        if reach is None or reach[0] != fingerprint:
            reach = state.reaches[key] = (fingerprint, _reach(layout, key))
        facts = {**_names(key), **reach[1], **_freshness(universe, key, reach[1]["last"])}
        found.append(_with_live(key, facts, live.get(str(key))))
    streams = state.hub is not None and state.hub.runs
    return {"as_of": iso(clock.naive_utc(clock.now())), "live": bool(live), "streams": streams, "series": found}


def _followed(layout: Layout) -> dict[str, dict[str, Any]]:
    """Return the state of each series of the live feed by its name. It is empty if the feed does not run."""
    status = read_status(layout) or {}
    try:
        updated = datetime.fromisoformat(status["updated_at"])
        alive = abs(clock.now() - updated) < _ALIVE
    except (KeyError, TypeError, ValueError):
        return {}
    return status.get("series", {}) if alive else {}


def _with_live(key: SeriesKey, facts: dict[str, Any], live: dict[str, Any] | None) -> dict[str, Any]:
    if live is None or live.get("last_closed") is None:
        return {**facts, "live": live}
    closed = clock.naive_utc(datetime.fromisoformat(live["last_closed"]))
    until = iso(closed + timedelta(seconds=INTERVALS[key.interval] if key.interval is not None else 0))
    return {**facts, "live": live, "until": until, "state": "live", "days_behind": 0}


def _universe(state: ServerState) -> Universe:
    try:
        return load_universe(state.settings.universe)
    except UsageError:
        return Universe((), {}, state.settings.universe)  # data-health has the reason


def _names(key: SeriesKey) -> dict[str, str | None]:
    return {
        "market": key.market,
        "data_type": key.data_type,
        "path": path_name(key.data_type),
        "symbol": key.symbol,
        "interval": key.interval,
    }


def _reach(layout: Layout, key: SeriesKey) -> dict[str, Any]:
    days = stored_dates(layout, key)
    if not days:
        return {"days": 0, "first": None, "last": None, "until": None}
    last = max(days)
    files = {one.day: one for one in day_files_between(layout, key, last, last)}
    row = rows_on_record(layout, key, files, last, last).get(last)
    until = iso(_until(key, last, row))
    return {"days": len(days), "first": str(min(days)), "last": str(last), "until": until}


def _until(key: SeriesKey, last: date, row: DayRecord | None) -> datetime:
    end = clock.midnight(last + clock.DAY)
    if row is None:
        return end
    is_candle = key.interval is not None and spec_of(key).key == time_column(key.data_type)
    if is_candle and row.last_key is not None:
        return min(end, clock.naive_from_us(row.last_key) + timedelta(seconds=INTERVALS[key.interval or ""]))
    return min(end, row.fetched_at or end)


def _freshness(universe: Universe, key: SeriesKey, last: str | None) -> dict[str, object]:
    yesterday = clock.today() - clock.DAY
    is_collected = key in universe
    wanted = universe.spans(key) if is_collected else []
    due = min(yesterday, wanted[-1][1]) if wanted else yesterday
    behind = max(0, (due - date.fromisoformat(last)).days) if last is not None else None
    if behind is None:
        state = "empty"
    elif behind > _LATE_DAYS:
        state = "behind"
    else:
        state = "ended" if due < yesterday else "current"
    return {"collected": is_collected, "state": state, "days_behind": behind}


def _calendar(state: ServerState, key: SeriesKey) -> dict[str, object]:
    layout, universe = Layout(state.settings.root), _universe(state)
    if key not in universe and not stored_dates(layout, key):
        raise ProblemError(ProblemKind.UNKNOWN_SERIES, f"{key.short} is neither stored nor collected.")
    [one] = survey(layout, universe, [key], state.settings.provisional_days)
    lines = one.calendar.attention()
    return {
        **_names(key),
        "counts": {day_state.value: number for day_state, number in one.calendar.counts().items() if number},
        "verdicts": dict(one.calendar.verdicts),
        "runs": [[str(run.first), str(run.last), run.state] for run in one.calendar.runs],
        "notes": {str(day): note for day, note in one.calendar.notes.items()},
        "years": calendar_shapes(one.calendar),
        "attention": [
            {"from": str(run.first), "to": str(run.last), "state": run.state, "note": note}
            for run, note in lines[:MOST_LISTED]
        ],
        "attention_days": len(lines),
    }
