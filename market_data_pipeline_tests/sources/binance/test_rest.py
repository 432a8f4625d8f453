"""REST: pages, closed candles, the budget that all processes share, and answers that are not what was asked for."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from datetime import date
from functools import partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest

from market_data_pipeline import clock
from market_data_pipeline.errors import (
    AbsentError,
    HostOffError,
    MalformedError,
    NetworkError,
    RefusedError,
    RestAnswerError,
    SourceError,
)
from market_data_pipeline.model.datasets import MARKETS
from market_data_pipeline.model.series import Market, SeriesKey
from market_data_pipeline.model.waits import Wait
from market_data_pipeline.sandbox import MissingRows, OtherBody, RawAnswer, Status
from market_data_pipeline.sources.binance.rest import RestApi
from market_data_pipeline.sources.binance.zip_reader import table_from_rest
from market_data_pipeline.sources.http import Host, Response, retry_after_seconds
from market_data_pipeline.sources.rate_limit import WeightBudget
from market_data_pipeline_tests.support.world import World, agg_trades, days, klines, utc

DAY = date(2026, 3, 3)
START = clock.day_start_us(DAY)
END = START + clock.US_PER_DAY


@pytest.fixture
def rest(world: World) -> Iterator[dict[Market, RestApi]]:
    apis = {market: RestApi(market, world.settings) for market in Market if MARKETS[market].has_rest}
    yield apis
    for api in apis.values():
        api.close()


@pytest.mark.parametrize(
    ("key", "pages"),
    [(klines("BTCUSDT", "1m"), 2), (klines("BTCUSDT", "1m", "um"), 3), (klines("BTCUSD_PERP", "1m", "cm"), 3),
     (klines("BTCUSDT", "1h"), 1)],
    ids=str,
)  # fmt: skip
def test_a_day_of_candles_takes_as_few_pages_as_it_can(
    world: World, rest: dict[Market, RestApi], key: SeriesKey, pages: int
) -> None:
    found = rest[key.market].klines(key, START, END)
    assert found.table.num_rows == 86_400_000_000 // (60_000_000 if key.interval == "1m" else 3_600_000_000)
    assert len(world.asked("klines")) == pages


def test_the_servers_clock_decides_which_candles_are_closed(world: World, rest: dict[Market, RestApi]) -> None:
    world.sandbox.set_time(utc("2026-03-05T12:03:00"))  # our own clock is two and a half minutes behind
    today = clock.day_start_us(date(2026, 3, 5))
    found = rest[Market.SPOT].klines(klines("BTCUSDT", "1m"), today, today + clock.US_PER_DAY)
    assert found.table.num_rows == 12 * 60 + 3


@pytest.mark.parametrize(
    "server", ["2026-03-05T12:06:00", "2026-03-05T11:54:00", "2026-03-07T12:00:00", "1970-01-02T00:00"]
)
def test_a_servers_clock_far_from_ours_is_not_believed(world: World, server: str) -> None:
    """Which candles are closed is not known then: nothing is stored, and the words name both clocks."""
    world.sandbox.set_time(utc(server))
    result = world.one(klines("BTCUSDT", "1m"), "2026-03-05")
    assert result.row.failure == "rest_answer"
    assert "They differ by" in str(result.row.reason)
    assert "2026-03-05 12:00:30" in str(result.row.reason)
    assert not world.layout.file(result.key, result.day).exists()


def test_trades_of_a_quiet_hour_are_passed_over(world: World, rest: dict[Market, RestApi]) -> None:
    world.sandbox.faults.add(
        MissingRows(start=utc("2026-03-03T00:00"), end=utc("2026-03-03T02:30"), series="aggTrades", where="rest")
    )
    found = rest[Market.SPOT].agg_trades(agg_trades("BTCUSDT"), START, END)
    assert found.table.column("transact_time")[0].as_py() >= utc("2026-03-03T02:30").replace(tzinfo=None)
    assert not found.cut


def test_answer_with_another_start_than_requested_is_refused(world: World, rest: dict[Market, RestApi]) -> None:
    api, key = rest[Market.SPOT], agg_trades("BTCUSDT")
    whole = api.agg_trades(key, START, END).table
    first = whole.column("agg_trade_id")[0].as_py()
    gap = utc("2026-03-03T06:00")
    world.sandbox.faults.add(MissingRows(start=gap, end=utc("2026-03-03T06:30"), series="aggTrades", where="rest"))
    times = [t.as_py() for t in whole.column("transact_time")]
    lost = first + next(n for n, at in enumerate(times) if at >= gap.replace(tzinfo=None))
    with pytest.raises(RestAnswerError, match=rf"Id {lost} was requested"):
        api.agg_trades(key, START, END, from_id=lost)


def test_a_symbol_that_rest_does_not_know_is_absent(rest: dict[Market, RestApi]) -> None:
    with pytest.raises(AbsentError, match="does not know the symbol"):
        rest[Market.SPOT].klines(klines("NOSUCHUSDT", "1h"), START, END)


@pytest.mark.parametrize(
    ("code", "kind"), [(-1121, RefusedError), (-1128, RefusedError), (-4088, RefusedError), (-1001, NetworkError)]
)
def test_refusal_is_permanent_unless_the_server_is_at_fault(
    rest: dict[Market, RestApi], monkeypatch: pytest.MonkeyPatch, code: int, kind: type[SourceError]
) -> None:
    body = f'{{"code": {code}, "msg": "why"}}'.encode()
    monkeypatch.setattr(Host, "get", lambda *_: Response("url", 400, {}, body))
    with pytest.raises(kind) as told:
        rest[Market.SPOT].first_candle_day(klines("BTCUSDT", "1h"))
    assert told.type is kind


def test_first_candle_gives_the_listing_day(rest: dict[Market, RestApi]) -> None:
    assert rest[Market.SPOT].first_candle_day(klines("SOLUSDT", "1m")) == date(2020, 8, 11)


def test_unexpected_answer_is_reported(rest: dict[Market, RestApi], world: World) -> None:
    world.sandbox.faults.add(Status(path="/api/v3/time", status=200))
    with pytest.raises(RestAnswerError, match="answered no server time"):
        rest[Market.SPOT].klines(klines("BTCUSDT", "1h"), START, END)


def test_lasting_error_is_reported_with_its_url(rest: dict[Market, RestApi], world: World) -> None:
    world.sandbox.faults.add(Status(path="/api/v3/klines", status=503))
    with pytest.raises(NetworkError, match=r"/api/v3/klines.* answered 503"):
        rest[Market.SPOT].klines(klines("BTCUSDT", "1h"), START, END)


def test_no_thread_sends_while_the_host_wants_a_pause(
    world: World, rest: dict[Market, RestApi], monkeypatch: pytest.MonkeyPatch
) -> None:
    pausing, sleep = threading.Event(), Wait.sleep

    def slept(*args: Any) -> None:
        pausing.set()
        sleep(*args)

    monkeypatch.setattr(Wait, "sleep", slept)
    world.sandbox.faults.add(Status(path="/api/v3/klines", status=429, retry_after=1, times=1))
    ask = partial(rest[Market.SPOT].klines, klines("BTCUSDT", "1h"), START, END)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(ask)
        assert pausing.wait(120)
        second = pool.submit(ask)
        assert first.result().table.num_rows == second.result().table.num_rows == 24
    refused, *later = [r for r in world.sandbox.requests if r.path.endswith("/klines")]
    assert refused.status == 429
    assert [(r.at - refused.at).total_seconds() >= 0.9 for r in later] == [True, True]


def test_threads_waiting_for_weight_send_nothing_after_a_ban(
    world: World, rest: dict[Market, RestApi], monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = partial(rest[Market.SPOT].klines, klines("BTCUSDT", "1h"), START, END)
    ask()
    world.forget()
    world.sandbox.faults.add(Status(path="/api/v3/klines", status=418, retry_after=120))
    real, calls = WeightBudget.acquire, count()
    all_here, banned = threading.Barrier(8), threading.Event()

    def acquire(budget: WeightBudget, *args: Any) -> None:
        real(budget, *args)
        all_here.wait(120)
        if next(calls) > 0:
            assert banned.wait(120)

    monkeypatch.setattr(WeightBudget, "acquire", acquire)
    with ThreadPoolExecutor(12) as pool:  # four more than may ask at a time
        asked = [pool.submit(ask) for _ in range(12)]
        assert wait(asked, 120, FIRST_COMPLETED).done
        banned.set()
        assert all(isinstance(one.exception(120), HostOffError) for one in asked)
    assert len(world.asked()) == 1


def test_thread_in_a_pause_sends_nothing_after_a_ban(
    world: World, rest: dict[Market, RestApi], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process was banned meanwhile."""
    api = rest[Market.SPOT]
    elsewhere, sleep = (
        WeightBudget(urlsplit(world.settings.spot_url).netloc, 6000, 0.5, world.root / "budget"),
        Wait.sleep,
    )

    def slept(*args: Any) -> None:
        elsewhere.ban(120)
        sleep(*args)

    monkeypatch.setattr(Wait, "sleep", slept)
    world.sandbox.faults.add(Status(path="/api/v3/klines", status=429, retry_after=60, times=1))
    started = time.monotonic()
    with pytest.raises(HostOffError, match="banned this address until"):
        api.klines(klines("BTCUSDT", "1h"), START, END)
    assert time.monotonic() - started < 55, "nobody waits for the end of a pause that leads nowhere"
    assert len(world.asked("klines")) == 1
    elsewhere.close()


