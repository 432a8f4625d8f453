"""Routes of administration, behind a key: jobs that fetch, scan and fill. Each answers 202 and the job to follow."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from functools import cache
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request
from starlette.responses import Response

from market_data_pipeline.errors import UsageError
from market_data_pipeline.model.datasets import published_types
from market_data_pipeline.model.series import DataType, Market, intervals_of
from market_data_pipeline.server import documented
from market_data_pipeline.server.jobs import ServerJob
from market_data_pipeline.server.parameters import symbol_in
from market_data_pipeline.server.problems import ProblemError, ProblemKind
from market_data_pipeline.server.state import ServerState, state_of_app
from market_data_pipeline.server.system import as_json
from market_data_pipeline.universe.config import parse_day

_Market = Annotated[Market, Query(description="`spot`, `um` or `cm`.")]
_OneMarket = Annotated[Market | None, Query(description="Market. Default: all.")]
_Symbols = Annotated[str | None, Query(max_length=2000, description="Symbols separated by commas. Default: all.")]
_Intervals = Annotated[str | None, Query(max_length=100, description="Intervals separated by commas.")]
_Types = Annotated[str | None, Query(max_length=200, description="Data types separated by commas.")]
_Day = Annotated[str | None, Query(max_length=40, description="UTC day, e.g. `2024-01-31`.")]
_Symbol = Annotated[str, Path(max_length=40, description="As Binance spells it.")]
_Job = Annotated[str, Path(max_length=40, description="Id of the job.")]


async def _with_key(request: Request) -> None:
    state_of_app(request).need_key(request)


async def _selection(
    symbols: _Symbols = None, intervals: _Intervals = None, data_types: _Types = None, market: _OneMarket = None
) -> list[str]:
    found: list[str] = [] if market is None else ["--market", market.value]
    for symbol in _listed(symbols):
        found += ["--symbol", _symbol(symbol)]
    for interval in _intervals(intervals, market):
        found += ["--interval", interval]
    for data_type in _types(data_types, market):
        found += ["--data-type", data_type]
    return found


_Chosen = Annotated[list[str], Depends(_selection)]
"""Options of a command that select the series of a request."""


@cache
def admin_routes() -> APIRouter:
    """Return the routes."""
    router = APIRouter(prefix="/api/v1/admin", tags=["admin"], dependencies=[Depends(_with_key)])
    accepted = {
        202: {
            "description": "The job, begun or running already. `Location` is where to follow it.",
            "content": {"application/json": {"schema": {"type": "object"}}},
        },
        **documented.problems(400, 401, 403, 404, 422, 503),
    }

    @router.post(
        "/bootstrap/{symbol}", summary="Add a symbol to the universe and fetch it.", status_code=202, responses=accepted
    )
    async def bootstrap(
        request: Request,
        symbol: _Symbol,
        market: _Market = Market.SPOT,
        intervals: _Intervals = "1m",
        data_types: _Types = None,
        start: _Day = None,
    ) -> Response:
        words = [*_intervals(intervals, market), *_types(data_types, market)]
        if not words:
            raise ProblemError(ProblemKind.INVALID, "Name an interval or a data type.")
        since = [] if start is None else ["--from", _day(start, "start")]
        return _begun(request, "bootstrap", ["add", "--market", market, *since, "--yes", "--", _symbol(symbol), *words])

    @router.get(
        "/bootstrap/status",
        summary="Return the jobs of bootstrap.",
        responses=documented.of_json("ServerJobs, the newest first."),
    )
    async def bootstrap_status(request: Request) -> Response:
        jobs = state_of_app(request).jobs.of_kind("bootstrap")
        return as_json({"jobs": [job.document() for job in jobs]})

    @router.post(
        "/cache/preload", summary="Fetch days of collected series into the lake.", status_code=202, responses=accepted
    )
    async def preload(request: Request, chosen: _Chosen, start: _Day = None, end: _Day = None) -> Response:
        days = [] if start is None else ["--from", _day(start, "start")]
        days += [] if end is None else ["--through", _day(end, "end")]
        return _begun(request, "preload", ["backfill", *chosen, *days, "--yes"])

    @router.get("/cache/stats", summary="Return what `cache-stats` returns.", responses=documented.of_json("Numbers."))
    async def stats(request: Request) -> Response:
        state = state_of_app(request)
        return as_json(state.numbers.stats(state.answers))

    @router.post("/gaps/scan", summary="Count days by state and gaps by verdict.", status_code=202, responses=accepted)
    async def scan(request: Request, chosen: _Chosen) -> Response:
        return _begun(request, "gaps-scan", ["coverage", *chosen, "--json"])

    @router.post(
        "/gaps/fill", summary="Fetch missing and incomplete days of collected series.", status_code=202,
        responses=accepted,
    )  # fmt: skip
    async def fill(request: Request, chosen: _Chosen) -> Response:
        return _begun(request, "gaps-fill", ["backfill", *chosen, "--yes"])

    @router.get("/jobs/{job_id}", summary="Return a job.", responses=documented.of_json("The job.", 404))
    async def job(request: Request, job_id: _Job) -> Response:
        found = state_of_app(request).jobs.get(job_id)
        if found is None:
            raise ProblemError(
                ProblemKind.UNKNOWN, "There is no such job. The server remembers the last 200 since its start."
            )
        return as_json(found.document())

    return router


def _begun(request: Request, kind: str, arguments: Sequence[str]) -> Response:
    state: ServerState = state_of_app(request)
    job: ServerJob | None = state.jobs.start(kind, arguments)
    if job is None:
        raise ProblemError(ProblemKind.BUSY, "Too many jobs wait already. Send it again later.", {"Retry-After": "30"})
    return as_json(job.document(), 202, {"Location": f"/api/v1/admin/jobs/{job.id}"})


def _listed(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def _symbol(text: str) -> str:
    symbol = symbol_in(text)
    if symbol.startswith("-"):
        raise ProblemError(ProblemKind.INVALID, f"{symbol!r} is not a symbol.")
    return symbol


def _intervals(text: str | None, market: Market | None) -> list[str]:
    known = intervals_of(market or Market.SPOT)
    return [_one_of(name, known, "interval") for name in _listed(text)]


def _types(text: str | None, market: Market | None) -> list[str]:
    known = [*DataType] if market is None else published_types(market)
    return [_one_of(name, [str(one) for one in known], "data type") for name in _listed(text)]


def _one_of(name: str, known: Sequence[str], what: str) -> str:
    if name not in known:
        raise ProblemError(
            ProblemKind.INVALID, f"There is no {what} {ascii(name)[:40]}. There are: {', '.join(known)}."
        )
    return name


def _day(text: str, name: str) -> str:
    try:
        found: Any = parse_day(text)
    except UsageError as error:
        raise ProblemError(ProblemKind.INVALID, f"{name} {error}") from None
    return found.isoformat() if isinstance(found, date) else text
