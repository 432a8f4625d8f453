"""Names under which a server of this machine answers: checks against DNS rebinding and foreign pages.

A page of another site can send requests to this machine. Its browser sends the Host and the Origin with them. Pure
functions of text; refusing a request belongs to each server.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from ipaddress import ip_address
from urllib.parse import urlsplit

_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(?::(?P<port>[0-9]{1,5}))?", re.ASCII)
_PORTS = {"http": 80, "https": 443}

HostName = tuple[str, int | None]
"""A name or address, and the port if there is one."""


def parse_host(text: str) -> HostName | None:
    """Return the name and the port of a Host header, in lower case. None if the text is not valid."""
    found = _HOST.fullmatch(text.casefold())
    if found is None or (found["port"] and int(found["port"]) > 65_535):
        return None
    return found["name"], int(found["port"]) if found["port"] else None


def is_own_host(host: HostName, allowed: Collection[str], server: str) -> bool:
    """Return True if a Host header names this machine.

    Args:
        allowed: Further names, ``name`` or ``name:port``, in lower case.
        server: Address that the client reached.
    """
    name, port = host
    if name in allowed or f"{name}:{port}" in allowed or name == "localhost":
        return True
    try:
        address = ip_address(name.strip("[]"))
    except ValueError:
        return False
    # An address cannot be rebound. The client reached the server's own address.
    return address.is_loopback or str(address) == server


def is_own_origin(origin: str, host: HostName, allowed: Collection[str]) -> bool:
    """Return True if a page of this server, or of an allowed name, sent a request."""
    try:
        parts = urlsplit(origin.casefold())
        at = parse_host(parts.netloc)
    except ValueError:
        return False
    default = _PORTS.get(parts.scheme)
    if at is None or default is None:
        return False
    name, port = at[0], at[1] or default
    if name in allowed or f"{name}:{port}" in allowed:
        return True
    return (name, port) == (host[0], host[1] or default)


def is_loopback(host: str) -> bool:
    """Return True if only programs on this machine can reach a host."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.casefold() == "localhost"
