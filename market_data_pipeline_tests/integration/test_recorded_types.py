"""Recorded files of other data types than klines and trades, read as Binance has them, value by value."""

from __future__ import annotations

import io
import json
import zipfile
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from market_data_pipeline.model.provenance import ChecksumStatus
from market_data_pipeline.model.series import EXCHANGE, DataType, Market, SeriesKey
from market_data_pipeline.sandbox import Sandbox
from market_data_pipeline.sources.binance.zip_reader import read_zip, table_from_rest
from market_data_pipeline_tests.support.world import World, days

FUNDING = SeriesKey(EXCHANGE, Market.UM, DataType.FUNDING_RATE, "BTCUSDT")


NAUTILUS = "nautechsystems__nautilus_trader"


@pytest.mark.parametrize("price", ["mark", "index"])
def test_recorded_prices_of_rest_are_read_value_by_value(realdata: Path, price: str) -> None:
    rows = json.loads((realdata / "rest" / NAUTILUS / f"http_futures_market_{price}_price_klines.json").read_text())
    key = SeriesKey(EXCHANGE, Market.UM, DataType(f"{price}PriceKlines"), "BTCUSDT", "1m")
    table = table_from_rest(rows, key, 1_000)
    found = [
        [*(int(row["open_time"].timestamp() * 1e3),), *(row[name] for name in ("open", "high", "low", "close"))]
        for row in table.cast(_in_utc(table.schema)).to_pylist()
    ]
    assert found == [[row[0], *map(float, row[1:5])] for row in rows]


def test_recorded_funding_of_rest_is_read_value_by_value(realdata: Path) -> None:
    recorded = json.loads((realdata / "rest" / "thrasher-corp__gocryptotrader" / "http.json").read_text())
    answers = recorded.get("routes", recorded)["/fapi/v1/fundingRate"]["GET"]
    rows = next(one["data"] for one in answers if one["queryString"] == "symbol=BTCUSDT")
    table = table_from_rest(rows, FUNDING, 1_000)
    assert [(at, rate) for at, _, rate in values(table)] == [
        (row["fundingTime"] * 1_000, float(row["fundingRate"])) for row in rows
    ]
    assert {hours for _, hours, _ in values(table)} == {8}


def _in_utc(schema: pa.Schema) -> pa.Schema:
    return pa.schema(
        [field.with_type(pa.timestamp("us", "UTC")) if pa.types.is_timestamp(field.type) else field for field in schema]
    )


@pytest.fixture
def samples(realdata: Path) -> Path:
    folder = realdata / "datatypes"
    if not folder.is_dir():
        pytest.skip("the recorded samples of other data types are not here")
    return folder


def zipped(stem: str, text: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(f"{stem}.csv", text)
    return file.getvalue()


def independently(text: str) -> list[list[str]]:
    return [line.split(",") for line in text.splitlines()[1:]]


def values(table: pa.Table) -> list[tuple[Any, ...]]:
    times = table.column("calc_time").cast(pa.int64()).to_pylist()
    hours, rates = (table.column(name).to_pylist() for name in ("funding_interval_hours", "last_funding_rate"))
    return list(zip(times, hours, rates, strict=True))


def as_values(rows: list[list[str]]) -> list[tuple[Any, ...]]:
    return [(int(at) * 1_000, int(hours), float(Decimal(rate))) for at, hours, rate in rows]


@pytest.mark.parametrize(("name", "month"), [("BTCUSDT-fundingRate-2026-08", "2026-08")])
def test_recorded_funding_rows_are_read_value_by_value(samples: Path, name: str, month: str) -> None:
    text = (samples / "Replikanti__mie" / f"{name}.csv").read_text()
    first, last = date.fromisoformat(f"{month}-01"), date.fromisoformat(f"{month}-31")
    table = read_zip(zipped(name, text), FUNDING, name, first, last)
    assert values(table) == as_values(independently(text))


def test_recorded_exponents_are_read_value_by_value(samples: Path) -> None:
    text = (samples / "Replikanti__mie" / "BTCUSDT-fundingRate-exponent.csv").read_text()
    table = read_zip(zipped("any", text), FUNDING, "any", date(2025, 10, 1), date(2026, 12, 31))
    assert values(table) == as_values(independently(text))
    assert min(rate for _, _, rate in values(table)) == -3.6e-7


def test_recorded_month_fills_its_days(samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The zip and its checksum, byte for byte as Binance published them, go through the whole ingest."""
    mirror = tmp_path / "mirror" / "data" / "futures" / "um" / "monthly" / "fundingRate" / "BTCUSDT"
    mirror.mkdir(parents=True)
    for suffix in ("zip", "zip.CHECKSUM"):
        recorded = samples / "tommy-ca__binance_datatool" / f"BTCUSDT-fundingRate-2026-04.{suffix}"
        (mirror / recorded.name).write_bytes(recorded.read_bytes())
    with zipfile.ZipFile(mirror / "BTCUSDT-fundingRate-2026-04.zip") as archive:
        rows = independently(archive.read(archive.namelist()[0]).decode())
    with Sandbox(mirror=tmp_path / "mirror") as sandbox:
        world = World(tmp_path / "data", sandbox, monkeypatch)
        world.at("2026-05-04T12:00")
        april = days("2026-04-01", "2026-04-30")
        results = world.ingest(FUNDING, april)
        found = [row for day in april for row in values(world.table(FUNDING, str(day)))]
    assert found == as_values(rows)
    assert len(rows) == 90
    assert {(one.row.final, one.row.checksum, one.row.verdicts) for one in results} == {
        (True, str(ChecksumStatus.VERIFIED), "")
    }
