"""A guard for Dagster's web server: it serves its own pages, and programs of this machine's users.

Dagster's server has no login and ignores the origin of requests, so any page in a browser could start runs. The guard
refuses foreign Host names (DNS rebinding), foreign origins, and changes by GET. A login does not belong here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from market_data_pipeline.hosts import is_own_host, is_own_origin, parse_host

if TYPE_CHECKING:
    from starlette.datastructures import Headers
    from starlette.types import ASGIApp, Receive, Scope, Send

_BODIES = ("application/json", "application/graphql")
"""Content types that a foreign page cannot send without a preflight request."""


def guard_webserver() -> None:
    """Add the guard to every Dagster web server of this process. Repeated calls are harmless."""
    from dagster_webserver.webserver import DagsterWebserver
    from starlette.middleware import Middleware

    from market_data_pipeline.settings import load_settings

    build = DagsterWebserver.build_middleware
    if getattr(build, "guards", False):
        return
    hosts = load_settings().ui_host_names

    def guarded(self: DagsterWebserver[Any, Any]) -> list[Middleware]:
        return [Middleware(Guard, hosts=hosts), *build(self)]

    guarded.guards = True  # type: ignore[attr-defined]
    DagsterWebserver.build_middleware = guarded  # type: ignore[method-assign]


class Guard:
    """ASGI middleware that refuses requests that a foreign page may have made.

    Args:
        hosts: Allowed names, ``name`` or ``name:port``, in addition to loopback and the server's own address.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str] = ()) -> None:
        self._app = app
        self._hosts = frozenset(host.casefold() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, or pass it on."""
        from starlette.responses import PlainTextResponse

        refusal = self._refusal(scope) if scope["type"] in ("http", "websocket") else None
        if refusal is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": refusal[1][:120]})
        else:
            status, text = refusal
            headers = {"Allow": "POST"} if status == _NOT_BY_GET else None
            await PlainTextResponse(f"{text}\n", status, headers)(scope, receive, send)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        from starlette.datastructures import Headers

        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        host = parse_host(hosts[0]) if len(hosts) == 1 else None
        if host is None:
            return 400, "The request has no Host header, or several."
        if not is_own_host(host, self._hosts, (scope.get("server") or ("",))[0]):
            return 403, (
                f"{hosts[0]} is not an allowed name of this UI. To allow it, start the UI with "
                f"`market-data ui --allow-host {host[0]}`, or set MARKET_DATA_UI_HOSTS."
            )
        for origin in headers.getlist("origin"):
            if not is_own_origin(origin, host, self._hosts):
                return 403, f"Requests from {origin[:100]} are refused."
        site, mode = (headers.get(f"sec-fetch-{what}") for what in ("site", "mode"))
        if site == "cross-site" and not (mode == "navigate" and scope.get("method") in ("GET", "HEAD")):
            return 403, "Requests from other sites are refused."
        return _refused_change(scope, headers) if scope["type"] == "http" else None


_NOT_BY_GET = 405


def _refused_change(scope: Scope, headers: Headers) -> tuple[int, str] | None:
    graphql = scope["path"].rstrip("/").endswith("/graphql")
    if scope["method"] == "POST":
        kinds = [kind.partition(";")[0].strip().casefold() for kind in headers.getlist("content-type")]
        if (kinds or graphql) and (len(kinds) != 1 or kinds[0] not in _BODIES):
            return 415, f"A POST needs the Content-Type {' or '.join(_BODIES)}."
    elif graphql and "text/html" not in headers.get("accept", "") and _changes(scope["query_string"]):
        return _NOT_BY_GET, "GET is for queries only. Send mutations by POST."
    return None


def _changes(query_string: bytes) -> bool:
    """Return True if the GraphQL in a URL has anything but queries."""
    from graphql import GraphQLError, OperationDefinitionNode, OperationType, parse
    from starlette.datastructures import QueryParams

    text = QueryParams(query_string).get("query")
    if text is None:
        return False
    try:
        definitions = parse(text).definitions
    except GraphQLError:
        return False  # Dagster reports the error
    return any(
        isinstance(one, OperationDefinitionNode) and one.operation is not OperationType.QUERY for one in definitions
    )
