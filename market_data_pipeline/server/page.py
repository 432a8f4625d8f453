"""The page for people at ``/``: HTML, style and scripts from this folder. The data comes from the routes of the API.

The page sends requests to this server alone: its Content-Security-Policy allows nothing else, and no script or style
inside the HTML.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import Response

from market_data_pipeline.coverage.calendar import LOOKS
from market_data_pipeline.server.problems import ProblemError, ProblemKind

PAGE_PATHS = ("/", "/static/")
"""Path of the page, and begin of the paths of its files. They have no data, so they need no key."""

_STATIC = Path(__file__).with_name("static")
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def page_routes() -> APIRouter:
    """Return the routes of the page and of its files."""
    router = APIRouter(include_in_schema=False)
    files = {name: (kind, body, f'"{hashlib.sha256(body).hexdigest()[:32]}"') for name, kind, body in _files()}

    def answer(request: Request, name: str) -> Response:
        if name not in files:
            raise ProblemError(ProblemKind.UNKNOWN, f"There is no file {ascii(name)[:100]}.")
        kind, body, etag = files[name]
        headers = {**_HEADERS, "ETag": etag}
        if request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers=headers)
        return Response(body, media_type=kind, headers=headers)

    @router.api_route("/", methods=["GET", "HEAD"])
    async def page(request: Request) -> Response:
        return answer(request, "index.html")

    @router.api_route("/static/{name:path}", methods=["GET", "HEAD"])
    async def static(request: Request, name: str) -> Response:
        return answer(request, name)

    return router


def _files() -> Iterator[tuple[str, str, bytes]]:
    for path in sorted(_STATIC.rglob("*")):
        if path.suffix in _TYPES:
            yield path.relative_to(_STATIC).as_posix(), _TYPES[path.suffix], path.read_bytes()
    yield "states.css", _TYPES[".css"], _states().encode()


def _states() -> str:
    """Return the colours of days by state, as the calendars of ``market-data coverage`` have them."""
    light = "".join(f"--{state}:{look.light};" for state, look in LOOKS.items())
    dark = "".join(f"--{state}:{look.dark};" for state, look in LOOKS.items())
    rules = "".join(f".day-{state}{{fill:var(--{state});background:var(--{state})}}\n" for state in LOOKS)
    return f":root{{{light}}}\n@media (prefers-color-scheme:dark){{:root{{{dark}}}}}\n{rules}"
