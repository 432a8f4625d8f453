"""Errors of the server as RFC 9457 problem documents. Each kind has a stable type, title and status."""

from __future__ import annotations

from enum import Enum
from typing import Any

import orjson
from starlette.responses import Response

PROBLEM_TYPE = "application/problem+json"

_URN = "urn:market-data-pipeline:problem:"


class ProblemKind(Enum):
    """Kinds of errors: the name in the type URI, the status and the title."""

    INVALID = ("invalid-request", 422, "A parameter is not valid")
    BAD_TOKEN = ("invalid-page-token", 422, "The page token is not valid")
    MALFORMED = ("malformed-request", 400, "The request is malformed")
    NO_KEY = ("key-needed", 401, "An API key is needed")
    FOREIGN = ("foreign-request", 403, "The request is not for this server")
    OFF = ("not-enabled", 403, "This part of the server is off")
    UNKNOWN = ("not-found", 404, "There is no such thing")
    UNKNOWN_SERIES = ("unknown-series", 404, "The series is not stored")
    NOT_ALLOWED = ("method-not-allowed", 405, "The method is not allowed")
    UNACCEPTABLE = ("not-acceptable", 406, "No such format")
    CHANGED = ("version-changed", 409, "The data changed between two pages")
    TOO_LARGE = ("too-large", 413, "The request is too large")
    WRONG_BODY = ("unsupported-media-type", 415, "The body has another type")
    OVER_LIMIT = ("query-limit", 422, "The query exceeds a limit")
    FAULT = ("internal-error", 500, "The server failed")
    DAMAGED = ("damaged-file", 503, "A file of the lake is damaged")
    BUSY = ("busy", 503, "The server is busy")

    @property
    def status(self) -> int:
        """Return the status of the answer."""
        return self.value[1]


class ProblemError(Exception):
    """An error that is answered with a problem document.

    Args:
        detail: What happened, and what to do.
        headers: Further headers of the answer.
        members: Further members of the document.
    """

    def __init__(self, kind: ProblemKind, detail: str, headers: dict[str, str] | None = None, **members: Any) -> None:
        super().__init__(detail)
        self.kind = kind
        self.headers = headers or {}
        self.members = members

    def response(self) -> Response:
        """Return the answer."""
        name, status, title = self.kind.value
        document = {
            "type": _URN + name,
            "title": title,
            "status": status,
            "detail": str(self).encode("utf-8", "replace").decode(),
            **self.members,
        }
        headers = {"Cache-Control": "no-store", **self.headers}
        return Response(orjson.dumps(document), status, headers, PROBLEM_TYPE)
