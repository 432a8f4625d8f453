"""Answers as ``/openapi.json`` describes them: formats, headers and problems."""

from __future__ import annotations

from typing import Any

from market_data_pipeline.server.formats import MEDIA_TYPES, Format
from market_data_pipeline.server.problems import PROBLEM_TYPE

_TEXT = {"type": "string"}
_MOMENT = {"type": "string", "format": "date-time"}

PROBLEM_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {"type": _TEXT, "title": _TEXT, "status": {"type": "integer"}, "detail": _TEXT},
}

_SPAN = {"from": _MOMENT, "to": _MOMENT}

ROWS_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": [
        "market", "data_type", "symbol", "start", "end", "version", "states", "missing", "next_page_token", "columns",
    ],
    "properties": {
        "market": _TEXT,
        "data_type": _TEXT,
        "symbol": _TEXT,
        "interval": {"type": ["string", "null"]},
        "start": {"type": ["string", "null"], "format": "date-time"},
        "end": {"type": ["string", "null"], "format": "date-time"},
        "version": {"type": "string", "description": "Hash over the contents of the days that the page overlaps."},
        "states": {
            "type": "array",
            "items": {"type": "object", "properties": {**_SPAN, "state": _TEXT, "source": _TEXT}},
        },
        "missing": {"type": "array", "items": {"type": "object", "properties": {**_SPAN, "reason": _TEXT}}},
        "notes": {"type": "array", "items": _TEXT},
        "next_page_token": {"type": ["string", "null"]},
        "time_unit": {"type": "string", "description": "Unit of times in `columns`, since 1970, UTC."},
        "columns": {"type": "object", "additionalProperties": {"type": "array"}},
    },
}  # fmt: skip

_WORDS = {
    304: "The client has this version.",
    400: "The request is malformed.",
    401: "An API key is needed.",
    403: "The request is for another server, or this part is off.",
    404: "The series is not stored, or there is no such thing.",
    406: "No known format is acceptable.",
    409: "The data changed since the page before.",
    413: "The request is too large.",
    415: "The body has another type.",
    422: "A parameter is not valid.",
    503: "A file is damaged, or the server is busy.",
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the description of problems by status."""
    return {
        status: {"description": _WORDS[status], "content": {PROBLEM_TYPE: {"schema": PROBLEM_SCHEMA}}}
        for status in statuses
    }


def of_rows() -> dict[int | str, dict[str, Any]]:
    """Return the description of answers with rows."""
    binary = {"schema": {"type": "string", "format": "binary"}}
    content = {media.partition(";")[0]: binary for media in MEDIA_TYPES.values()}
    content[MEDIA_TYPES[Format.JSON]] = {"schema": ROWS_SCHEMA}
    return {
        200: {"description": "Rows in the format that `Accept` names.", "content": content},
        304: {"description": _WORDS[304]},
        **problems(400, 401, 403, 404, 406, 409, 422, 503),
    }


def of_json(description: str, *statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the description of an answer that is a JSON object, and of its problems."""
    return {
        200: {"description": description, "content": {"application/json": {"schema": {"type": "object"}}}},
        **problems(400, 401, 403, 422, *statuses),
    }


def of_events() -> dict[int | str, dict[str, Any]]:
    """Return the description of server-sent events."""
    events = {"description": "Events, until the client goes away.", "content": {"text/event-stream": {}}}
    return {200: events, **problems(400, 401, 403, 404, 422, 503)}


def with_keys(document: dict[str, Any]) -> dict[str, Any]:
    """Return an OpenAPI document with the API key: admin routes and SQL need it, other routes may have it."""
    scheme = {"type": "http", "scheme": "bearer", "description": "One of `MARKET_DATA_API_KEYS`."}
    document.setdefault("components", {})["securitySchemes"] = {"key": scheme}
    document["security"] = [{}, {"key": []}]
    for path, operations in document["paths"].items():
        if path.startswith(_WITH_KEY):
            for operation in operations.values():
                operation["security"] = [{"key": []}]
    return document


_WITH_KEY = ("/api/v1/admin/", "/api/v1/sql")
