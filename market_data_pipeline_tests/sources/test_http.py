"""HTTP: whatever a host answers, it costs bounded time and memory, fails in words, and holds up nothing else."""

from __future__ import annotations

import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from market_data_pipeline.errors import NetworkError
from market_data_pipeline.sandbox import CutBody, OtherBody, RawAnswer, Status
from market_data_pipeline.settings import Settings
from market_data_pipeline.sources.http import Host, ResponseKind
from market_data_pipeline_tests.support.world import World, days, klines

SMALL = ResponseKind("a small thing", 4096)
BIG = ResponseKind("a big thing", 64 << 20, big=True)
HEAD = "HTTP/1.1 200 OK\r\n"
BTC = klines("BTCUSDT", "1h")


@pytest.fixture
def host(world: World) -> Iterator[Host]:
    """The sandbox, which has all the time it needs, and two retries."""
    world.set(retries=2)
    host = Host(world.sandbox.url, world.settings)
    yield host
    host.close()


@pytest.fixture
def hasty(world: World) -> Iterator[Host]:
    """The sandbox, which has half a second for an answer: for answers that do not come."""
    world.set(timeout_seconds=0.5, retries=2)
    host = Host(world.sandbox.url, world.settings)
    yield host
    host.close()


def failure(host: Host, kind: ResponseKind = SMALL, path: str = "odd") -> str:
    with pytest.raises(NetworkError) as told:
        host.get(path, kind)
    return str(told.value)


# --- time -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [SMALL, BIG], ids=["small", "big"])
@pytest.mark.parametrize(
    "fault",
    [
        RawAnswer(begin=""),
        RawAnswer(begin="", then="H", pause=0.05),
        RawAnswer(begin=HEAD, then="X-A: b\r\n", pause=0.05),
        RawAnswer(begin=HEAD + "X-A: ", then="b", pause=0.05),
        RawAnswer(begin="", then="HTTP/1.1 100 Continue\r\n\r\n", pause=0.05),
        RawAnswer(begin=HEAD + "Content-Length: 4000\r\n\r\n", then="b", pause=0.05),
        RawAnswer(begin=HEAD + "Content-Length: 4000\r\n\r\n"),
        RawAnswer(begin=HEAD + "\r\n", then="b", pause=0.05),
        RawAnswer(begin=HEAD + "Transfer-Encoding: chunked\r\n\r\n", then="1\r\nb\r\n", pause=0.05),
        RawAnswer(begin=HEAD + "Transfer-Encoding: chunked\r\n\r\n0\r\n", then="X-A: b\r\n", pause=0.05),
        RawAnswer(begin="HTTP/1.1 404 Not Found\r\nContent-Length: 4000\r\n\r\n", then="b", pause=0.05),
    ],
    ids=[
        "silence", "status line", "headers", "one header", "1xx", "body", "silent body", "body without length",
        "chunks", "trailers", "body of a 404",
    ],
)  # fmt: skip
def test_an_answer_that_drips_ends_in_two_timeouts(
    world: World, hasty: Host, fault: RawAnswer, kind: ResponseKind
) -> None:
    world.sandbox.faults.add(fault)
    began = time.monotonic()
    text = failure(hasty, kind)
    assert time.monotonic() - began >= 0.5
    assert "TIMEOUT_SECONDS" in text or "more than" in text
    assert len(world.sandbox.requests) <= 2, "an attempt that took all its time is tried again once at most"


def test_a_big_body_may_take_longer_than_the_timeout(world: World) -> None:
    world.set(timeout_seconds=2, retries=0)
    piece = "b" * 50_000  # as many bytes as buy three seconds
    length = 12 * len(piece)
    fault = RawAnswer(begin=f"{HEAD}Content-Length: {length}\r\n\r\n", then=piece, pause=0.2)
    world.sandbox.faults.add(fault)
    assert len(Host(world.sandbox.url, world.settings).get("big", BIG).body) == length
    assert "stalled" in failure(Host(world.sandbox.url, world.settings), ResponseKind("a small thing", BIG.most_bytes))