def test_new_fields_are_ignored_and_missing_fields_are_named() -> None:
    row = {"a": 1, "p": "2.5", "q": "3", "f": 4, "l": 5, "T": 1_700_000_000_000, "m": True, "nq": "3"}
    table = table_from_rest([row], agg_trades("BTCUSDT", "um"), 1000)
    assert table.column("price").to_pylist() == [2.5]
    with pytest.raises(MalformedError, match="'M'"):
        table_from_rest([row], agg_trades("BTCUSDT"), 1000)


# --- answers that are not what was asked for --------------------------------------------------------------------------

H = 3_600_000_000


def candle(at: object = START, open_: object = "1.5", count: object = 5) -> list[object]:
    close = at + H - 1 if isinstance(at, int) else START + H - 1
    return [at, open_, "2", "1", "1.5", "10", close, "15", count, "4", "6", "0"]


@pytest.mark.parametrize(
    "body",
    [
        "",
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"rows": []}',
        "null",
        json.dumps([candle()])[:-9],
        json.dumps([candle(open_=float("nan"))]),
        json.dumps([candle(open_=float("inf"))]),
        json.dumps([candle(open_="nan")]),
        json.dumps([candle(open_="-inf")]),
        json.dumps([candle(open_="1_000")]),
        json.dumps([candle(open_="\u0661")]),
        json.dumps([candle(open_="1\0")]),
        json.dumps([candle(open_=1.5)]),
        json.dumps([candle(open_=None)]),
        json.dumps([candle(open_=["1"])]),
        json.dumps([candle(count=True)]),
        json.dumps([candle(count=1.5)]),
        json.dumps([candle(count=10**30)]),
        json.dumps([candle(at=10**400)]),
        json.dumps([candle(at=9 * 10**18)]),
        json.dumps([candle(at=str(START))]),
        json.dumps([candle(at=-START)]),
        json.dumps([candle()]).replace(str(START), "1e400"),
        json.dumps([candle()]).replace(str(START), "1" * 5000),
        json.dumps([candle()[:8]]),
        json.dumps([candle(), candle(START + H)[:3]]),
        json.dumps(["0123456789ab"]),
        json.dumps([dict.fromkeys(map(str, range(12)), 1)]),
        json.dumps([candle(START - H)]),
        json.dumps([candle(END)]),
        json.dumps([candle(START + H), candle(START)]),
        json.dumps([candle(), candle()]),
        json.dumps([candle(START + n) for n in range(25)]),
        f"[{'{},' * 200_000}0]",
    ],
    ids=range(35),
)
def test_rows_outside_the_request_are_a_failure(world: World, rest: dict[Market, RestApi], body: str) -> None:
    world.sandbox.faults.add(OtherBody(path="/klines$", body=body, media_type="application/json"))
    with pytest.raises(RestAnswerError) as told:
        rest[Market.SPOT].klines(klines("BTCUSDT", "1h"), START, END)
    assert len(str(told.value)) < 1000
    assert str(told.value).isprintable()
    assert len(world.asked("klines")) == 1


