"""Faults on request: each is seen by a client as the real thing would be, and is gone when lifted."""

from __future__ import annotations

import io
import re
import time
import zipfile
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta

import pytest
import requests

from market_data_pipeline.errors import UsageError
from market_data_pipeline.sandbox import (
    ChangedRows,
    CutBody,
    Damage,
    DamagedArchive,
    Delay,
    LateArchive,
    MarketOutage,
    MissingChecksum,
    MissingDay,
    MissingRows,
    QuietSymbol,
    RepeatedAtMidnight,
    ReplacedArchive,
    Reset,
    Sandbox,
    ScrambledArchive,
    SlowBody,
    Status,
    WrongChecksum,
)
from market_data_pipeline_tests.sandbox.conftest import NOW, csv_rows, sha256
from market_data_pipeline_tests.sandbox.test_archive import all_keys

Get = Callable[..., requests.Response]
DAY = date(2025, 2, 3)
START = datetime(2025, 2, 3, tzinfo=UTC)
KLINES = "/data/spot/daily/klines/BTCUSDT/1m/BTCUSDT-1m-2025-02-03.zip"
NEXT = "/data/spot/daily/klines/BTCUSDT/1m/BTCUSDT-1m-2025-02-04.zip"
MONTHLY = "/data/spot/monthly/klines/BTCUSDT/1m/BTCUSDT-1m-2025-01.zip"
TRADES = "/data/spot/daily/aggTrades/BTCUSDT/BTCUSDT-aggTrades-2025-02-03.zip"
SERIES = "^binance/spot/klines/BTCUSDT/1m$"
MICROSECONDS = {"X-MBX-TIME-UNIT": "MICROSECOND"}


def us(moment: datetime) -> int:
    return round(moment.timestamp()) * 1_000_000


def checksum_is_right(get: Get, path: str) -> bool:
    return get(f"{path}.CHECKSUM").text.split()[0] == sha256(get(path).content)


def rest_day(get: Get, path: str = "/api/v3", symbol: str = "BTCUSDT") -> list[list[object]]:
    rows: list[list[object]] = []
    for half in (START, START + timedelta(hours=12)):
        start = us(half) // 1_000
        ask = {"symbol": symbol, "interval": "1m", "startTime": start, "endTime": start + 43_199_999, "limit": 1000}
        rows += get(f"{path}/klines", params=ask).json()
    return rows