def test_waiting_for_memory_does_not_count_as_the_hosts_time(world: World) -> None:
    world.set(timeout_seconds=2, retries=0)
    host = Host(world.sandbox.url, world.settings)
    length = 10 << 20
    world.sandbox.faults.add(RawAnswer(begin=f"{HEAD}Content-Length: {length}\r\n\r\n", then="b" * (1 << 20)))
    admitted: list[int] = []

    def admit(size: int) -> None:
        if not admitted:
            threading.Event().wait(2.5)  # longer than the timeout
        admitted.append(size)

    assert len(host.get("big", BIG, admit=admit).body) == length
    assert admitted == [length, length]


def test_host_with_a_long_pause_is_not_waited_for(world: World, host: Host) -> None:
    host.retried = (429, 503)
    world.sandbox.faults.add(Status(status=503, retry_after=3600))
    assert host.get("busy", SMALL).status == 503
    assert len(world.sandbox.requests) == 1


# --- size -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "begin",
    [
        HEAD + "\r\n",
        HEAD + "Content-Length: -1\r\n\r\n",
        HEAD + "Content-Length: many\r\n\r\n",
        HEAD + "Content-Length: 99999999999\r\n\r\n",
        HEAD + "Transfer-Encoding: chunked\r\n\r\n-1\r\n",
        HEAD + "Transfer-Encoding: chunked\r\n\r\nFFFFFFFFF\r\n",
    ],
    ids=["no length", "negative length", "odd length", "huge length", "negative chunk", "huge chunk"],
)
def test_a_body_without_end_is_refused_at_the_size_of_its_kind(world: World, host: Host, begin: str) -> None:
    world.sandbox.faults.add(RawAnswer(begin=begin, then="b" * (1 << 16)))
    tracemalloc.start()
    try:
        assert "answered more than the maximum of 4,096 bytes for a small thing" in failure(host)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 64 << 20  # what the sandbox is about to send counts, too
    assert len(world.sandbox.requests) == 1


@pytest.mark.parametrize(
    "answer",
    [
        "Content-Length: 50\r\n\r\nshort",
        "Transfer-Encoding: chunked\r\n\r\n50\r\nshort",
        "Transfer-Encoding: chunked\r\n\r\nzz\r\nshort",
    ],
    ids=["too long", "cut chunk", "odd chunk"],
)
def test_a_body_that_is_not_as_long_as_stated_is_cut(world: World, host: Host, answer: str) -> None:
    world.sandbox.faults.add(RawAnswer(begin=HEAD + answer, hang_up=True))
    assert "the body was cut short, or does not match its stated length (tried 3 times)" in failure(host)


def test_lengths_that_contradict_each_other_are_refused(world: World, host: Host) -> None:
    world.sandbox.faults.add(RawAnswer(begin=HEAD + "Content-Length: 5, 6\r\n\r\nshort", hang_up=True))
    assert "is not valid HTTP" in failure(host)


def test_headers_without_end_are_refused(world: World, host: Host) -> None:
    world.sandbox.faults.add(RawAnswer(begin=HEAD, then="X-A: b\r\n" * 100))
    assert "is not valid HTTP" in failure(host) or "before the response was complete" in failure(host)


def test_memory_is_reserved_for_bytes_that_came(world: World, host: Host) -> None:
    world.sandbox.faults.add(RawAnswer(begin=HEAD + "Content-Length: 60000000\r\n\r\nfew", hang_up=True))
    reserved: list[int] = []
    with pytest.raises(NetworkError):
        host.get("claims", BIG, admit=reserved.append)
    assert reserved == []


def test_an_encoded_body_is_refused_unread(world: World, host: Host) -> None:
    fault = OtherBody(body="\x1f\x8b", headers={"Content-Encoding": "gzip"}, media_type="text/plain")
    world.sandbox.faults.add(fault)
    assert "Content-Encoding gzip, which we did not accept" in failure(host)


