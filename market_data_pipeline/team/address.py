"""URLs of PostgreSQL: checked, with time limits of the network, and shown without their password."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from market_data_pipeline.errors import UsageError


def with_limits(url: str, **limits: int) -> str:
    """Return the URL with time limits of the network, unless it has its own.

    Args:
        limits: Parameters of libpq, such as ``connect_timeout=10``.

    Raises:
        UsageError: It is not a URL of PostgreSQL. The message does not repeat it, because it may have a password.
    """
    try:
        parts = urlsplit(url)
        well = parts.scheme in ("postgresql", "postgres") and not re.search(r"\s", url) and "#" not in url
        well = well and (parts.port is None or parts.port > 0)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
    except ValueError:
        well, query = False, {}
    if not well:
        raise UsageError(
            "The URL of PostgreSQL is invalid. Write postgresql://user:password@host:port/database, and special "
            "characters of the password as %40 for @, %2F for / and so on."
        )
    given = {name: str(value) for name, value in limits.items()}
    made = urlunsplit(parts._replace(query=urlencode(given | query)))
    # Without a host, libpq uses its socket. urlunsplit would drop the empty host.
    return made if "://" in made else made.replace(":", "://", 1)


def secrets_of(url: str) -> tuple[str, ...]:
    """Return the passwords in a URL, as written and decoded, the longest first."""
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    raw = [parts.password or "", query.get("password", ""), query.get("sslpassword", "")]
    return tuple(sorted({text for one in raw for text in (one, unquote(one)) if text}, key=len, reverse=True))


def shown(url: str) -> str:
    """Return host and database of a URL for messages, without user and password.

    >>> shown("postgresql://user:secret@db.example.com:5433/market?sslmode=require")
    'db.example.com:5433/market'
    """
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2] or dict(parse_qsl(parts.query)).get("host") or "the local socket"
    return f"{host}{parts.path}"
