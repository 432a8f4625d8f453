"""The pages for people: ``/``, and the routes at ``/docs``. Their files come from this folder, their data from the API.

They send requests to this server alone: their Content-Security-Policy allows nothing else, and no script or style
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

_PAGES = {"/": "index.html", "/docs": "docs.html"}
_OPEN = frozenset({*_PAGES, "/openapi.json"})

_STATIC = Path(__file__).with_name("static")
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
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
_POLICY = "Content-Security-Policy"
_OF_DOCS = {_POLICY: _HEADERS[_POLICY].replace("img-src 'self'", "img-src 'self' data:")}
"""Swagger UI has its icons in its style."""


def is_page_path(path: str) -> bool:
    """Return True if a path needs no key, because it has no data: a page, a file of one, or the list of routes."""
    return path in _OPEN or path.startswith("/static/")


def page_routes() -> APIRouter:
    """Return the routes of the pages and of their files."""
    router = APIRouter(include_in_schema=False)
    files = {name: (kind, body, f'"{hashlib.sha256(body).hexdigest()[:32]}"') for name, kind, body in _files()}

    def answer(request: Request, name: str) -> Response:
        if name not in files:
            raise ProblemError(ProblemKind.UNKNOWN, f"There is no file {ascii(name)[:100]}.")
        kind, body, etag = files[name]
        headers = {**_HEADERS, **(_OF_DOCS if name == _PAGES["/docs"] else {}), "ETag": etag}
        if request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers=headers)
        return Response(body, media_type=kind, headers=headers)

    async def page(request: Request) -> Response:
        return answer(request, _PAGES[request.url.path])

    for path in _PAGES:
        router.add_api_route(path, page, methods=["GET", "HEAD"])

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
