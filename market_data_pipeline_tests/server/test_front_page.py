"""The page for people: its files and headers, and in headless Chromium what a reader sees and does."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import uvicorn
from starlette.testclient import TestClient

import market_data_pipeline.server
from market_data_pipeline import clock
from market_data_pipeline.lake.feed_status import write_status
from market_data_pipeline.model.day import FAILED, DayRecord
from market_data_pipeline.model.findings import Finding, Severity, Verdict
from market_data_pipeline.server.app import build_app
from market_data_pipeline.settings import Settings, load_settings
from market_data_pipeline_tests.server.conftest import KEY, WITH_KEY
from market_data_pipeline_tests.support.browser import Page, chromium_path, opened_page
from market_data_pipeline_tests.support.live_server import HOURS, candle, live_server
from market_data_pipeline_tests.support.small_lake import SmallLake, days_from, series

STATIC = Path(market_data_pipeline.server.__file__).with_name("static")
WITH_CHROMIUM = pytest.mark.skipif(chromium_path() is None, reason="Chromium is not on the PATH")
READY = (
    "document.documentElement.dataset.loaded === 'yes' && document.querySelector('#chart').dataset.candles > 0"
    " && document.querySelector('#calendar').dataset.years > 0"
)
TODAY = datetime.now(UTC).date()
EVIDENCE = "<img src=x onerror=alert(1)>"

# --- files and headers ------------------------------------------------------------------------------------------------


def test_page_and_its_files_have_a_strict_policy(client: TestClient) -> None:
    for path in ("/", "/static/page.mjs", "/static/states.css", "/static/vendor/lightweight-charts.mjs"):
        answer = client.get(path)
        assert answer.status_code == 200
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self';" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        again = client.get(path, headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_have_only_scripts_and_styles_of_this_server(client: TestClient, path: str) -> None:
    text = client.get(path).text
    assert not re.search(r"<style|style=|\son\w+=|<script(?![^>]*src=)", text)
    addresses = re.findall(r'<(?:script|link|img)[^>]* (?:src|href)="([^"]+)"', text)
    assert addresses
    for address in addresses:
        assert address.startswith("/static/")
        assert client.get(address).status_code == 200


@pytest.mark.parametrize("name", ["nothing.mjs", "../page.py", "%2e%2e/page.py", "vendor/vendor.json", ""])
def test_no_other_file_is_served(client: TestClient, name: str) -> None:
    assert client.get(f"/static/{name}").status_code == 404


def test_page_needs_no_key_and_its_data_does(settings: Settings) -> None:
    app = build_app(settings, keys=[KEY], key_for_all=True)
    with TestClient(app, base_url="http://localhost") as client:
        assert client.get("/").status_code == 200
        assert client.get("/static/page.mjs").status_code == 200
        assert client.get("/api/v1/system/series").status_code == 401
        assert client.get("/api/v1/system/series", headers=WITH_KEY).status_code == 200


def test_scripts_of_others_are_the_recorded_files(client: TestClient) -> None:
    """Each has its version, licence and hash on record, and the page shows the notice that the licence demands."""
    page = " ".join(client.get("/").text.split())
    names = {"vendor.json"}
    for package in json.loads((STATIC / "vendor" / "vendor.json").read_text())["packages"]:
        assert package["version"]
        assert package["license"] == "Apache-2.0"
        names |= package["files"].keys()
        for name, recorded in package["files"].items():
            assert hashlib.sha256((STATIC / "vendor" / name).read_bytes()).hexdigest() == recorded["sha256"]
    assert {path.name for path in (STATIC / "vendor").iterdir()} == names
    assert 'href="https://www.tradingview.com/"' in page
    assert "Copyright © 2023 TradingView, Inc." in page


def test_data_health_names_the_open_gaps(client: TestClient, lake: SmallLake) -> None:
    key, [day] = series("BTCUSDT", "1h"), days_from("2024-02-10", 1)
    lake.note(key, DayRecord(day, FAILED, failure="checksum", reason="the checksum differs"))
    lake.put(key, days_from("2024-02-11", 1), findings=(unexplained(),))
    found = client.get("/api/v1/system/data-health").json()["series"]
    [hours] = [one for one in found if one["interval"] == "1h"]
    found = [(one["from"], one["state"]) for one in hours["open"]]
    assert found == [("2024-02-11", "incomplete"), ("2024-02-10", "failed")]
    assert EVIDENCE in hours["open"][0]["note"]
    assert hours["open_more"] == 0


def unexplained() -> Finding:
    return Finding(
        check="gaps",
        rule=Verdict.UNEXPLAINED,
        severity=Severity.WARN,
        count=3,
        message="3 rows are missing",
        evidence=EVIDENCE,
    )


# --- in Chromium ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> SmallLake:
    """A lake with a day of each kind, up to today, and a symbol that looks like HTML."""
    lake = SmallLake(tmp_path_factory.mktemp("page") / "data")
    key, days = series("BTCUSDT", "1h"), [TODAY - timedelta(days=n) for n in range(60, 0, -1)]
    lake.put(key, [day for day in days if day not in (days[-3], days[-5])])
    lake.put(key, days[-1:], final=False)
    lake.put(key, [days[-5]], findings=(unexplained(),))
    lake.put(series("<img>USDT", "1h"), days[-3:])
    lake.put(series("BTCUSDT"), days[-2:])
    lake.put(series("ETHUSDT", "1h", "um"), days[-9:-4])
    return lake


@pytest.fixture(scope="module")
def address(filled: SmallLake) -> Iterator[str]:
    """The address of a running server over it."""
    app = build_app(load_settings(dir=filled.root, universe=filled.root / "universe.yaml"))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])))
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        server.should_exit = True
        thread.join()


@pytest.fixture
def page(address: str, tmp_path: Path) -> Iterator[Page]:
    """The page at the width of a desktop. At the end, nothing failed in it, and no other host was asked."""
    with opened_page(tmp_path) as page:
        page.size(1280, 900)
        page.open(f"{address}#candles=spot/klines/BTCUSDT/1h")
        page.until(READY)
        yield page
        assert page.errors == []
        assert page.foreign_requests(address) == []
        assert any("/api/v1/market/candles/BTCUSDT" in one for one in page.requests)


def shown(page: Page, selector: str) -> str:
    text: str = page.value(f"document.querySelector({json.dumps(selector)}).innerText")
    return " ".join(text.split())


@WITH_CHROMIUM
@pytest.mark.slow
def test_page_shows_candles_and_tables(page: Page) -> None:
    drawn = page.value(
        "[...document.querySelectorAll('#chart canvas')].reduce((sum, one) => sum + new Set(new Uint32Array("
        "one.getContext('2d').getImageData(0, 0, one.width, one.height).data.buffer)).size, 0)"
    )
    assert drawn > 20
    assert shown(page, "#candles-title") == "BTCUSDT 1h"
    assert "provisional" in shown(page, "#readout")
    assert page.value("document.querySelectorAll('#series tbody tr').length") == 4
    rows = page.value("[...document.querySelectorAll('#series tbody tr')].map(one => one.innerText)")
    assert any("ETHUSDT 1h um" in one and "behind 4 d" in one for one in rows)
    assert any("BTCUSDT 1h spot" in one and "current" in one for one in rows)
    assert "lake" in shown(page, "#sources")
    assert shown(page, "#tile-rate") == "100 %"
    assert shown(page, "#tile-series") == "4"


@WITH_CHROMIUM
@pytest.mark.slow
def test_missing_rows_and_calendar_are_named(page: Page) -> None:
    day = TODAY - timedelta(days=3)
    assert "2 missing ranges" in shown(page, "#missing-summary")  # and today
    page.value("document.querySelector('#missing-details').open = true")
    assert f"{day} 00:00 to {day + timedelta(days=1)} 00:00" in shown(page, "#missing-list")
    legend = shown(page, "#legend")
    assert "final 57" in legend
    assert "provisional 1" in legend
    assert "incomplete 1" in legend
    assert page.value("document.querySelectorAll('#calendar path.day-incomplete').length") == 1


@WITH_CHROMIUM
@pytest.mark.slow
def test_names_and_reasons_are_text(page: Page) -> None:
    """A symbol and a reason that look like HTML are shown as they are."""
    assert EVIDENCE in shown(page, "#gaps")
    assert EVIDENCE in shown(page, "#attention")
    assert "<img>USDT" in shown(page, "#series")
    assert page.value("document.querySelectorAll('main img').length") == 0
    page.value("[...document.querySelectorAll('#series a')].find(one => one.innerText.includes('<img>')).click()")
    page.until("document.querySelector('#candles-title').innerText === '<img>USDT 1h'")
    page.until(READY)


@WITH_CHROMIUM
@pytest.mark.slow
def test_page_works_with_the_keyboard(page: Page) -> None:
    reached = []
    for _ in range(40):
        page.press("Tab")
        reached.append(page.value("document.activeElement.id || document.activeElement.tagName"))
        visible = "getComputedStyle(document.activeElement).outlineStyle"
        assert page.value(visible) != "none", reached
        if reached[-1] == "chart":
            break
    assert {"market", "symbol", "interval", "chart"} <= set(reached)
    newest = shown(page, "#readout")
    page.press("ArrowLeft", shift=True)
    page.until(f"document.querySelector('#readout').innerText.replace(/\\s+/g, ' ').trim() !== {json.dumps(newest)}")
    assert shown(page, "#readout")[:10] < newest[:10]
    page.press("End")
    page.until(f"document.querySelector('#readout').innerText.replace(/\\s+/g, ' ').trim() === {json.dumps(newest)}")
    page.value("document.querySelector('#calendar').focus()")
    page.press("ArrowLeft")
    yesterday = TODAY - timedelta(days=1)
    assert shown(page, "#day") == f"{yesterday}: provisional"
    page.press("ArrowLeft")
    assert shown(page, "#day") == f"{yesterday - timedelta(days=7)}: final"
    page.press("Enter")
    page.until("document.activeElement.id === 'chart'")


@WITH_CHROMIUM
@pytest.mark.slow
def test_any_interval_can_be_chosen_and_is_remembered(page: Page) -> None:
    page.value(
        "(() => { const one = document.querySelector('#interval'); one.value = 'other';"
        " one.dispatchEvent(new Event('change')) })()"
    )
    assert page.value("document.activeElement.id") == "other"
    page.value(
        "(() => { const one = document.querySelector('#other'); one.value = '5h';"
        " one.dispatchEvent(new Event('change')) })()"
    )
    page.until("document.querySelector('#candles-title').innerText === 'BTCUSDT 5h'")
    assert "candles=spot/klines/BTCUSDT/5h" in page.value("location.hash")
    page.send("Page.reload")
    page.until(f"document.querySelector('#candles-title').innerText === 'BTCUSDT 5h' && {READY}")
    assert page.value("document.querySelector('#interval').value") == "5h"


@WITH_CHROMIUM
@pytest.mark.slow
def test_moving_left_loads_older_pages(page: Page) -> None:
    page.value("document.querySelector('#chart').focus()")
    for _ in range(12):
        page.press("ArrowLeft", shift=True)
        page.value("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")  # it is drawn
    page.until("document.querySelector('#chart').dataset.candles > 1000")
    assert page.value("Number(document.querySelector('#chart').dataset.candles)") > 1000


@WITH_CHROMIUM
@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 390, 768])
def test_phone_needs_no_scrolling_to_the_side(page: Page, address: str, width: int) -> None:
    page.size(width, 740, phone=True)
    page.open(f"{address}?again#candles=spot/klines/BTCUSDT/1h")
    page.until(READY)
    assert page.value("document.documentElement.scrollWidth") == width
    wide = page.value(
        "[...document.querySelectorAll('main *')].filter(one => one.checkVisibility() && !one.closest('.table')"
        f" && one.getBoundingClientRect().right > {width} + 0.5).map(one => one.outerHTML.slice(0, 120))"
    )
    assert wide == []
    small = page.value(
        "[...document.querySelectorAll('.buttons button, select')].filter(one => one.checkVisibility()"
        " && one.getBoundingClientRect().height < 34).length"
    )
    assert small == 0


@WITH_CHROMIUM
@pytest.mark.slow
def test_silent_server_is_named_in_words(page: Page) -> None:
    page.send("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0)
    page.until("!document.querySelector('#problem').hidden")
    assert shown(page, "#problem") == "The server does not answer. The page tries again every few seconds."
    page.send("Network.emulateNetworkConditions", offline=False, latency=0, downloadThroughput=-1, uploadThroughput=-1)
    page.until("document.querySelector('#problem').hidden")
    page.errors[:] = [one for one in page.errors if "ERR_INTERNET_DISCONNECTED" not in one]


@WITH_CHROMIUM
@pytest.mark.slow
def test_impossible_interval_is_named_in_words(page: Page, address: str) -> None:
    page.open(f"{address}?again#candles=spot/klines/BTCUSDT/7m")
    page.until("!document.querySelector('#chart-problem').hidden")
    assert "7m" in shown(page, "#chart-problem")
    page.errors[:] = [one for one in page.errors if "404" not in one]


@WITH_CHROMIUM
@pytest.mark.slow
def test_open_candle_moves_with_the_feed(tmp_path: Path) -> None:
    """The chart and the table follow the streams, and the page polls no candles meanwhile."""
    lake = SmallLake(tmp_path / "data")
    lake.put(HOURS, [TODAY - timedelta(days=n) for n in range(3, 0, -1)])
    with live_server(lake) as server, opened_page(tmp_path / "profile") as page:
        server.stored(24)
        opened = candle().open_us
        closed = {"last_closed": f"{clock.naive_from_us(opened - HOURS.step).isoformat()}Z"}
        write_status(lake.layout, {"updated_at": clock.now().isoformat(), "series": {str(HOURS): closed}})
        page.size(1280, 900)
        page.open(f"{server.url}#candles=spot/klines/BTCUSDT/1h")
        page.until(READY)
        server.followed()
        server.hub.publish([candle(close=1234.5)])
        page.until("document.querySelector('#readout').innerText.includes('1,234.5')")
        assert "forming" in shown(page, "#readout")
        before = len(page.requests)
        server.hub.publish([candle(close=4321.5), candle(close=5432.5, closed=True)])
        page.until("document.querySelector('#readout').innerText.includes('5,432.5')")
        assert "live" in shown(page, "#readout")
        assert [one for one in page.requests[before:] if "/market/candles/" in one] == []
        assert "live" in shown(page, "#series")
        asked = "performance.getEntriesByType('resource').filter(one => one.name.endsWith('/system/series')).length"
        count = page.value(asked)
        server.hub.ended()  # and so it polls again
        page.until(f"{asked} > {count}")
        assert page.errors == []


@WITH_CHROMIUM
@pytest.mark.slow
def test_routes_are_shown_without_another_host(address: str, tmp_path: Path) -> None:
    with opened_page(tmp_path) as page:
        page.size(1280, 900)
        page.open(f"{address}docs")
        page.until("document.querySelectorAll('.opblock').length > 20")
        assert "/api/v1/market/candles/{symbol}/{interval}" in shown(page, "#routes").replace("\u200b", "")
        page.value("document.querySelector('.opblock-summary-control').click()")
        page.until("document.querySelector('.opblock-body') !== null")
        assert page.errors == []
        assert page.foreign_requests(address) == []
