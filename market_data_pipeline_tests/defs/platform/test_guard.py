"""Which requests reach Dagster's web server, and that one UI runs over a data folder."""

from __future__ import annotations

import asyncio
import os
import runpy
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from dagster_webserver.webserver import DagsterWebserver

from market_data_pipeline.defs.platform import home
from market_data_pipeline.defs.platform.event_log import KeptConnectionEventLogStorage
from market_data_pipeline.defs.platform.guard import Guard
from market_data_pipeline.defs.platform.listening import check_address, claim_ui
from market_data_pipeline.errors import UiRunsError, UsageError
from market_data_pipeline.hosts import is_loopback

HOST = "127.0.0.1:3000"
EVIL = "http://evil.example"
JSON = {"content-type": "application/json"}


def call(
    method: str = "GET",
    path: str = "/",
    headers: Mapping[str, str] | None = None,
    *,
    query: str = "",
    hosts: Sequence[str] = (),
    listens: str = "127.0.0.1",
    kind: str = "http",
) -> list[dict[str, Any]]:
    """What comes back of a request, as the messages of ASGI; the application behind the guard says "reached"."""
    sent: list[dict[str, Any]] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "reached", "status": 200, "headers": []})

    async def receive() -> dict[str, Any]:
        return {"type": f"{kind}.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    named = {"host": HOST, **(headers or {})}
    scope = {
        "type": kind,
        "method": method,
        "path": path,
        "query_string": query.encode(),
        "server": (listens, 3000),
        "headers": [(name.encode(), value.encode()) for name, value in named.items()],
    }
    asyncio.run(Guard(application, hosts)(scope, receive, send))
    return sent


def status(method: str = "GET", path: str = "/", headers: Mapping[str, str] | None = None, **more: Any) -> int:
    code: int = call(method, path, headers, **more)[0]["status"]
    return code


METHODS = ("GET", "POST", "OPTIONS")
REQUESTS = (("POST", "/graphql"), ("GET", "/"), ("OPTIONS", "/graphql"), ("POST", "/report_asset_check/x"))


@pytest.mark.parametrize("host", [HOST, "127.0.0.1", "localhost:3000", "LOCALHOST", "[::1]:3000", "localhost:8080"])
def test_host_of_this_machine_is_answered(host: str) -> None:
    assert status(headers={"host": host}) == 200
    assert status("POST", "/graphql", {"host": host, "origin": f"http://{host}", **JSON}) == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:3000",
        "localhost.evil.example",
        "localhost.",
        "evil.localhost",
        "127.0.0.1.evil.example",
        "10.0.0.1:3000",
        "0.0.0.0:3000",
        "2130706433",
        "0x7f.1",
        "[::]",
        "[fe80::1]:3000",
        "localhost@evil.example",
        "localhost,evil.example",
        "localhost:99999",
        "",
    ],
)
def test_foreign_host_is_refused(host: str) -> None:
    for method in METHODS:
        assert status(method, headers={"host": host}) in (400, 403)


def test_address_that_the_client_reached_is_answered() -> None:
    for host, expected in (("192.168.1.5:3000", 200), ("192.168.1.6:3000", 403)):
        assert status(headers={"host": host}, listens="192.168.1.5") == expected


@pytest.mark.parametrize(
    "origin",
    [
        EVIL,
        "null",
        "http://localhost:3000",
        "http://127.0.0.1",
        "http://127.0.0.1:3001",
        "https://127.0.0.1",
        "http://127.0.0.1:3000.evil.example",
        "http://127.0.0.1:3000@evil.example",
        "file://",
        "",
    ],
)
def test_foreign_origin_is_refused(origin: str) -> None:
    for method, path in REQUESTS:
        begun = call(method, path, {"origin": origin, **JSON})[0]
        assert begun["status"] == 403
        assert not [name for name, _ in begun["headers"] if name.startswith(b"access-control")]


def test_foreign_pages_get_no_websocket() -> None:
    def kinds(**headers: str) -> list[str]:
        return [message["type"] for message in call(path="/graphql", headers=headers, kind="websocket")]

    assert kinds(origin=f"http://{HOST}") == ["reached"]
    assert kinds() == ["reached"]  # no browser
    for headers in ({"origin": EVIL}, {"host": "evil.example"}, {"origin": "null"}):
        assert kinds(**headers) == ["websocket.close"]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("application/json", 200),
        ("Application/JSON; charset=utf-8", 200),
        ("application/graphql", 200),
        ("text/plain", 415),
        ("text/plain; application/json", 415),
        ("application/x-www-form-urlencoded", 415),
        ("multipart/form-data; boundary=application/json", 415),
        (None, 415),
    ],
)
def test_post_has_a_body_that_pages_cannot_send_elsewhere(kind: str | None, expected: int) -> None:
    headers = {"content-type": kind} if kind else {}
    assert status("POST", "/graphql", headers, query="query=mutation{x}") == expected


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("{version}", 200),
        ("query a { version } fragment f on Query { version }", 200),
        ("not graphql {{", 200),
        ("mutation{setNuxSeen}", 405),
        ("  # x\n mutation M { setNuxSeen }", 405),
        ("query a { version } mutation b { setNuxSeen }", 405),
        ("subscription { x }", 405),
    ],
)
def test_only_queries_are_answered_by_get(query: str, expected: int) -> None:
    for path in ("/graphql", "/prefix/graphql", "/graphql/"):
        assert status("GET", path, query=urlencode({"query": query})) == expected
    last = urlencode([("query", "{version}"), ("query", query)])
    assert status("GET", "/graphql", query=last) == expected