def trade(number: object = 7, at: int = START) -> str:
    return f'{{"a": {number}, "p": "1", "q": "1", "f": 1, "l": 1, "T": {at}, "m": true, "M": true}}'


@pytest.mark.parametrize(
    "rows",
    [
        [trade().replace('"q"', '"p"')],
        [trade(7), trade(6)],
        [trade(7), trade(7)],
        [trade(at=END)],
        [trade(at=START - 1000)],
        [trade('"7"')],
        ["[7]"],
    ],
    ids=["duplicate name", "disorder", "id twice", "later", "earlier", "id as text", "list"],
)
def test_trades_outside_the_request_are_a_failure(world: World, rest: dict[Market, RestApi], rows: list[str]) -> None:
    body = f"[{', '.join(rows)}]"
    world.sandbox.faults.add(OtherBody(path="/aggTrades$", body=body, media_type="application/json"))
    with pytest.raises(RestAnswerError):
        rest[Market.SPOT].agg_trades(agg_trades("BTCUSDT"), START, END)
    assert len(world.asked("aggTrades")) == 1


def test_trades_with_lower_ids_do_not_mean_that_ids_are_missing(world: World, rest: dict[Market, RestApi]) -> None:
    world.sandbox.faults.add(OtherBody(path="/aggTrades$", body=f"[{trade(6)}]", media_type="application/json"))
    with pytest.raises(RestAnswerError, match=r"from id 6 on\. Id 7 was requested"):
        rest[Market.SPOT].agg_trades_of_ids(agg_trades("BTCUSDT"), 7, 9)


