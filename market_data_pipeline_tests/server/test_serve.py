"""The command ``market-data serve``: a real process, and the bytes of clients that no library would send."""

from __future__ import annotations

import builtins
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.request import Request, urlopen

import pytest
from click.testing import CliRunner

from market_data_pipeline.cli import main
from market_data_pipeline.server import run
from market_data_pipeline_tests.support.processes import MARKET_DATA, running, until
from market_data_pipeline_tests.support.small_lake import SmallLake, days_from, series


def free_port() -> int:
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        port: int = trial.getsockname()[1]
        return port


def answers(port: int) -> bool:
    with socket.socket() as trial:
        return trial.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """The port of a running server over a small lake, and its process."""
    folder = tmp_path_factory.mktemp("serve")
    SmallLake(folder / "data").put(series("BTCUSDT", "1h"), days_from("2024-01-01", 3))
    port = free_port()
    environment = os.environ | {"MARKET_DATA_DIR": str(folder / "data")}
    with running([MARKET_DATA, "serve", "--port", str(port)], environment, folder) as process:
        until(lambda: answers(port) or process.poll() is not None, "the server answers", 120)
        yield port, process


def said(port: int, *parts: bytes) -> bytes:
    """Send bytes, and return all that comes back until the server closes the connection."""
    found = b""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        try:
            for part in parts:
                connection.sendall(part)
        except ConnectionError:
            pass
        try:
            while part := connection.recv(65_536):
                found += part
        except ConnectionResetError:
            pass
    return found


@pytest.mark.slow
def test_command_serves_the_lake_and_ends_at_a_signal(tmp_path: Path) -> None:
    SmallLake(tmp_path / "data").put(series("BTCUSDT", "1h"), days_from("2024-01-01", 3))
    port = free_port()
    environment = os.environ | {"MARKET_DATA_DIR": str(tmp_path / "data")}
    with running([MARKET_DATA, "serve", "--port", str(port)], environment, tmp_path) as process:
        until(lambda: answers(port) or process.poll() is not None, "the server answers", 120)
        url = f"http://127.0.0.1:{port}/api/v1/market/candles/BTCUSDT/1h?start_time=2024-01-01&limit=30"
        with urlopen(Request(url)) as answer:
            document: dict[str, Any] = json.load(answer)
        assert len(document["columns"]["open"]) == 30
        assert document["next_page_token"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(600) == 0
    text = "".join(path.read_text() for path in tmp_path.glob("output-*"))
    assert f"is served at http://127.0.0.1:{port}" in text
    assert "Traceback" not in text


@pytest.mark.slow
def test_head_of_ten_megabytes_is_refused(served: tuple[int, subprocess.Popen[bytes]]) -> None:
    """Many headers, one that is long, and a target that is long."""
    port, process = served
    many = b"".join(b"X-%d: %s\r\n" % (n, b"x" * 1000) for n in range(10_000))
    for head in (
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + many,
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 10_000_000,
        b"GET /" + b"x" * 10_000_000,
    ):
        answer = said(port, *(head[n : n + 100_000] for n in range(0, len(head), 100_000)))
        assert not answer or answer.startswith(b"HTTP/1.1 4")
    assert process.poll() is None
    assert b"200 OK" in said(port, b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")


@pytest.mark.slow
def test_many_requests_of_one_connection_are_answered(served: tuple[int, subprocess.Popen[bytes]]) -> None:
    """The bytes of one request do not count for the next."""
    one = b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 1000 + b"\r\n\r\n"
    last = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    answer = said(served[0], *[one] * 200, last)
    assert answer.count(b"HTTP/1.1 200 OK") == 201


@pytest.mark.slow
def test_nonsense_is_a_bad_request(served: tuple[int, subprocess.Popen[bytes]]) -> None:
    assert said(served[0], b"\x16\x03\x01\x02\x00" * 50 + b"\r\n\r\n").startswith(b"HTTP/1.1 400")


@pytest.mark.slow
def test_request_without_a_host_is_refused(served: tuple[int, subprocess.Popen[bytes]]) -> None:
    answer = said(served[0], b"GET /health HTTP/1.0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"application/problem+json" in answer


def test_slow_head_closes_the_connection() -> None:
    """Half a head, and nothing after it."""
    script = (
        "from market_data_pipeline.server import run\n"
        "from fastapi import FastAPI\n"
        "run.HEAD_SECONDS = 0.2\n"
        "import sys; run.run_server(FastAPI(), '127.0.0.1', int(sys.argv[1]))\n"
    )
    port = free_port()
    with subprocess.Popen([sys.executable, "-c", script, str(port)]) as process:
        try:
            until(lambda: answers(port) or process.poll() is not None, "the server answers", 120)
            assert said(port, b"GET /docs HTTP/1.1\r\nHost:") == b""
            assert b"200 OK" in said(port, b"GET /docs HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        finally:
            process.terminate()


# --- before it runs ---------------------------------------------------------------------------------------------------


@pytest.fixture
def not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """No server is started."""
    monkeypatch.setattr(run, "run_server", lambda app, host, port: None)


def invoked(*arguments: str, **settings: str) -> Any:
    return CliRunner().invoke(
        main, ["serve", *arguments], env={f"MARKET_DATA_{k.upper()}": v for k, v in settings.items()}
    )


@pytest.mark.usefixtures("not_run")
def test_other_hosts_need_a_key(tmp_path: Path) -> None:
    refused = invoked("--host", "0.0.0.0", dir=str(tmp_path))
    assert refused.exit_code == 2
    assert "MARKET_DATA_API_KEYS" in refused.output
    allowed = invoked("--host", "0.0.0.0", "--port", str(free_port()), dir=str(tmp_path), api_keys="k" * 16)
    assert allowed.exit_code == 0, allowed.output
    assert "Every request needs an API key" in allowed.output


@pytest.mark.usefixtures("not_run")
def test_short_key_is_refused(tmp_path: Path) -> None:
    refused = invoked(dir=str(tmp_path), api_keys="short")
    assert refused.exit_code == 2
    assert "16 characters" in refused.output


def test_port_in_use_is_a_sentence(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        refused = invoked("--port", str(taken.getsockname()[1]), dir=str(tmp_path))
    assert refused.exit_code == 2
    assert "is in use by another program" in refused.output


def test_absent_extra_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_fastapi(name: str, *arguments: Any, **options: Any) -> ModuleType:
        if name == "market_data_pipeline.server.app":
            raise ModuleNotFoundError("No module named 'fastapi'", name="fastapi")
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_fastapi)
    refused = invoked(dir=str(tmp_path))
    assert refused.exit_code == 2
    assert 'pip install "market-data-pipeline[server]"' in refused.output
