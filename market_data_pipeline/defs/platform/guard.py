"""A guard for Dagster's web server: it serves its own pages, and programs of this machine's users.

Dagster's server has no login and ignores the origin of requests, so any page in a browser could start runs. The guard
refuses foreign Host names (DNS rebinding), foreign origins, and changes by GET. A login does not belong here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from starlette.datastructures import Headers
    from starlette.types import ASGIApp, Receive, Scope, Send

_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(?::(?P<port>[0-9]{1,5}))?", re.ASCII)
_PORTS = {"http": 80, "https": 443}
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
        host = _split(hosts[0]) if len(hosts) == 1 else None
        if host is None:
            return 400, "The request has no Host header, or several."
        if not self._is_ours(host, scope):
            return 403, (
                f"{hosts[0]} is not an allowed name of this UI. To allow it, start the UI with "
                f"`market-data ui --allow-host {host[0]}`, or set MARKET_DATA_UI_HOSTS."
            )
        for origin in headers.getlist("origin"):
            if not self._is_from_here(origin, host):
                return 403, f"Requests from {origin[:100]} are refused."
        site, mode = (headers.get(f"sec-fetch-{what}") for what in ("site", "mode"))
        if site == "cross-site" and not (mode == "navigate" and scope.get("method") in ("GET", "HEAD")):
            return 403, "Requests from other sites are refused."
        return _refused_change(scope, headers) if scope["type"] == "http" else None

    def _is_ours(self, host: tuple[str, int | None], scope: Scope) -> bool:
        name, port = host
        if name in self._hosts or f"{name}:{port}" in self._hosts or name == "localhost":
            return True
        try:
            address = ip_address(name.strip("[]"))
        except ValueError:
            return False
        # An address cannot be rebound. The client reached the server's own address.
        return address.is_loopback or str(address) == (scope.get("server") or ("",))[0]

    def _is_from_here(self, origin: str, host: tuple[str, int | None]) -> bool:
        try:
            parts = urlsplit(origin.casefold())
            at = _split(parts.netloc)
        except ValueError:
            return False
        default = _PORTS.get(parts.scheme)
        if at is None or default is None:
            return False
        name, port = at[0], at[1] or default
        if name in self._hosts or f"{name}:{port}" in self._hosts:
            return True
        return (name, port) == (host[0], host[1] or default)


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


def _split(host: str) -> tuple[str, int | None] | None:
    found = _HOST.fullmatch(host.casefold())
    if found is None or (found["port"] and int(found["port"]) > 65_535):
        return None
    return found["name"], int(found["port"]) if found["port"] else None