def test_a_login_page_is_no_answer_of_rest(world: World, rest: dict[Market, RestApi]) -> None:
    world.sandbox.faults.add(OtherBody())
    with pytest.raises(NetworkError, match="titled 'Hotel WiFi'"):
        rest[Market.SPOT].klines(klines("BTCUSDT", "1h"), START, END)


def test_an_odd_answer_of_rest_fails_its_day_and_no_other(world: World) -> None:
    world.sandbox.faults.add(OtherBody(path="/klines$", body="[" * 100_000, media_type="application/json"))
    results = world.ingest(klines("BTCUSDT", "1h"), days("2026-03-03", "2026-03-05"))
    assert [r.row.failure for r in results] == [None, None, "rest_answer"]
    assert "nested too deeply" in (results[-1].row.reason or "")


@pytest.mark.parametrize("used", ["", "many", "-5", "1e3", "\u0661", "99999999999999999999", "nan", "5, 6"])
def test_an_odd_count_of_weight_is_passed_over(world: World, rest: dict[Market, RestApi], used: str) -> None:
    rest[Market.SPOT].klines(klines("BTCUSDT", "1h"), START, END)
    raw = f"HTTP/1.1 200 OK\r\nX-MBX-USED-WEIGHT-1M: {used}\r\nContent-Length: 2\r\n\r\n[]"
    world.sandbox.faults.add(RawAnswer(path="/klines$", begin=raw.encode().decode("latin-1"), hang_up=True))
    assert rest[Market.SPOT].klines(klines("BTCUSDT", "1h"), START, END).table.num_rows == 0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7", 7.0), ("0", 0.0), ("1.5", 1.5), ("Thu, 05 Mar 2026 12:01:30 GMT", 60.0),
        ("Thu, 05 Mar 2020 12:00:00 GMT", 0.0),
        ("", None), ("nan", None), ("inf", None), ("-1", None), ("1e308", None), ("soon", None),
        ("Thu, 99 Mar 2026 12:00:00 GMT", None), ("9" * 400, None),
    ],
)  # fmt: skip
def test_a_pause_is_a_number_that_can_be_waited_for(world: World, text: str, seconds: float | None) -> None:
    assert retry_after_seconds(Response("url", 429, {"Retry-After": text}, b"")) == seconds


