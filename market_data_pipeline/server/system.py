"""Routes of the server's own state: health, readiness, numbers, and the health of the data."""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response

from market_data_pipeline import __version__, clock
from market_data_pipeline.coverage.holdings import StoredDays, stored_days
from market_data_pipeline.coverage.summary import Surveyed, survey
from market_data_pipeline.errors import UsageError
from market_data_pipeline.lake.feed_status import FeedState, feed_state
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.partitions import known_series
from market_data_pipeline.model.places import local_of
from market_data_pipeline.model.states import DayState
from market_data_pipeline.server import documented
from market_data_pipeline.server.problems import ProblemError, ProblemKind
from market_data_pipeline.server.state import ServerState, state_of_app
from market_data_pipeline.settings import Settings
from market_data_pipeline.universe import Universe, load_universe

_JSON = "application/json"
_HEALTH_SECONDS = 30
"""Seconds for which the health of the data is cached: computing it reads every ledger."""

_UNSOLVED = frozenset({DayState.INCOMPLETE, DayState.FAULTY, DayState.FAILED, DayState.MISSING})
_MOST_OPEN = 20
"""Most open gaps of a series in the health of the data, newest first."""


@cache
def system_routes() -> APIRouter:
    """Return the routes."""
    router = APIRouter(tags=["system"])

    @router.get("/health", summary="Return 200 while the process runs.", responses=documented.of_json("Alive."))
    async def health() -> Response:
        return as_json({"status": "ok", "version": __version__})

    @router.get(
        "/ready",
        summary="Return 200 if the lake is readable, and the live feed, if one runs, is alive.",
        responses=documented.of_json("Ready.", 503),
    )
    async def ready(request: Request) -> Response:
        settings = state_of_app(request).settings
        if not os.access(local_of(settings.root), os.R_OK | os.X_OK):
            raise ProblemError(
                ProblemKind.BUSY, "The data folder is not readable. Check MARKET_DATA_DIR and its permissions."
            )
        live = feed_state(Layout(settings.root))
        if live is FeedState.HANGS:
            raise ProblemError(
                ProblemKind.BUSY,
                "The live feed runs, but has not written its status for 30 seconds. Restart `market-data live`, or "
                "`serve --live`.",
            )
        return as_json({"status": "ready", "live": live})

    @router.get(
        "/metrics",
        summary="Return numbers in the text format of Prometheus.",
        response_class=Response,
        responses={200: {"content": {"text/plain": {}}, "description": "Numbers."}, **documented.problems(401, 403)},
    )
    async def metrics(request: Request) -> Response:
        text = state_of_app(request).numbers.exposition()
        return Response(text, media_type="text/plain; version=1.0.0; charset=utf-8")

    @router.get(
        "/api/v1/system/cache-stats",
        summary="Return requests and rows by source, the hit rate, and the size of cached answers.",
        responses=documented.of_json("Numbers since the start of the server."),
    )
    async def cache_stats(request: Request) -> Response:
        state = state_of_app(request)
        return as_json(state.numbers.stats(state.answers))

    @router.get(
        "/api/v1/system/data-health",
        summary="Return how complete each series is.",
        responses=documented.of_json("Days by state, and days that need attention.", 503),
    )
    async def data_health(request: Request) -> Response:
        state = state_of_app(request)
        return Response(await _health(state), media_type=_JSON, headers={"Cache-Control": "max-age=30"})

    return router


def as_json(document: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return a JSON answer that clients do not cache."""
    return Response(
        orjson.dumps(document, option=orjson.OPT_NAIVE_UTC | orjson.OPT_UTC_Z),
        status,
        {"Cache-Control": "no-store", **(headers or {})},
        _JSON,
    )


async def _health(state: ServerState) -> bytes:
    now = clock.now().timestamp()
    kept = state.health
    if kept is None or now - kept[0] > _HEALTH_SECONDS or now < kept[0]:

        async def make() -> tuple[float, bytes]:
            return now, await state.workers.run(lambda: orjson.dumps(data_health_of(state.settings)))

        kept = state.health = await state.shared.run("data-health", make)
    return kept[1]


def data_health_of(settings: Settings) -> dict[str, object]:
    """Return the coverage of every stored or collected series, and sums over all."""
    layout = Layout(settings.root)
    stored = known_series(layout)
    try:
        universe = load_universe(settings.universe)
        note = None
    except UsageError as error:
        universe, note = Universe((), {}, settings.universe), str(error)
    keys = dict.fromkeys([*universe.series(), *stored])
    surveyed = survey(layout, universe, keys, settings.provisional_days)
    series = [_series(one, stored_days(layout, one.coverage.key)) for one in surveyed]
    names = ("final", "provisional", "overdue", "failed", "missing", "doubtful", "gap_rows")
    return {
        "as_of": clock.now().isoformat(),
        "totals": {"series": len(series), **{name: sum(one[name] for one in series) for name in names}},
        "series": series,
        "notes": [note] if note else [],
    }


def _series(surveyed: Surveyed, found: StoredDays) -> dict[str, Any]:
    one = surveyed.coverage
    unsolved = [(run, note) for run, note in surveyed.calendar.attention() if run.state in _UNSOLVED]
    gaps = {gap.verdict.value: gap.rows for gap in one.gaps}
    key = one.key
    return {
        "market": key.market,
        "data_type": key.data_type,
        "symbol": key.symbol,
        "interval": key.interval,
        "final": int((found.stored & found.final).sum()),
        "provisional": int((found.stored & ~found.final).sum()),
        "overdue": len(one.overdue),
        "failed": len(one.failed),
        "missing": len(one.missing),
        "doubtful": len(one.doubtful),
        "breaks": len(one.breaks),
        "gaps": gaps,
        "gap_rows": sum(gaps.values()),
        "open": [
            {"from": str(run.first), "to": str(run.last), "state": run.state, "note": note}
            for run, note in unsolved[:_MOST_OPEN]
        ],
        "open_more": max(0, len(unsolved) - _MOST_OPEN),
    }