def test_pages_of_other_sites_cannot_read_but_link() -> None:
    assert status("GET", "/runs", {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}) == 200
    assert status("GET", "/graphql", {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}) == 403
    assert status("POST", "/x", {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}) == 403


def test_names_that_a_user_adds_are_answered() -> None:
    hosts = ("market.example", "other.example:8443")
    for host, expected in (
        ("Market.example", 200),
        ("market.example:9000", 200),
        ("other.example:8443", 200),
        ("other.example", 403),
    ):
        assert status(headers={"host": host}, hosts=hosts) == expected
    # A proxy that ends TLS, with and without the name handed on.
    for host in ("market.example", HOST):
        headers = {"host": host, "origin": "https://market.example", **JSON}
        assert status("POST", "/graphql", headers, hosts=hosts) == 200
    assert status("POST", "/graphql", {"host": "market.example", "origin": EVIL, **JSON}, hosts=hosts) == 403


@pytest.fixture
def unguarded() -> Iterator[None]:
    build = DagsterWebserver.build_middleware
    yield
    DagsterWebserver.build_middleware = build  # type: ignore[method-assign]


def test_every_web_server_of_a_home_is_guarded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unguarded: None
) -> None:
    monkeypatch.setenv("MARKET_DATA_UI_HOSTS", "market.example, other.example")
    storage = KeptConnectionEventLogStorage(str(tmp_path))
    for _ in range(2):
        storage.optimize_for_webserver(statement_timeout=1, pool_recycle=1, max_overflow=1)
    build: Any = DagsterWebserver.build_middleware
    first, *others = build(object())
    assert (first.cls, first.kwargs) == (Guard, {"hosts": ["market.example", "other.example"]})
    assert Guard not in [other.cls for other in others]


# --- one UI, one address -----------------------------------------------------------------------------------------

_CLAIM = """
import sys
from pathlib import Path
from market_data_pipeline.defs.platform.listening import claim_ui
claim_ui(Path(sys.argv[1]), "127.0.0.1", 3000)
print("claimed", flush=True)
input()
"""


def test_second_ui_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    home, link = tmp_path / "data" / "dagster", tmp_path / "link"
    home.mkdir(parents=True)
    link.symlink_to(tmp_path / "data")
    command = [sys.executable, "-c", _CLAIM, str(home)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "claimed\n"
        for folder in (home, link / "dagster"):
            with pytest.raises(UiRunsError, match=rf"process {first.pid} at http://127\.0\.0\.1:3000"):
                claim_ui(folder, "127.0.0.1", 3001)
        first.kill()
    again = [sys.executable, "-c", _CLAIM, str(home)]
    assert subprocess.run(again, input="\n", capture_output=True, text=True, check=True).stdout == "claimed\n"


def test_port_in_use_and_foreign_address_are_named() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"Port {port} of 127.0.0.1 is in use"):
            check_address("127.0.0.1", port)
    check_address("127.0.0.1", port)
    for host in ("203.0.113.7", "not a host"):
        with pytest.raises(UsageError, match="is not an address of this machine"):
            check_address(host, 3000)


def test_loopback_is_known() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "localhost", "::1", "127.9.9.9")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.1.5", "market.example")))


def test_ui_prints_its_address_and_exposure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    from market_data_pipeline.cli import main

    before = dict(os.environ)
    started: list[list[str]] = []
    monkeypatch.setattr(home, "end_all_with_this_process", lambda: None)
    monkeypatch.setattr(runpy, "run_module", lambda name, **_: started.append([name, *sys.argv[1:]]))
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setenv("MARKET_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("MARKET_DATA_UNIVERSE", str(tmp_path / "universe.yaml"))
    (tmp_path / "universe.yaml").write_text("collect: []\n")
    try:
        options = ["--host", "0.0.0.0", "--port", "18869", "--allow-host", "market.example"]
        result = CliRunner().invoke(main, ["ui", *options])
        assert os.environ["MARKET_DATA_UI_HOSTS"] == "market.example,0.0.0.0"
    finally:
        os.environ.clear()
        os.environ.update(before)
    assert result.exit_code == 0, result.output
    assert "anybody who reaches port 18869" in result.stderr
    module = "market_data_pipeline.definitions"
    assert started == [["dagster", "dev", "-m", module, "-h", "0.0.0.0", "-p", "18869"]]
