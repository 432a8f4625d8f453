"""The archive and its listing, as data.binance.vision and the bucket behind it answer."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from email.utils import parsedate_to_datetime
from xml.etree import ElementTree as ET

import pytest
import requests

from market_data_pipeline.sandbox import Sandbox
from market_data_pipeline_tests.sandbox.conftest import NOW, csv_rows, sha256

Get = Callable[..., requests.Response]
NAMESPACE = "{http://s3.amazonaws.com/doc/2006-03-01/}"
SPOT_1M = "data/spot/daily/klines/BTCUSDT/1m/"


def listed(answer: requests.Response) -> tuple[list[str], list[str], str | None, bool]:
    """Keys, common prefixes, NextMarker and IsTruncated of one page."""
    root = ET.fromstring(answer.content)
    assert root.tag == f"{NAMESPACE}ListBucketResult"
    keys = [node.text or "" for node in root.iterfind(f"{NAMESPACE}Contents/{NAMESPACE}Key")]
    folders = [node.text or "" for node in root.iterfind(f"{NAMESPACE}CommonPrefixes/{NAMESPACE}Prefix")]
    return keys, folders, root.findtext(f"{NAMESPACE}NextMarker"), root.findtext(f"{NAMESPACE}IsTruncated") == "true"


def all_keys(get: Get, prefix: str, delimiter: str = "/") -> list[str]:
    found: list[str] = []
    marker = ""
    while True:
        answer = get("/", params={"prefix": prefix, "marker": marker, "delimiter": delimiter})
        keys, _, next_marker, truncated = listed(answer)
        found += keys
        if not truncated:
            return found
        assert len(keys) == 1_000
        assert (next_marker is None) == (delimiter == "")
        marker = next_marker or keys[-1]


def test_a_zip_its_checksum_and_its_headers(get: Get, sandbox: Sandbox) -> None:
    path = f"/{SPOT_1M}BTCUSDT-1m-2025-02-03.zip"
    answer = get(path)
    assert get(f"{path}.CHECKSUM").text == f"{sha256(answer.content)}  BTCUSDT-1m-2025-02-03.zip\n"
    head = requests.head(sandbox.url + path, timeout=120)
    for name in ("ETag", "Last-Modified", "Content-Length"):
        assert head.headers[name] == answer.headers[name]
    assert answer.headers["ETag"].startswith('"')
    assert parsedate_to_datetime(answer.headers["Last-Modified"]) == datetime(2025, 2, 4, 8, tzinfo=UTC)
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.namelist() == ["BTCUSDT-1m-2025-02-03.csv"]


@pytest.mark.parametrize(
    ("path", "first_line"),
    [
        (f"{SPOT_1M}BTCUSDT-1m-2024-12-31.zip", r"\d{13},\d+\.\d{8},"),
        (f"{SPOT_1M}BTCUSDT-1m-2025-01-01.zip", r"\d{16},\d+\.\d{8},"),
        (
            "data/spot/daily/aggTrades/BTCUSDT/BTCUSDT-aggTrades-2025-01-01.zip",
            r"\d+,\d+\.\d{8},\d+\.\d{8},\d+,\d+,\d{16},(True|False),True$",
        ),
        ("data/futures/um/daily/klines/BTCUSDT/1h/BTCUSDT-1h-2022-01-01.zip", r"\d{13},\d+\.\d{2},"),
        ("data/futures/um/daily/klines/BTCUSDT/1h/BTCUSDT-1h-2025-02-01.zip", "open_time,open,"),
        ("data/futures/um/daily/aggTrades/BTCUSDT/BTCUSDT-aggTrades-2025-02-01.zip", "agg_trade_id,price,"),
        (
            "data/futures/um/daily/aggTrades/BTCUSDT/BTCUSDT-aggTrades-2022-01-01.zip",
            r"\d+,\d+\.\d+,\d+\.\d+,\d+,\d+,\d{13},(true|false)$",
        ),
        (
            "data/futures/cm/daily/aggTrades/BTCUSD_PERP/BTCUSD_PERP-aggTrades-2022-01-01.zip",
            r"\d+,\d+\.\d,\d+\.0,\d+,\d+,\d{13},(true|false)$",
        ),
        (
            "data/futures/cm/daily/klines/BTCUSD_PERP/1m/BTCUSD_PERP-1m-2022-01-01.zip",
            r"\d{13},(\d+\.\d,){4}\d+,\d{13},\d+\.\d{8},\d+,\d+,\d+\.\d{8},0$",
        ),
    ],
)
def test_csv_is_written_as_the_market_and_the_time_have_it(get: Get, path: str, first_line: str) -> None:
    with zipfile.ZipFile(io.BytesIO(get(f"/{path}").content)) as archive:
        text = archive.read(archive.namelist()[0]).decode()
    line = text.split("\n", 1)[0]
    assert line == first_line or re.match(first_line, line)
    assert text.endswith("\n")


def test_a_monthly_zip_is_its_days_one_after_the_other(get: Get) -> None:
    month = csv_rows(get("/data/futures/um/monthly/klines/ETHUSDT/1h/ETHUSDT-1h-2025-01.zip").content)
    days = [date(2025, 1, 1) + timedelta(n) for n in range(31)]
    daily = [csv_rows(get(f"/data/futures/um/daily/klines/ETHUSDT/1h/ETHUSDT-1h-{day}.zip").content) for day in days]
    assert month == [row for rows in daily for row in rows]


def test_archives_appear_when_their_time_has_come(get: Get, sandbox: Sandbox) -> None:
    daily, monthly = (
        f"/{SPOT_1M}BTCUSDT-1m-2025-02-28.zip",
        "/data/spot/monthly/klines/BTCUSDT/1m/BTCUSDT-1m-2025-02.zip",
    )

    def seen(moment: datetime, path: str) -> tuple[int, int, bool]:
        sandbox.set_time(moment)
        key = path[1:]
        return get(path).status_code, get(f"{path}.CHECKSUM").status_code, key in all_keys(get, key)

    gone, there = (404, 404, False), (200, 200, True)
    assert seen(datetime(2025, 3, 1, 7, 59, tzinfo=UTC), daily) == gone
    assert seen(datetime(2025, 3, 1, 8, 0, tzinfo=UTC), daily) == there
    assert seen(datetime(2025, 3, 3, 11, 59, tzinfo=UTC), monthly) == gone
    assert seen(datetime(2025, 3, 3, 12, 0, tzinfo=UTC), monthly) == there
    assert seen(datetime(2025, 3, 1, 7, 59, tzinfo=UTC), daily) == gone, "also if it has been made before"


@pytest.mark.parametrize(
    "path",
    [
        f"/{SPOT_1M}BTCUSDT-1m-2017-08-16.zip",
        f"/{SPOT_1M}BTCUSDT-1m-2025-02-30.zip",
        f"/{SPOT_1M}BTCUSDT-5m-2025-02-03.zip",
        "/data/spot/daily/klines/NOUSDT/1m/NOUSDT-1m-2025-02-03.zip",
        "/data/futures/um/daily/klines/BTCUSDT/1s/BTCUSDT-1s-2025-02-03.zip",
        "/data/futures/um/daily/klines/BTCUSDT/1m/BTCUSDT-1m-2019-12-31.zip",
        "/data/spot/daily/klines/BTCUSDT/1m/",
    ],
)
def test_missing_file_is_404(get: Get, path: str) -> None:
    assert get(path).status_code == 404
    assert b"NoSuchKey" in get(path).content


@pytest.mark.parametrize("delimiter", ["/", ""])
def test_a_listing_is_read_page_by_page(get: Get, delimiter: str) -> None:
    keys = all_keys(get, SPOT_1M, delimiter)
    days = (date(2025, 2, 28) - date(2017, 8, 17)).days + 1
    assert len(keys) == 2 * days
    assert keys == sorted(keys)
    assert keys[:2] == [f"{SPOT_1M}BTCUSDT-1m-2017-08-17.zip{end}" for end in ("", ".CHECKSUM")]
    assert keys[-1] == f"{SPOT_1M}BTCUSDT-1m-2025-02-28.zip.CHECKSUM"
    assert keys[-2] in all_keys(get, f"{SPOT_1M}BTCUSDT-1m-2025-02-2", delimiter)


def test_folders_are_common_prefixes(get: Get, sandbox: Sandbox) -> None:
    _, folders, _, _ = listed(get("/?prefix=data/futures/&delimiter=/"))
    assert folders == ["data/futures/cm/", "data/futures/um/"]
    _, folders, marker, truncated = listed(get(f"/?prefix={SPOT_1M[:-3]}&delimiter=/&max-keys=5"))
    assert len(folders) == 5
    assert (marker, truncated) == (folders[-1], True)
    _, rest, _, truncated = listed(get(f"/?prefix={SPOT_1M[:-3]}&delimiter=/&marker={marker}"))
    assert not truncated
    assert {folder.split("/")[-2] for folder in folders + rest} == {
        "1s", "1m", "3m", "5m", "15m", "30m", "1h", "2h", "4h", "6h", "8h", "12h", "1d",
    }  # fmt: skip
    sandbox.set_time(datetime(2026, 3, 1, tzinfo=UTC))
    _, folders, _, _ = listed(get("/?prefix=data/spot/daily/aggTrades/&delimiter=/"))
    assert [folder.split("/")[-2] for folder in folders] == [
        "BNBUSDT", "BTCUSDT", "ETHUSDT", "LUNAUSDT", "SOLUSDT", "币安人生USDT",
    ]  # fmt: skip


def test_listing_and_answer_agree(get: Get) -> None:
    key = f"{SPOT_1M}BTCUSDT-1m-2025-02-03.zip"
    answer = get(f"/{key}")
    contents = ET.fromstring(get(f"/?prefix={key}").content).find(f"{NAMESPACE}Contents")
    assert contents is not None
    shown = {name: contents.findtext(f"{NAMESPACE}{name}") for name in ("Key", "ETag", "Size", "LastModified")}
    modified = parsedate_to_datetime(answer.headers["Last-Modified"])
    assert shown == {
        "Key": key,
        "ETag": answer.headers["ETag"],
        "Size": answer.headers["Content-Length"],
        "LastModified": f"{modified:%Y-%m-%dT%H:%M:%S.000Z}",
    }


def test_a_chinese_name_is_served(get: Get, sandbox: Sandbox) -> None:
    sandbox.set_time(NOW.replace(year=2026))
    path = "/data/spot/daily/klines/币安人生USDT/1h/币安人生USDT-1h-2026-02-01.zip"
    answer = get(path)
    assert len(csv_rows(answer.content)) == 24
    assert get(f"{path}.CHECKSUM").text.split() == [sha256(answer.content), "币安人生USDT-1h-2026-02-01.zip"]