def test_rest_of_an_answer_is_not_taken_for_the_next(world: World, host: Host) -> None:
    after = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged"
    world.sandbox.faults.add(RawAnswer(begin=f"{HEAD}Content-Length: 2\r\n\r\nok{after}", hang_up=False))
    assert host.get("first", SMALL).body == b"ok"
    world.sandbox.faults.clear()
    world.sandbox.faults.add(OtherBody(body="honest", media_type="text/plain"))
    assert host.get("second", SMALL).body == b"honest"
    world.sandbox.faults.clear()
    world.sandbox.faults.add(RawAnswer(begin=f"HTTP/1.1 103 Early Hints\r\n\r\n{after}", hang_up=False))
    assert host.get("third", SMALL).status == 103
    world.sandbox.faults.clear()
    assert host.get("fourth", SMALL).status == 404


# --- redirects --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("to", "said"),
    [
        ("https://login.example/hotel", "redirects to https://login.example/hotel, another host or scheme"),
        ("//login.example/hotel", "another host or scheme"),
        ("http://127.0.0.1:1/other-port", "another host or scheme"),
        ("http://user@{host}/", "another host or scheme"),
        ("https://{host}/", "another host or scheme"),
        ("file:///etc/passwd", "redirects to file:///etc/passwd"),
        ("http://[::1", "another host or scheme"),
        ("", "without a target"),
    ],
    ids=["host", "host without scheme", "port", "user", "scheme", "file", "no address", "none"],
)
def test_a_redirect_elsewhere_is_an_error_that_names_it(world: World, host: Host, to: str, said: str) -> None:
    location = to.format(host=host.name)
    world.sandbox.faults.add(OtherBody(status=302, headers={"Location": location} if to else {}))
    assert said in failure(host)
    assert len(world.sandbox.requests) == 1


def test_a_redirect_within_the_host_is_followed(world: World, host: Host) -> None:
    world.sandbox.faults.add(OtherBody(path="^/old", status=301, headers={"Location": "/api/v3/time?a=b c"}))
    assert host.get("old", SMALL).status == 200
    assert world.asked() == ["/old", "/api/v3/time"]


def test_redirects_in_a_circle_end(world: World, host: Host) -> None:
    world.sandbox.faults.add(OtherBody(status=302, headers={"Location": "/round"}))
    assert "redirects too often" in failure(host)
    assert len(world.sandbox.requests) == 4


# --- other days -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        RawAnswer(path=r"2026-02-2[1-5]\.zip$", begin=""),
        RawAnswer(path=r"2026-02-2[1-5]\.zip$", begin=HEAD + "Content-Length: 4000\r\n\r\nPK", then="b", pause=0.05),
        RawAnswer(path=r"2026-02-2[1-5]\.zip$", begin=HEAD + "\r\nPK", then="b" * (1 << 16)),
        OtherBody(path=r"2026-02-2[1-5]\.zip$", status=302, headers={"Location": "https://login.example/"}),
        OtherBody(path=r"2026-02-2[1-5]\.zip$"),
        OtherBody(path=r"2026-02-2[1-5]\.zip\.CHECKSUM$"),
        OtherBody(path=r"2026-02-2[1-5]\.zip$", body='{"error": "quota"}', media_type="application/json"),
        OtherBody(path=r"2026-02-2[1-5]\.zip$", body=""),
        OtherBody(path=r"2026-02-2[1-5]\.zip$", status=204, body=""),
        OtherBody(path=r"2026-02-2[1-5]\.zip$", status=206),
        OtherBody(path=r"2026-02-2[1-5]\.zip$", status=403),
        CutBody(path=r"2026-02-2[1-5]\.zip$"),
    ],
    ids=[
        "silence", "drip", "endless", "redirect", "page", "page for a checksum", "JSON", "nothing", "204", "206",
        "forbidding page", "cut",
    ],
)  # fmt: skip
def test_one_bad_answer_delays_no_other_day(world: World, fault: RawAnswer | OtherBody | CutBody) -> None:
    """Five days in a row, more than a host may leave unanswered, and not one of another series."""
    stalls = isinstance(fault, RawAnswer) and len(fault.then) < 2
    world.set(timeout_seconds=3 if stalls else 60, retries=0 if stalls else 1)
    world.sandbox.faults.add(fault)
    results = world.ingest(BTC, days("2026-02-18", "2026-02-28"))
    bad = set(days("2026-02-21", "2026-02-25"))
    assert {r.day for r in results if r.row.failure} == bad
    assert {r.row.failure for r in results if r.row.failure} == {"network"}
    assert not list(world.root.glob("quarantine/**/*.zip"))
    world.sandbox.faults.clear()
    assert not [r for r in world.ingest(BTC, sorted(bad)) if r.row.failure]


