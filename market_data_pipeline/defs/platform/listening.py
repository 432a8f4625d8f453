"""The address of Dagster's UI: one UI per data folder and per team, on a free port. Serving it does not belong here."""

from __future__ import annotations

import errno
import os
import signal
import socket
from contextlib import ExitStack
from pathlib import Path

from filelock import Timeout

from market_data_pipeline.errors import UiRunsError, UsageError
from market_data_pipeline.lake import locks
from market_data_pipeline.team.current import current_team

_NOT_HERE = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}

_claims = ExitStack()
"""Locks of this process, until it ends."""


def claim_ui(home: Path, host: str, port: int) -> None:
    """Claim the one UI of a home for this process, until it ends.

    Raises:
        UiRunsError: Another process has it, of this host or of another host of the team. The text names that process.
    """
    lock = home / "ui.lock"
    try:
        _claims.enter_context(locks.held(lock))
    except Timeout:
        owner = lock.read_text("utf-8", errors="replace").strip()
        raise UiRunsError(f"A UI already runs over {home.parent}: process {owner}. Use it, or stop it first.") from None
    team = current_team()
    if team is not None and team.take(_UI, on_lost=_end) is None:
        raise UiRunsError(
            f"A UI with its daemon already runs for this team: {team.holder(_UI)}. Two daemons would start each run "
            "twice. Use that one, or stop it first."
        )
    lock.write_text(f"{os.getpid()} at {address_of(host, port)}\n", "utf-8")


_UI = "ui"
"""Name of the lock of a team's one UI and daemon."""


def _end() -> None:
    """End this UI, because another host has started one while this host was cut off."""
    os.kill(os.getpid(), signal.SIGTERM)


def check_address(host: str, port: int) -> None:
    """Raise an error if the address cannot be listened on.

    Raises:
        UsageError: The text has the reason.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in found:
            with socket.socket(family, kind, protocol) as trial:
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                trial.bind(address)
    except OSError as error:
        if isinstance(error, socket.gaierror) or error.errno in _NOT_HERE:
            raise UsageError(f"{host} is not an address of this machine. Choose another --host.") from error
        if error.errno == errno.EADDRINUSE:
            raise UsageError(f"Port {port} of {host} is in use by another program. Choose another --port.") from error
        raise UsageError(f"Cannot listen on port {port} of {host}: {error.strerror}.") from error


def address_of(host: str, port: int) -> str:
    """Return the URL of a server."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