# --- answers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [403, 404, 418, 429, 451, 500, 503])
def test_status(get: Get, sandbox: Sandbox, status: int) -> None:
    sandbox.faults.add(Status(path="/api/v3/", query="symbol=BTCUSDT", status=status, retry_after=7, times=2))
    ask = "/api/v3/klines?interval=1h&symbol={}"
    assert get(ask.format("ETHUSDT")).status_code == 200
    answers = [get(ask.format("BTCUSDT")) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [status, status, 200]
    assert answers[0].headers["Retry-After"] == "7"
    assert [request.status for request in sandbox.requests] == [200, status, status, 200]


def test_cut_body(get: Get, sandbox: Sandbox) -> None:
    whole = get(KLINES).content
    fault = sandbox.faults.add(CutBody(path=r"2025-02-03\.zip$", keep=0.5))
    with requests.get(sandbox.url + KLINES, stream=True, timeout=120) as answer:
        assert int(answer.headers["Content-Length"]) == len(whole)
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            answer.iter_content(None).__next__()
    sandbox.faults.remove(fault)
    assert get(KLINES).content == whole


def test_reset(get: Get, sandbox: Sandbox) -> None:
    sandbox.faults.add(Reset(path="/fapi/", times=1))
    with pytest.raises(requests.exceptions.ConnectionError):
        get("/fapi/v1/time")
    assert get("/fapi/v1/time").status_code == 200
    assert [request.status for request in sandbox.requests] == [0, 200]


def test_slow_body_and_delay(get: Get, sandbox: Sandbox) -> None:
    whole = get(KLINES).content
    sandbox.faults.add(SlowBody(path=KLINES, seconds=0.3, times=1))
    sandbox.faults.add(Delay(latency=0.1))
    start = time.perf_counter()
    assert get(KLINES).content == whole
    assert time.perf_counter() - start >= 0.4
    start = time.perf_counter()
    assert get("/api/v3/ping").json() == {}
    assert time.perf_counter() - start >= 0.1


def test_wrong_checksum(get: Get, sandbox: Sandbox) -> None:
    sandbox.faults.add(WrongChecksum(path="BTCUSDT-1m-2025-02-03"))
    assert not checksum_is_right(get, KLINES)
    assert get(f"{KLINES}.CHECKSUM").text.endswith("  BTCUSDT-1m-2025-02-03.zip\n")
    assert checksum_is_right(get, NEXT)


# --- days of the archive -------------------------------------------------------------------------------------------


def test_missing_day(get: Get, sandbox: Sandbox) -> None:
    january = csv_rows(get(MONTHLY).content)
    sandbox.faults.add(MissingDay(series=SERIES, days=(DAY, date(2025, 1, 5))))
    assert get(KLINES).status_code == get(f"{KLINES}.CHECKSUM").status_code == 404
    assert get(NEXT).status_code == 200
    assert get(KLINES.replace("1m", "5m")).status_code == 200
    keys = all_keys(get, "data/spot/daily/klines/BTCUSDT/1m/BTCUSDT-1m-2025-02-0")
    assert KLINES[1:] not in keys
    assert NEXT[1:] in keys
    assert len(rest_day(get)) == 1440
    fifth = us(datetime(2025, 1, 5, tzinfo=UTC))
    assert csv_rows(get(MONTHLY).content) == [r for r in january if not fifth <= int(r[0]) < fifth + 86_400_000_000]


def test_a_day_missing_from_the_daily_archives_only(get: Get, sandbox: Sandbox) -> None:
    january = get(MONTHLY).content
    sandbox.faults.add(MissingDay(series=SERIES, days=(date(2025, 1, 5),), cadence="daily"))
    assert get(KLINES.replace("02-03", "01-05")).status_code == 404
    assert get(MONTHLY).content == january


def test_missing_checksum(get: Get, sandbox: Sandbox) -> None:
    sandbox.faults.add(MissingChecksum(series=SERIES, days=(DAY,)))
    assert (get(KLINES).status_code, get(f"{KLINES}.CHECKSUM").status_code) == (200, 404)
    assert all_keys(get, KLINES[1:]) == [KLINES[1:]]


def test_late_archive(get: Get, sandbox: Sandbox) -> None:
    sandbox.faults.add(LateArchive(series=SERIES, days=(DAY,), days_late=8))
    for moment, status in (
        (datetime(2025, 2, 12, 7, 59, tzinfo=UTC), 404),
        (datetime(2025, 2, 12, 8, tzinfo=UTC), 200),
    ):
        sandbox.set_time(moment)
        assert get(KLINES).status_code == status
        assert (KLINES[1:] in all_keys(get, KLINES[1:])) == (status == 200)
        assert get(NEXT).status_code == 200


@pytest.mark.parametrize("short_by", [0, 10])
def test_replaced_archive(get: Get, sandbox: Sandbox, short_by: int) -> None:
    plain = csv_rows(get(KLINES).content)
    at = datetime(2025, 2, 20, 3, tzinfo=UTC)
    sandbox.faults.add(ReplacedArchive(series=SERIES, days=(DAY,), at=at, short_by=short_by))
    sandbox.set_time(at - timedelta(seconds=1))
    before = get(KLINES)
    assert checksum_is_right(get, KLINES)
    sandbox.set_time(at)
    after = get(KLINES)
    assert checksum_is_right(get, KLINES)
    assert csv_rows(before.content) == plain[: len(plain) - short_by]
    if short_by:
        assert csv_rows(after.content) == plain
    else:
        *same, last = csv_rows(after.content)
        assert same == plain[:-1]
        assert float(last[5]) == float(plain[-1][5]) + 1
    assert before.headers["ETag"] != after.headers["ETag"]
    assert after.headers["Last-Modified"] == "Thu, 20 Feb 2025 03:00:00 GMT"


def damaged(get: Get, sandbox: Sandbox, path: str, damage: Damage) -> tuple[list[str], list[list[str]]]:
    """Names in the zip and rows of its first file, with the fault in force; the checksum stays right."""
    fault = sandbox.faults.add(DamagedArchive(days=(DAY,), damage=damage))
    assert checksum_is_right(get, path)
    with zipfile.ZipFile(io.BytesIO(get(path).content)) as archive:
        names = archive.namelist()
        rows = [line.split(",") for line in archive.read(names[0]).decode().splitlines()]
    sandbox.faults.remove(fault)
    return names, rows


BOTH = pytest.mark.parametrize("path", [KLINES, TRADES])


@BOTH
@pytest.mark.parametrize(
    ("damage", "names"),
    [
        (Damage.TWO_FILES, ["{}.csv", "copy-of-{}.csv"]),
        (Damage.NESTED_FOLDER, ["{0}/{0}.csv"]),
        (Damage.OTHER_SYMBOL, ["OTHER{}.csv"]),
    ],
)
def test_damaged_names(get: Get, sandbox: Sandbox, path: str, damage: Damage, names: list[str]) -> None:
    plain = csv_rows(get(path).content)
    stem = path.rsplit("/", 1)[1].removesuffix(".zip")
    assert damaged(get, sandbox, path, damage) == ([name.format(stem) for name in names], plain)
    assert csv_rows(get(path).content) == plain


@BOTH
def test_damaged_columns(get: Get, sandbox: Sandbox, path: str) -> None:
    plain = csv_rows(get(path).content)
    at = 0 if path == KLINES else 5
    _, rows = damaged(get, sandbox, path, Damage.EXTRA_COLUMN)
    assert [row[:-1] for row in rows] == plain
    _, rows = damaged(get, sandbox, path, Damage.EXPONENT_TIMES)
    assert all(re.fullmatch(r"1\.\d{5}E\+15", row[at]) for row in rows)
    _, rows = damaged(get, sandbox, path, Damage.OTHER_DAY)
    assert [int(row[at]) - 86_400_000_000 for row in rows] == [int(row[at]) for row in plain]


@BOTH
def test_damaged_rows(get: Get, sandbox: Sandbox, path: str) -> None:
    plain = csv_rows(get(path).content)
    _, rows = damaged(get, sandbox, path, Damage.DISORDER)
    assert rows != plain
    assert sorted(rows) == sorted(plain)
    _, rows = damaged(get, sandbox, path, Damage.INTERLEAVED)
    assert sorted(rows) == sorted(plain)
    half = len(plain) // 2
    assert rows[:6] == [plain[0], plain[half], plain[1], plain[half + 1], plain[2], plain[half + 2]]
    _, rows = damaged(get, sandbox, path, Damage.DUPLICATES)
    assert len(rows) == len(plain) + 1
    assert {tuple(row) for row in rows} == {tuple(row) for row in plain}
    _, rows = damaged(get, sandbox, path, Damage.CONFLICTING_DUPLICATES)
    assert {row[0] for row in rows} == {row[0] for row in plain}
    assert len({tuple(row) for row in rows}) == len(rows) == len(plain) + 1


def test_not_a_zip(get: Get, sandbox: Sandbox) -> None:
    sandbox.faults.add(DamagedArchive(days=(DAY,), damage=Damage.NOT_A_ZIP))
    assert checksum_is_right(get, KLINES)
    assert not zipfile.is_zipfile(io.BytesIO(get(KLINES).content))


# --- rows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["archive", "rest", "both"])
def test_missing_rows(get: Get, sandbox: Sandbox, where: str) -> None:
    start, end = START + timedelta(hours=2), START + timedelta(hours=3)
    sandbox.faults.add(MissingRows(series=SERIES, start=start, end=end, where=where))  # type: ignore[arg-type]
    in_archive = [int(row[0]) for row in csv_rows(get(KLINES).content)]
    in_rest = [int(str(row[0])) * 1_000 for row in rest_day(get)]
    whole = [us(START) + n * 60_000_000 for n in range(1440)]
    short = [at for at in whole if not us(start) <= at < us(end)]
    assert in_archive == (whole if where == "rest" else short)
    assert in_rest == (whole if where == "archive" else short)
    assert checksum_is_right(get, KLINES)


def test_an_outage_in_spot_leaves_no_rows_and_no_hole_in_the_ids(get: Get, sandbox: Sandbox) -> None:
    plain = csv_rows(get(TRADES).content)
    start, end = START + timedelta(hours=2), START + timedelta(hours=5, minutes=30)
    sandbox.faults.add(MarketOutage(series="^binance/spot/", start=start, end=end))
    minutes = [int(row[0]) for row in csv_rows(get(KLINES).content)]
    assert [at for at in minutes if us(start) <= at < us(end)] == []
    assert len(minutes) == 1440 - 210
    assert [row[0] for row in rest_day(get)] == [at // 1_000 for at in minutes]
    trades = csv_rows(get(TRADES).content)
    assert [row[:5] for row in trades] == [row[:5] for row in plain], "the same trades, at other times"
    times = [int(row[5]) for row in trades]
    assert times == sorted(times)
    assert [at for at in times if us(start) <= at < us(end)] == []
    hours = csv_rows(get(KLINES.replace("1m", "1h")).content)
    assert [int(row[0]) // 3_600_000_000 % 24 for row in hours] == [0, 1, *range(5, 24)]
    assert sum(float(row[5]) for row in hours) == pytest.approx(sum(float(row[2]) for row in trades))


def test_an_outage_in_futures_is_flat(get: Get, sandbox: Sandbox) -> None:
    start, end = START + timedelta(hours=23), START + timedelta(days=1, minutes=3)
    sandbox.faults.add(MarketOutage(series="^binance/um/", start=start, end=end))
    path = "/data/futures/um/daily/klines/BTCUSDT/1m/BTCUSDT-1m-2025-02-0{}.zip"
    evening, morning = (csv_rows(get(path.format(day)).content) for day in (3, 4))
    assert (len(evening), len(morning)) == (1440, 1440)
    for row in evening[-60:] + morning[:3]:
        assert {float(row[at]) for at in (5, 7, 8, 9, 10)} == {0.0}
        assert len(set(row[1:5])) == 1
    assert float(evening[-61][8]) > 0
    assert float(morning[3][8]) > 0
    assert [[str(value) for value in row] for row in rest_day(get, "/fapi/v1")] == evening


@pytest.mark.parametrize("flat", [True, False])
def test_um_outage_is_in_every_symbol_and_a_quiet_one_is_alone(get: Get, sandbox: Sandbox, flat: bool) -> None:
    start, end = START + timedelta(hours=9), START + timedelta(hours=9, minutes=20)
    if flat:
        sandbox.faults.add(MarketOutage(series="^binance/um/", start=start, end=end))
    else:
        sandbox.faults.add(QuietSymbol(series="^binance/um/.*/ETHUSDT", start=start, end=end))
    still = {}
    for symbol in ("BTCUSDT", "ETHUSDT", "SOLUSDT"):
        path = f"/data/futures/um/daily/klines/{symbol}/1m/{symbol}-1m-2025-02-03.zip"
        rows = csv_rows(get(path).content)
        assert len(rows) == 1440
        still[symbol] = all(row[5] == "0.000" or row[5] == "0" for row in rows[540:560])
    assert still == {"BTCUSDT": flat, "ETHUSDT": True, "SOLUSDT": flat}
    trades = csv_rows(get("/data/futures/um/daily/aggTrades/ETHUSDT/ETHUSDT-aggTrades-2025-02-03.zip").content)
    ids = [int(row[0]) for row in trades]
    assert ids == list(range(ids[0], ids[0] + len(ids)))
    assert [row for row in trades if us(start) <= int(row[5]) * 1_000 < us(end)] == []


@pytest.mark.parametrize("cadence", ["daily", "monthly"])
def test_rows_missing_from_one_kind_of_archive_only(get: Get, sandbox: Sandbox, cadence: str) -> None:
    day = KLINES.replace("02-03", "01-05")
    month, whole = csv_rows(get(MONTHLY).content), csv_rows(get(day).content)
    start = datetime(2025, 1, 5, 9, 30, tzinfo=UTC)
    sandbox.faults.add(
        MissingRows(series=SERIES, start=start, end=datetime(2025, 1, 6, tzinfo=UTC), cadence=cadence)  # type: ignore[arg-type]
    )
    short, stays, untouched = (day, MONTHLY, month) if cadence == "daily" else (MONTHLY, day, whole)
    assert csv_rows(get(stays).content) == untouched
    plain = whole if cadence == "daily" else month
    assert csv_rows(get(short).content) == [
        r for r in plain if not us(start) <= int(r[0]) < us(START.replace(month=1, day=6))
    ]
    assert checksum_is_right(get, short)
    ask = {"symbol": "BTCUSDT", "interval": "1m", "startTime": us(start) // 1_000, "limit": 5}
    assert [row[0] for row in get("/api/v3/klines", params=ask).json()] == [
        us(start) // 1_000 + n * 60_000 for n in range(5)
    ]


def test_a_month_stale_by_a_day(get: Get, sandbox: Sandbox) -> None:
    january = csv_rows(get(MONTHLY).content)
    last = date(2025, 1, 31)
    sandbox.faults.add(MissingDay(series=SERIES, days=(last,), cadence="monthly"))
    assert csv_rows(get(MONTHLY).content) == january[:-1440]
    assert csv_rows(get(KLINES.replace("02-03", "01-31")).content) == january[-1440:]


@BOTH
def test_a_day_cut_short_in_the_archive(get: Get, sandbox: Sandbox, path: str) -> None:
    plain = csv_rows(get(path).content)
    at = 0 if path == KLINES else 5
    end = START + timedelta(hours=9, minutes=29)
    series = SERIES if path == KLINES else "^binance/spot/aggTrades/BTCUSDT$"
    sandbox.faults.add(MissingRows(series=series, start=end, end=START + timedelta(days=1), where="archive"))
    short = csv_rows(get(path).content)
    assert short == [row for row in plain if int(row[at]) < us(end)]
    assert 0 < len(short) < len(plain)
    if path == KLINES:
        assert len(rest_day(get)) == 1440
    else:
        following = int(short[-1][0]) + 1
        answer = get("/api/v3/aggTrades", params={"symbol": "BTCUSDT", "fromId": following, "limit": 10}).json()
        assert [trade["a"] for trade in answer] == [int(row[0]) for row in plain[len(short) : len(short) + 10]]


@pytest.mark.parametrize("where", ["archive", "rest"])
@pytest.mark.parametrize("column", ["volume", "close", "count"])
def test_rest_and_archive_disagree_on_a_bar(get: Get, sandbox: Sandbox, where: str, column: str) -> None:
    plain = csv_rows(get(KLINES).content)
    at = START + timedelta(hours=8)
    sandbox.faults.add(
        ChangedRows(series=SERIES, start=at, end=at + timedelta(minutes=1), where=where, column=column)  # type: ignore[arg-type]
    )
    theirs = {"archive": csv_rows(get(KLINES).content), "rest": [[str(v) for v in row] for row in rest_day(get)]}
    number = {"close": 4, "volume": 5, "count": 8}[column]
    for source, rows in theirs.items():
        changed = [
            n
            for n, (row, was) in enumerate(zip(rows, plain, strict=True))
            if row[1:6] + row[7:9] != was[1:6] + was[7:9]
        ]
        assert changed == ([480] if source == where else [])
    assert float(theirs[where][480][number]) == float(plain[480][number]) + 1
    assert checksum_is_right(get, KLINES)


def test_rows_can_be_changed_in_columns_that_exist() -> None:
    with pytest.raises(UsageError, match=r"no column 'open_time' to change\. There are: open, high"):
        ChangedRows(start=START, end=START, column="open_time")


@pytest.mark.parametrize("moved", [True, False])
def test_a_trade_on_both_sides_of_midnight(get: Get, sandbox: Sandbox, moved: bool) -> None:
    before, plain = csv_rows(get(TRADES.replace("02-03", "02-02")).content), csv_rows(get(TRADES).content)
    sandbox.faults.add(RepeatedAtMidnight(series="/aggTrades/", days=(DAY,), moved=moved))
    first, *others = csv_rows(get(TRADES).content)
    assert others == plain
    assert (first[:5], first[6:]) == (before[-1][:5], before[-1][6:])
    assert int(first[5]) == (us(START) if moved else int(before[-1][5]))
    assert csv_rows(get(TRADES.replace("02-03", "02-02")).content) == before
    assert checksum_is_right(get, TRADES)
    answer = get("/api/v3/aggTrades", params={"symbol": "BTCUSDT", "fromId": first[0], "limit": 3}).json()
    assert [trade["a"] for trade in answer] == [int(first[0]) + n for n in range(3)]


@BOTH
@pytest.mark.parametrize("seed", range(8))
def test_scrambled_archive_has_rows_of_its_day_and_is_repeatable(
    get: Get, sandbox: Sandbox, path: str, seed: int
) -> None:
    plain = csv_rows(get(path).content)
    fault = sandbox.faults.add(ScrambledArchive(days=(DAY,), seed=seed))
    rows = csv_rows(get(path).content)
    assert {tuple(row) for row in rows} <= {tuple(row) for row in plain}
    assert len(rows) >= 2
    assert checksum_is_right(get, path)
    if path == KLINES:
        assert len(rest_day(get)) == 1440
    sandbox.faults.remove(fault)
    assert csv_rows(get(path).content) == plain
    sandbox.faults.add(fault)
    assert csv_rows(get(path).content) == rows


def test_scrambling_can_be_chosen(get: Get, sandbox: Sandbox) -> None:
    plain = csv_rows(get(TRADES).content)
    seen = {"dropped": 0, "repeated": 0, "shuffled": 0}
    for seed in range(6):
        for drop, repeat, shuffle in ((True, False, False), (False, True, False), (False, False, True)):
            fault = sandbox.faults.add(
                ScrambledArchive(days=(DAY,), seed=seed, drop=drop, repeat=repeat, shuffle=shuffle, drop_ends=False)
            )
            rows = csv_rows(get(TRADES).content)
            sandbox.faults.remove(fault)
            if drop:
                seen["dropped"] += rows != plain
                kept = {row[0] for row in rows}
                assert rows == [row for row in plain if row[0] in kept]
                assert (rows[0], rows[-1]) == (plain[0], plain[-1])
            elif repeat:
                seen["repeated"] += rows != plain
                assert 0 <= len(rows) - len(plain) <= 5
                assert {tuple(row) for row in rows} == {tuple(row) for row in plain}
            else:
                seen["shuffled"] += rows != plain
                assert sorted(rows) == sorted(plain)
    assert min(seen.values()) >= 2, seen
    sandbox.faults.add(ScrambledArchive(days=(DAY,), seed=1, drop=False, repeat=False, shuffle=False, conflict=True))
    rows = csv_rows(get(TRADES).content)
    (odd,) = {tuple(row) for row in rows} - {tuple(row) for row in plain}
    assert len(rows) == len(plain) + 1
    assert odd[0] in {row[0] for row in plain}


def test_faults_are_shown_and_lifted(sandbox: Sandbox) -> None:
    fault = sandbox.faults.add(Delay(latency=0.0))
    assert list(sandbox.faults) == [fault]
    sandbox.faults.clear()
    assert list(sandbox.faults) == []
    assert sandbox.site.clock.now() == NOW
