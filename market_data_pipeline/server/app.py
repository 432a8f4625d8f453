"""The app: all routes, the checks before them, and the form of every error."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response

from market_data_pipeline import __version__
from market_data_pipeline.errors import DamagedFileError, MarketDataError, UsageError
from market_data_pipeline.hosts import is_own_host, is_own_origin, parse_host
from market_data_pipeline.server import documented
from market_data_pipeline.server.admin import admin_routes
from market_data_pipeline.server.answers import respond
from market_data_pipeline.server.binance.routes import binance_routes, is_binance_path, refusal_of, refused
from market_data_pipeline.server.binance.sockets import BinanceSockets, deny
from market_data_pipeline.server.event_stream import EVENT_TYPE, stream_routes
from market_data_pipeline.server.jobs import ServerJobs
from market_data_pipeline.server.live_hub import LiveHub
from market_data_pipeline.server.market import answer_at_once, market_routes
from market_data_pipeline.server.page import is_page_path, page_routes
from market_data_pipeline.server.problems import ProblemError, ProblemKind
from market_data_pipeline.server.rows import LakeSource, RowSource
from market_data_pipeline.server.series import series_routes
from market_data_pipeline.server.sql import sql_routes
from market_data_pipeline.server.state import ServerState
from market_data_pipeline.server.system import system_routes
from market_data_pipeline.settings import Settings

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger(__name__)

OPEN_PATHS = frozenset({"/health", "/ready"})
"""Paths that never need a key, apart from the pages: a load balancer has none."""

_DESCRIPTION = """\
Rows of Binance's history from the lake of market-data-pipeline. Every answer names the final rows and the missing
ones. Times are UTC. Errors are problem documents (RFC 9457).
"""


def build_app(
    settings: Settings,
    *,
    source: RowSource | None = None,
    keys: Sequence[str] = (),
    key_for_all: bool = False,
    hosts: Sequence[str] = (),
    hub: LiveHub | None = None,
) -> FastAPI:
    """Return the app of a data folder.

    Args:
        settings: Data folder, limits and the default of ``cache_strategy``.
        source: Where rows come from. None means the lake.
        keys: API keys. Without any, admin routes and SQL are off.
        key_for_all: True if every route but ``/health`` and ``/ready`` needs a key.
        hosts: Names under which clients reach the server, in addition to loopback.
        hub: The hub of a live feed in this process. None leaves streams out.
    """
    jobs = ServerJobs(settings)
    state = ServerState(settings, source or LakeSource(settings), jobs, tuple(keys), key_for_all, hub)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if hub is not None:
            hub.open()
        yield
        await jobs.close()

    origins = settings.serve_origin_names
    middleware = [Middleware(Doorkeeper, state=state, hosts=[*hosts, *settings.serve_host_names], origins=origins)]
    if origins:
        middleware.append(
            Middleware(CORSMiddleware, allow_origins=origins, allow_methods=["GET"], expose_headers=["*"])
        )
    app = _App(
        title="market-data-pipeline",
        version=__version__,
        description=_DESCRIPTION,
        lifespan=lifespan,
        middleware=middleware,
        docs_url=None,  # page.py has it, with scripts of this server
        redoc_url=None,
    )
    app.state.server = state
    # Most routes know nothing of an app, so the apps of a process share them: FastAPI takes 0.2 s to make them.
    for routes in _ROUTES:
        app.include_router(routes())
    app.router.routes.extend(binance_routes())
    for kind, handler in _HANDLERS.items():
        app.add_exception_handler(kind, handler)
    return app


_ROUTES = (page_routes, market_routes, stream_routes, series_routes, system_routes, admin_routes, sql_routes)


class _App(FastAPI):
    """Documents the API key, too."""

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document."""
        if self.openapi_schema is None:
            self.openapi_schema = documented.with_keys(super().openapi())
        return self.openapi_schema


