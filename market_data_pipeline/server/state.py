"""The state that all routes of one server share: settings, the source of rows, caches, keys, numbers and jobs."""

from __future__ import annotations

import hmac
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import HTTPConnection, Request

from market_data_pipeline.client.pages import PageRequest
from market_data_pipeline.model.binance_dialect import SymbolRules
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.server.answers import AnswerCache, Recent, Shared, Workers
from market_data_pipeline.server.jobs import ServerJobs
from market_data_pipeline.server.live_hub import LiveHub
from market_data_pipeline.server.numbers import Numbers
from market_data_pipeline.server.problems import ProblemError, ProblemKind
from market_data_pipeline.server.rows import RowSource
from market_data_pipeline.settings import Settings

WITH_KEYS = "Set MARKET_DATA_API_KEYS and start the server again."


@dataclass
class ServerState:
    """The state of one server.

    Attributes:
        keys: API keys. Without any, admin routes and SQL are off.
        key_for_all: Every route but ``/health`` and ``/ready`` needs a key.
        hub: The hub of the live feed in this process. None if it runs none.
    """

    settings: Settings
    source: RowSource
    jobs: ServerJobs
    keys: Sequence[str] = ()
    key_for_all: bool = False
    hub: LiveHub | None = None
    answers: AnswerCache = field(init=False)
    workers: Workers = field(default_factory=Workers)
    shared: Shared = field(default_factory=Shared)
    numbers: Numbers = field(default_factory=Numbers)
    health: tuple[float, bytes] | None = None
    listed: tuple[float, bytes] | None = None
    reaches: dict[SeriesKey, tuple[str, dict[str, Any]]] = field(default_factory=dict)
    parsed: Recent[tuple[object, ...], tuple[PageRequest, SeriesKey, Hashable]] = field(
        default_factory=lambda: Recent(4096)
    )
    symbols: dict[Hashable, tuple[float, list[SymbolRules]]] = field(default_factory=dict)
    verified: Recent[tuple[object, ...], int] = field(default_factory=lambda: Recent(4096))

    def __post_init__(self) -> None:
        self.answers = AnswerCache(self.settings.serve_cache_mb * 1_000_000)
        self.numbers.watch(self.answers)

    def has_key(self, request: HTTPConnection) -> bool:
        """Return True if a request has one of the keys.

        It is sent as ``Authorization: Bearer KEY`` or ``X-API-Key: KEY``, or as ``X-MBX-APIKEY: KEY``.
        """
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        given = token.strip() if scheme.casefold() == "bearer" else ""
        given = given or request.headers.get("x-api-key", "") or request.headers.get("x-mbx-apikey", "")
        same = [hmac.compare_digest(given.encode(), key.encode()) for key in self.keys]
        return bool(given) and any(same)

    def need_key(self, request: HTTPConnection) -> None:
        """Refuse a request without a key.

        Raises:
            ProblemError: The server has no keys, or the request has none of them.
        """
        if not self.keys:
            raise ProblemError(ProblemKind.OFF, f"This route needs an API key, and the server has none. {WITH_KEYS}")
        if not self.has_key(request):
            raise ProblemError(
                ProblemKind.NO_KEY,
                "Send one of the server's keys as Authorization: Bearer KEY.",
                {"WWW-Authenticate": "Bearer"},
            )


def state_of_app(request: Request) -> ServerState:
    """Return the state of the server that received a request."""
    state: ServerState = request.app.state.server
    return state