# --- the budget ---------------------------------------------------------------------------------------------------

SPEND = """
import sys
from pathlib import Path
from market_data_pipeline.sources.rate_limit import WeightBudget
budget = WeightBudget("example.org", 100, 0.5, Path(sys.argv[1]))
for _ in range(5):
    budget.acquire(10)
    print("granted", flush=True)
"""


@pytest.mark.slow
def test_two_processes_share_one_budget(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SPEND, str(tmp_path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    granted, enough = list[str](), threading.Event()

    def read(process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            granted.append(line)
            if len(granted) == 5:
                enough.set()

    readers = [threading.Thread(target=read, args=(process,)) for process in processes]
    for reader in readers:
        reader.start()
    try:
        assert enough.wait(120)
        third = WeightBudget("example.org", 100, 0.5, tmp_path)
        waited = threading.Event()

        def acquire() -> None:
            third.acquire(10)
            waited.set()

        threading.Thread(target=acquire, daemon=True).start()
        assert not waited.wait(1.0)
        assert len(granted) == 5
    finally:
        for process in processes:
            process.kill()
            process.wait()
        for reader in readers:
            reader.join(120)
        for process in processes:
            assert process.stdout is not None
            process.stdout.close()


def granted(budget: WeightBudget, weight: int) -> bool:
    """Whether a budget has weight left now."""

    def refuse() -> None:
        if next(looks) > 0:
            raise HostOffError("it would have to wait")

    looks = count()
    try:
        budget.acquire(weight, refuse)
    except HostOffError:
        return False
    return True


def test_processes_with_different_shares_take_from_one_budget(tmp_path: Path) -> None:
    half, most = (WeightBudget("example.org", 100, share, tmp_path) for share in (0.5, 0.9))
    assert granted(most, 40)
    assert granted(half, 10)
    assert not granted(half, 1), "half of the limit is used up, whoever used it"
    assert granted(most, 40)
    assert not granted(most, 1)
    assert not granted(half, 1)
    half.close()
    most.close()


def test_weight_used_behind_the_same_address_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    budget = WeightBudget("example.org", 100, 0.5, tmp_path)
    now, slept = [60_000_000.0 * 60 + 12.0], list[float]()

    def sleep(_: Wait, seconds: float, reason: str, left: float) -> None:
        assert "this address used 90 of the 100 weight per minute" in reason
        assert seconds <= left
        slept.append(seconds)
        now[0] += seconds

    monkeypatch.setattr("market_data_pipeline.sources.rate_limit.time", SimpleNamespace(time=lambda: now[0]))
    monkeypatch.setattr(Wait, "sleep", sleep)
    budget.observe(90)
    budget.acquire(10)
    budget.close()
    assert sum(slept) == pytest.approx(48.0)


def test_thread_waiting_for_weight_goes_as_soon_as_possible(tmp_path: Path) -> None:
    """Nothing is left to wait for."""
    budget, looks = WeightBudget("example.org", 100, 0.5, tmp_path), count()

    def refuse() -> None:
        if next(looks) > 1:
            raise HostOffError("banned")

    budget.acquire(50)
    started = time.monotonic()
    with pytest.raises(HostOffError):
        budget.acquire(10, refuse)
    assert time.monotonic() - started < 45
    budget.close()