class Doorkeeper:
    """ASGI middleware before all routes: refuses foreign requests and missing keys, and counts what is answered.

    Args:
        hosts: Allowed names, ``name`` or ``name:port``, in addition to loopback and the server's own address.
        origins: Allowed origins of pages, for CORS.
    """

    def __init__(self, app: ASGIApp, state: ServerState, hosts: Sequence[str], origins: Sequence[str]) -> None:
        self._app = app
        self._state = state
        self._sockets = BinanceSockets(state.hub)
        self._hosts = frozenset(host.casefold() for host in hosts)
        self._origins = frozenset(origin.casefold() for origin in origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, or pass it on."""
        if scope["type"] == "websocket":
            await self._socket(scope, receive, send)
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status, route = time.perf_counter(), 500, ""
        answered: float | None = None

        async def noted(message: Message) -> None:
            nonlocal status, answered
            if message["type"] == "http.response.start":
                status = message["status"]
                if dict(message["headers"]).get(b"content-type", b"").startswith(EVENT_TYPE.encode()):
                    answered = time.perf_counter()  # the rest takes as long as the client stays
            await send(message)

        try:
            try:
                headers = Headers(scope=scope)
                self._check(scope, headers)
            except ProblemError as problem:
                of_binance = is_binance_path(scope["path"])
                response = refused(refusal_of(problem), problem.headers) if of_binance else problem.response()
                await response(scope, receive, noted)
                return
            known = answer_at_once(self._state, scope) if scope["method"] == "GET" else None
            if known is None or "origin" in headers:  # the app adds what a page of another origin needs
                await self._app(scope, receive, noted)
                return
            route = "cached"
            self._state.numbers.served(known.origins)
            answer = respond(headers.get("if-none-match"), known, private=self._state.key_for_all)
            await answer(scope, receive, noted)
        finally:
            route = route or getattr(scope.get("route"), "path", "other")
            self._state.numbers.answered(route, status, (answered or time.perf_counter()) - begun)

    async def _socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._check(scope, Headers(scope=scope))
        except ProblemError as problem:
            await receive()
            await deny(scope, send, refused(refusal_of(problem), problem.headers))
            return
        await self._sockets(scope, receive, send)

    def _check(self, scope: Scope, headers: Headers) -> None:
        hosts = headers.getlist("host")
        host = parse_host(hosts[0]) if len(hosts) == 1 else None
        if host is None:
            raise ProblemError(ProblemKind.MALFORMED, "The request has no valid Host header, or several.")
        if not is_own_host(host, self._hosts, (scope.get("server") or ("",))[0]):
            raise ProblemError(
                ProblemKind.FOREIGN,
                f"{hosts[0]} is not a name of this server. To allow it, set MARKET_DATA_SERVE_HOSTS={host[0]}.",
            )
        for origin in headers.getlist("origin"):
            if origin.casefold() not in self._origins and not is_own_origin(origin, host, self._hosts):
                raise ProblemError(ProblemKind.FOREIGN, f"Requests from {origin[:100]} are refused.")
        is_visit = headers.get("sec-fetch-mode") == "navigate" and scope.get("method") in ("GET", "HEAD")
        if headers.get("sec-fetch-site") == "cross-site" and not (is_visit or "origin" in headers):
            raise ProblemError(ProblemKind.FOREIGN, "Requests from other sites are refused.")
        path = scope["path"]
        if self._state.key_for_all and path not in OPEN_PATHS and not is_page_path(path):
            self._state.need_key(HTTPConnection(scope))


# --- errors ------------------------------------------------------------------------------------------------------


def _problem(_: Request, error: Exception) -> Response:
    assert isinstance(error, ProblemError)  # noqa: S101 - registered for it
    return error.response()


def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for it
    wrong = [{"in": str(one["loc"][0]), "name": str(one["loc"][-1]), "reason": one["msg"]} for one in error.errors()]
    text = "; ".join(f"{one['name']}: {one['reason']}" for one in wrong)
    return ProblemError(ProblemKind.INVALID, f"{text}.", errors=wrong).response()


def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for it
    if error.status_code == 404:
        return ProblemError(
            ProblemKind.UNKNOWN, f"There is no {request.url.path[:200]}. /docs lists the routes."
        ).response()
    kind = ProblemKind.NOT_ALLOWED if error.status_code == 405 else ProblemKind.MALFORMED
    return ProblemError(kind, str(error.detail), dict(error.headers or {})).response()


def _foreseen(_: Request, error: Exception) -> Response:
    kind = (
        ProblemKind.INVALID
        if isinstance(error, UsageError)
        else ProblemKind.DAMAGED
        if isinstance(error, DamagedFileError)
        else ProblemKind.FAULT
    )
    return ProblemError(kind, str(error)).response()


def _unforeseen(_: Request, error: Exception) -> Response:
    logger.error("A request could not be answered: %r", error)
    return ProblemError(ProblemKind.FAULT, "The server failed. Its log has the reason.").response()


_HANDLERS: dict[Any, Any] = {
    ProblemError: _problem,
    RequestValidationError: _invalid,
    HTTPException: _http,
    MarketDataError: _foreseen,
    Exception: _unforeseen,
}
