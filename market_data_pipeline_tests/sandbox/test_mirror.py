"""A sandbox over a folder laid out as the archive."""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import requests

from market_data_pipeline.errors import UsageError
from market_data_pipeline.model.series import DataType, Market, SeriesKey
from market_data_pipeline.sandbox import Damage, DamagedArchive, MarketOutage, MissingDay, Sandbox, write_mirror
from market_data_pipeline_tests.sandbox.conftest import NOW, csv_rows, sha256
from market_data_pipeline_tests.sandbox.test_archive import listed

RECORDED_NOW = datetime(2026, 11, 1, tzinfo=UTC)
PREFIXES = {"spot": "/api/v3", "um": "/fapi/v1", "cm": "/dapi/v1"}


@pytest.fixture(scope="module")
def recorded(realdata: Path) -> Iterator[Sandbox]:
    with Sandbox(mirror=realdata / "mirror", now=RECORDED_NOW) as sandbox:
        yield sandbox


def keys(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_every_recorded_file_is_served_byte_for_byte_and_listed(recorded: Sandbox, realdata: Path) -> None:
    folder = realdata / "mirror"
    with requests.Session() as session:
        for key in keys(folder):
            assert session.get(f"{recorded.url}/{key}", timeout=120).content == (folder / key).read_bytes()
        shown, _, _, truncated = listed(session.get(f"{recorded.url}/?prefix=data/", timeout=120))
        assert (shown, truncated) == (keys(folder), False)
        _, markets, _, _ = listed(session.get(f"{recorded.url}/?prefix=data/futures/&delimiter=/", timeout=120))
        assert markets == ["data/futures/cm/", "data/futures/um/"]


def test_every_recorded_row_is_in_rest(recorded: Sandbox, realdata: Path) -> None:
    folder = realdata / "mirror"
    for key in keys(folder):
        if not key.endswith(".zip"):
            continue
        parts = key.split("/")
        market = parts[2] if parts[1] == "futures" else "spot"
        with zipfile.ZipFile(folder / key) as archive:
            rows = list(csv.reader(io.StringIO(archive.read(archive.namelist()[0]).decode())))
        rows = rows if rows[0][0].isdigit() else rows[1:]
        prefix = recorded.url + PREFIXES[market]
        if "aggTrades" in parts:
            # Of futures, REST has trades of the last day or two only.
            recorded.set_time(datetime.fromtimestamp(float(rows[0][5][:10]), UTC) + timedelta(hours=23))
            ask: dict[str, Any] = {"symbol": parts[-2], "fromId": rows[100][0], "limit": 300}
            got = requests.get(f"{prefix}/aggTrades", params=ask, timeout=120).json()
            recorded.set_time(RECORDED_NOW)
            assert [(t["a"], t["p"], t["q"], t["T"]) for t in got] == [
                (int(row[0]), row[1], row[2], int(row[5])) for row in rows[100:400]
            ]
            continue
        scale = 1_000 if len(rows[0][0]) == 16 else 1
        times = [int(row[0]) // scale for row in rows]
        ask = {"symbol": parts[-3], "interval": parts[-2], "startTime": times[0], "endTime": times[-1], "limit": 1000}
        got = requests.get(f"{prefix}/klines", params=ask, timeout=120).json()
        expected = rows[:1000]
        assert [row[0] for row in got] == times[:1000]
        assert [[str(value) for value in row[1:6]] for row in got] == [row[1:6] for row in expected]
        assert [row[6] for row in got] == [int(row[6]) // scale for row in expected]


def test_file_not_in_the_folder_is_missing(recorded: Sandbox) -> None:
    get = requests.get
    assert (
        get(f"{recorded.url}/data/spot/daily/klines/BTCUSDT/1m/BTCUSDT-1m-2020-01-03.zip", timeout=120).status_code
        == 404
    )
    assert get(f"{recorded.url}/data/%2e%2e/%2e%2e/MANIFEST.csv", timeout=120).status_code == 404
    assert get(f"{recorded.url}/api/v3/klines?symbol=XUSDT&interval=1m", timeout=120).json()["code"] == -1121
    known = {s["symbol"] for s in get(f"{recorded.url}/api/v3/exchangeInfo", timeout=120).json()["symbols"]}
    assert known == {"BTCUSDT", "ETHUSDT", "PEPEUSDT"}


def test_a_folder_without_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no folder `data`"):
        Sandbox(mirror=tmp_path)


def test_a_written_mirror_serves_what_the_generator_serves(tmp_path: Path) -> None:
    series = [
        SeriesKey("binance", Market.SPOT, DataType.KLINES, "BTCUSDT", "1h"),
        SeriesKey("binance", Market.UM, DataType.AGG_TRADES, "SOLUSDT"),
    ]
    days = [date(2025, 1, 1) + timedelta(n) for n in range(31)]
    written = write_mirror(tmp_path, series, days, cadences=("daily", "monthly"))
    assert len(written) == 2 * 32
    assert all(sha256(path.read_bytes()) in Path(f"{path}.CHECKSUM").read_text() for path in written)
    with Sandbox(mirror=tmp_path, now=NOW) as mirrored, Sandbox(now=NOW) as generated:
        for key in (series[0].archive_daily(days[5]), series[1].archive_monthly(days[0])):
            one, other = (requests.get(f"{sandbox.url}/{key}", timeout=60) for sandbox in (mirrored, generated))
            assert one.content == other.content
        ask = "/api/v3/klines?symbol=BTCUSDT&interval=1h&startTime=1736000000000&limit=200"
        one, other = (requests.get(sandbox.url + ask, timeout=120) for sandbox in (mirrored, generated))
        assert one.json() == other.json()
        for sandbox in (mirrored, generated):  # of futures, REST has the trades of two days only
            sandbox.set_time(datetime(2025, 1, 6, tzinfo=UTC))
        ask = "/fapi/v1/aggTrades?symbol=SOLUSDT&startTime=1736000000000&limit=1000"
        one, other = (requests.get(sandbox.url + ask, timeout=120) for sandbox in (mirrored, generated))
        assert [{**t, "p": float(t["p"]), "q": float(t["q"]), "nq": 0} for t in one.json()] == [
            {**t, "p": float(t["p"]), "q": float(t["q"]), "nq": 0} for t in other.json()
        ]


def test_faults_of_data_work_on_a_mirror(tmp_path: Path) -> None:
    series = SeriesKey("binance", Market.UM, DataType.KLINES, "BTCUSDT", "1m")
    days = [date(2025, 1, 1), date(2025, 1, 2), date(2025, 1, 3)]
    write_mirror(tmp_path, [series], days)
    with Sandbox(mirror=tmp_path, now=NOW) as sandbox, requests.Session() as session:

        def get(day: date, end: str = "") -> requests.Response:
            return session.get(f"{sandbox.url}/{series.archive_daily(day)}{end}", timeout=120)

        plain = csv_rows(get(days[1]).content)
        start = datetime(2025, 1, 2, 6, tzinfo=UTC)
        sandbox.faults.add(MissingDay(days=days[:1]))
        sandbox.faults.add(MarketOutage(start=start, end=start + timedelta(hours=1)))
        sandbox.faults.add(DamagedArchive(days=(days[2],), damage=Damage.NOT_A_ZIP))
        assert get(days[0]).status_code == 404
        out = csv_rows(get(days[1]).content)
        assert get(days[1], ".CHECKSUM").text.split()[0] == sha256(get(days[1]).content)
        assert out[:360] + out[420:] == plain[:360] + plain[420:]
        assert {(row[8], float(row[5]), row[4]) for row in out[360:420]} == {("0", 0.0, plain[359][4])}
        assert not zipfile.is_zipfile(io.BytesIO(get(days[2]).content))
        assert get(days[2], ".CHECKSUM").text.split()[0] == sha256(get(days[2]).content)
        sandbox.faults.clear()
        assert csv_rows(get(days[1]).content) == plain
