"""The route of SQL: one read-only query over the views, in a process of its own, behind a key."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from typing import Any

import orjson
import pyarrow as pa
from fastapi import APIRouter, Request
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from market_data_pipeline.server import documented
from market_data_pipeline.server.formats import MEDIA_TYPES, compressed, encode_rows, encoding_of
from market_data_pipeline.server.problems import ProblemError, ProblemKind
from market_data_pipeline.server.sql_process import ANSWERED, OVER_A_LIMIT, READY
from market_data_pipeline.server.state import ServerState, state_of_app

MOST_SQL_ROWS = 1_000_000
_DEFAULT_SQL_ROWS = 10_000
_MOST_BODY = 100_000
_BODY_SECONDS = 10.0
_GRACE_SECONDS = 5.0
_AT_ONCE = 2

_BODY_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["query"],
    "additionalProperties": False,
    "properties": {
        "query": {"type": "string", "minLength": 1, "description": "One SELECT, or EXPLAIN of one."},
        "params": {
            "type": "array",
            "items": {"type": ["string", "number", "boolean", "null"]},
            "description": "A value for each `?`.",
        },
        "limit": {"type": "integer", "minimum": 1, "maximum": MOST_SQL_ROWS, "default": _DEFAULT_SQL_ROWS},
    },
}


def sql_routes() -> APIRouter:
    """Return the route of SQL."""
    router = APIRouter(prefix="/api/v1", tags=["sql"])
    running = asyncio.Semaphore(_AT_ONCE)

    @router.post(
        "/sql",
        name="sql",
        operation_id="post_sql",
        summary="Run one read-only query over the views.",
        response_class=Response,
        responses={**documented.of_rows(), **documented.problems(413, 415)},
        openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": _BODY_SCHEMA}}}},
    )
    async def sql(request: Request) -> Response:
        """Answer with the rows, at most `limit`. `truncated` is true if there are more.

        The query reads the views and no other file, changes no setting, and has limits of time, memory and disk.
        """
        state = state_of_app(request)
        state.need_key(request)
        encoding = encoding_of(request.headers.get("accept"), request.headers.get("accept-encoding"), None)
        query, params, limit = checked_body(await json_body(request))
        if running.locked():
            raise ProblemError(
                ProblemKind.BUSY, f"{_AT_ONCE} queries run already. Send it again later.", {"Retry-After": "2"}
            )
        async with running:
            table = await _run(state, query, params, limit)
        shown = table.slice(0, limit)
        facts = {"rows": shown.num_rows, "truncated": table.num_rows > limit}

        def encoded() -> bytes:
            return compressed(encode_rows(shown, facts, encoding.format), encoding.coding)

        body = await state.workers.run(encoded)
        headers = {"Cache-Control": "no-store", "X-Truncated": str(facts["truncated"]).lower()}
        if encoding.coding != "identity":
            headers["Content-Encoding"] = encoding.coding
        return Response(body, 200, headers, MEDIA_TYPES[encoding.format])

    return router


async def json_body(request: Request, most: int = _MOST_BODY) -> Any:
    """Return the JSON of a request.

    Raises:
        ProblemError: The body is too large, comes too slowly, or is not JSON.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().casefold() != "application/json":
        raise ProblemError(ProblemKind.WRONG_BODY, "Send JSON with Content-Type: application/json.")
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > most:
                    raise ProblemError(
                        ProblemKind.TOO_LARGE, f"The body has more than {most:,} bytes.", {"Connection": "close"}
                    )
    except TimeoutError:
        raise ProblemError(ProblemKind.MALFORMED, "The body did not arrive in time.", {"Connection": "close"}) from None
    except ClientDisconnect:
        raise ProblemError(ProblemKind.MALFORMED, "The client went away.") from None
    try:
        return orjson.loads(bytes(body))
    except orjson.JSONDecodeError as error:
        raise ProblemError(ProblemKind.INVALID, f"The body is not JSON: {error}.") from None


def checked_body(document: Any) -> tuple[str, list[Any], int]:
    """Return the query, its values and the most rows.

    Raises:
        ProblemError: The document has another form.
    """
    if not isinstance(document, dict) or not isinstance(document.get("query"), str) or not document["query"].strip():
        raise ProblemError(ProblemKind.INVALID, 'Send an object such as {"query": "FROM binance_spot.klines LIMIT 5"}.')
    if unknown := sorted(set(document) - {"query", "params", "limit"}):
        raise ProblemError(
            ProblemKind.INVALID, f"The body has no member {unknown[0][:40]!r}. There are: query, params, limit."
        )
    params, limit = document.get("params", []), document.get("limit", _DEFAULT_SQL_ROWS)
    if not isinstance(params, list) or not all(one is None or isinstance(one, str | int | float) for one in params):
        raise ProblemError(ProblemKind.INVALID, "params is a list of texts, numbers, true, false or null.")
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= MOST_SQL_ROWS:
        raise ProblemError(ProblemKind.INVALID, f"limit is a number from 1 to {MOST_SQL_ROWS:,}.")
    return document["query"], params, limit


async def _run(state: ServerState, query: str, params: list[Any], limit: int) -> pa.Table:
    settings = state.settings
    asked = {
        "root": str(settings.root),
        "query": query,
        "params": params or None,
        "limit": limit,
        "memory_mb": settings.sql_memory_mb,
        "disk_mb": settings.sql_disk_mb,
        "seconds": settings.sql_seconds,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "market_data_pipeline.server.sql_process",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        assert process.stdin is not None  # noqa: S101 - both are pipes
        assert process.stdout is not None  # noqa: S101
        process.stdin.write(orjson.dumps(asked))
        process.stdin.close()
        await process.stdout.read(len(READY))
        async with asyncio.timeout(settings.sql_seconds + _GRACE_SECONDS if settings.sql_seconds else None):
            out = await process.stdout.read()
    except TimeoutError:
        raise ProblemError(
            ProblemKind.OVER_LIMIT,
            f"The query took longer than {settings.sql_seconds:g} seconds (MARKET_DATA_SQL_SECONDS).",
        ) from None
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    kind, rest = out[:1], out[1:]
    if kind == ANSWERED:
        return pa.ipc.open_stream(rest).read_all()
    if not kind:  # ended by the system, or out of memory in a library
        raise ProblemError(
            ProblemKind.OVER_LIMIT,
            f"The query needs more than {settings.sql_memory_mb} MB of memory (MARKET_DATA_SQL_MEMORY_MB).",
        )
    raise ProblemError(
        ProblemKind.OVER_LIMIT if kind == OVER_A_LIMIT else ProblemKind.INVALID, rest.decode(errors="replace")
    )
