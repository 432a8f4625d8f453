"""The address of Dagster's UI: one UI per data folder, on a free port. Serving it does not belong here."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from ipaddress import ip_address
from pathlib import Path

from market_data_pipeline.errors import UiRunsError, UsageError
from market_data_pipeline.lake.locks import is_running

_NOT_HERE = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}


def claim_ui(home: Path, host: str, port: int) -> None:
    """Claim the one UI of a home for this process, until it ends.

    Raises:
        UiRunsError: Another process has it. The text names that process.
    """
    # Not `locks.held`, because the lock lasts until the process ends.
    claim = os.open(home / "ui.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    taken = False
    try:
        fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        taken = True
    except OSError:  # a file system without locks: check the process that the file names
        taken = _is_named_and_runs(claim)
    if taken:
        owner = os.pread(claim, 1000, 0).decode(errors="replace").strip() or "another process"
        os.close(claim)
        raise UiRunsError(f"A UI already runs over {home.parent}: {owner}. Use it, or stop it first.")
    os.ftruncate(claim, 0)
    os.pwrite(claim, f"process {os.getpid()} at {address_of(host, port)}\n".encode(), 0)


def _is_named_and_runs(claim: int) -> bool:
    words = os.pread(claim, 1000, 0).decode(errors="replace").split()
    if len(words) < 2 or not words[1].isdecimal() or int(words[1]) == os.getpid():
        return False
    return is_running(int(words[1]))


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


def is_loopback(host: str) -> bool:
    """Return True if only programs on this machine can reach a host."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.casefold() == "localhost"