def test_request_without_an_answer_leaves_the_host_reachable(world: World, host: Host) -> None:
    world.sandbox.faults.add(RawAnswer(path="/silent", begin="", hang_up=True))
    for number in range(5):
        assert "before the response was complete" in failure(host, path=f"silent/{number}")
    assert host.get("api/v3/time", SMALL).status == 200


def test_a_cut_body_without_a_length_is_no_damaged_archive(world: World) -> None:
    """Nothing but the checksum and the missing end of the zip show that it was cut."""
    world.set(retries=0)
    world.sandbox.faults.add(RawAnswer(path=r"\.zip$", begin=HEAD + "\r\nPK\x03\x04 and no more", hang_up=True))
    result = world.one(BTC, "2026-02-20")
    assert result.row.failure == "network"
    assert "was cut short" in (result.row.reason or "")


# --- proxies and certificates -----------------------------------------------------------------------------------------


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("no_proxies")
@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_loopback_never_uses_a_proxy(world: World, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for variable in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    port = world.sandbox.url.rsplit(":", 1)[1]
    assert Host(f"http://{name}:{port}", world.settings).get("api/v3/time", SMALL).status == 200


@pytest.mark.usefixtures("no_proxies")
@pytest.mark.parametrize(
    ("variable", "url"),
    [("HTTP_PROXY", "http://archive.example"), ("https_proxy", "https://archive.example"),
     ("ALL_PROXY", "https://archive.example")],
)  # fmt: skip
def test_a_proxy_that_fails_is_named_without_its_password(
    world: World, monkeypatch: pytest.MonkeyPatch, variable: str, url: str
) -> None:
    world.set(retries=0)
    monkeypatch.setenv(variable, "http://me:secret@127.0.0.1:9")
    text = failure(Host(url, world.settings))
    assert f"through the proxy 127.0.0.1:9 (from {variable})" in text
    assert "secret" not in text


@pytest.mark.usefixtures("no_proxies")
@pytest.mark.parametrize("proxy", ["http://", "http://proxy:port", "socks5://127.0.0.1:9"])
def test_a_proxy_that_cannot_be_is_named(world: World, monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    assert "HTTPS_PROXY" in failure(Host("https://archive.example", world.settings))


@pytest.mark.usefixtures("no_proxies")
def test_through_a_proxy_an_answer_has_the_same_bounds(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", world.sandbox.url)  # which does not look at the host that is asked for
    world.set(timeout_seconds=2, retries=0)
    host = Host("http://archive.example", world.settings)
    world.sandbox.faults.add(OtherBody(status=407))
    assert host.get("any", SMALL).summary.startswith("http://archive.example/any through the proxy 127.0.0.1")
    world.sandbox.faults.clear()
    world.sandbox.faults.add(RawAnswer(begin=HEAD + "\r\n", then="b", pause=0.05))
    assert "the body stalled" in failure(host)


@pytest.mark.usefixtures("no_proxies")
@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
@pytest.mark.parametrize("make", [lambda path: None, Path.touch, lambda path: path.write_bytes(b"\xff\xfe no PEM")])
def test_certificates_that_cannot_be_read_are_named(
    world: World, monkeypatch: pytest.MonkeyPatch, variable: str, make: Callable[[Path], object]
) -> None:
    path = world.root / "corporate.pem"
    make(path)
    monkeypatch.setenv(variable, str(path))
    text = failure(Host("https://127.0.0.1:1", world.settings))
    assert f"{variable} names {path}" in text
    assert "unset" in text


@contextmanager
def listening() -> Iterator[str]:
    """A port that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.usefixtures("no_proxies")
def test_a_handshake_that_does_not_come_ends(world: World) -> None:
    settings: Settings = world.settings.model_copy(update={"timeout_seconds": 1, "retries": 2})
    with listening() as name:
        assert name in failure(Host(f"https://{name}", settings))
