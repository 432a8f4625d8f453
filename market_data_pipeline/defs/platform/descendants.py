"""End all processes that this one started when it ends, even if it is killed. Linux only: it reads ``/proc``.

This module is also the program of the watcher, a small process at a pipe whose other end only the watched process has.
It finds descendants by an environment variable and imports only the standard library. Starting other processes does not
belong here.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

STARTED_BY = "MARKET_DATA_STARTED_BY"
"""Environment variable that descendants inherit."""

_TERM_AFTER_SECONDS = 1.0
"""Seconds after a stop until SIGTERM. In a terminal, descendants get Ctrl-C themselves before that."""

KILL_AFTER_SECONDS = 9.0
"""Seconds after a stop, or after the end of the watched process, until SIGKILL."""

_LEAST_SECONDS = 1.0
"""Minimum number of seconds between SIGTERM and SIGKILL."""

_PROCESSES = Path("/proc")
_LOOK_AGAIN_SECONDS = 0.1

_watchers: list[subprocess.Popen[bytes]] = []


def end_with_this_process(at_once: str) -> Callable[[], None]:
    """End the processes that this one starts from now on, and their descendants, when it ends.

    Args:
        at_once: Part of a command line. Descendants with it get SIGTERM as soon as a stop begins. The others get it
            when this process has ended.

    Returns:
        A function that signals the start of a stop. Without ``/proc`` it has no effect.
    """
    if not (_PROCESSES / "self" / "environ").exists():
        return lambda: None
    mark = f"{os.getpid()}-{secrets.token_hex(8)}"
    ends, ended = os.pipe()
    try:
        _watchers.append(
            subprocess.Popen(  # noqa: S603 - this Python and this file
                (sys.executable, "-I", "-S", __file__, mark, at_once),
                stdin=ends,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,  # so that it does not get Ctrl-C
            )
        )
    finally:
        os.close(ends)
    os.environ[STARTED_BY] = mark

    def stop() -> None:
        with suppress(OSError):  # the watcher was killed
            os.write(ended, b"\n")

    return stop


def _watch(pipe: int, mark: bytes, at_once: bytes) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    stopping = os.read(pipe, 1) != b""
    kill_at = time.monotonic() + KILL_AFTER_SECONDS
    if stopping:
        time.sleep(_TERM_AFTER_SECONDS)
        _send(signal.SIGTERM, mark, at_once)
        while os.read(pipe, 100):
            pass
    left = _send(signal.SIGTERM, mark)
    kill_at = max(kill_at, time.monotonic() + _LEAST_SECONDS)
    while left and time.monotonic() < kill_at:
        time.sleep(_LOOK_AGAIN_SECONDS)
        left = _send(0, mark)
    while _send(signal.SIGKILL, mark):
        time.sleep(_LOOK_AGAIN_SECONDS)


def _send(number: int, mark: bytes, part: bytes = b"") -> bool:
    """Send a signal to descendants with a part in their command line. Return True if there are any."""
    found = False
    for folder in _descendants(mark):
        with suppress(OSError):
            if part in (folder / "cmdline").read_bytes():
                os.kill(int(folder.name), number)
                found = True
    return found


def _descendants(mark: bytes) -> Iterator[Path]:
    variable = STARTED_BY.encode() + b"=" + mark
    for folder in _PROCESSES.iterdir():
        if folder.name.isdecimal():
            with suppress(OSError):  # another user's, or it has ended
                if variable in (folder / "environ").read_bytes().split(b"\0"):
                    yield folder


if __name__ == "__main__":
    _watch(sys.stdin.fileno(), os.fsencode(sys.argv[1]), os.fsencode(sys.argv[2]))
