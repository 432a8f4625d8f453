"""Today, through ``market-data sync``: what is new is all that is asked for, and a day that is over becomes final."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pytest
from click.testing import CliRunner

from market_data_pipeline.cli import main
from market_data_pipeline.defs.keys import asset_key_of
from market_data_pipeline.defs.platform.home import open_instance
from market_data_pipeline.lake import parquet
from market_data_pipeline.lake.checksums import content_sha256
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.ledger import Ledger
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.sandbox import LoggedRequest, Sandbox
from market_data_pipeline.settings import PREFIX
from market_data_pipeline_tests.support.world import World, agg_trades, klines, symbols_with

pytestmark = pytest.mark.slow

TODAY = date(2026, 3, 5)
UNIVERSE = """\
collect:
  - market: spot
    symbols: [BTCUSDT]
    klines: {intervals: [1m], from: 2026-03-05}
    aggTrades: {from: 2026-03-05}
  - market: um
    symbols: [BTCUSDT]
    aggTrades: {from: 2026-03-05}
"""
LOCK = """\
spot:
  BTCUSDT: [{from: 2017-08-17, until: null}]
um:
  BTCUSDT: [{from: 2019-09-08, until: null}]
"""
CANDLES = klines("BTCUSDT", "1m")
TRADES = (agg_trades("BTCUSDT"), agg_trades("BTCUSDT", "um"))
KEYS = (CANDLES, *TRADES)
REST = {"spot": "/api/v3/", "um": "/fapi/v1/"}


class Owner:
    """Somebody who runs ``market-data sync`` from time to time."""

    def __init__(self, world: World) -> None:
        self.world = world

    def sync(self, moment: str, root: Path | None = None) -> list[LoggedRequest]:
        """Sync at a moment; return what was asked of Binance."""
        root = root or self.world.root / "data"
        root.mkdir(exist_ok=True)
        (root / "universe.yaml").write_text(UNIVERSE)
        (root / "universe.lock.yaml").write_text(LOCK)
        own = {"DIR": root, "UNIVERSE": root / "universe.yaml", "BUDGET_DIR": root / "budget"}
        settings = {f"{PREFIX}{name}": str(value) for name, value in own.items()}
        # The command names its home in the environment, as a process of its own may.
        before = dict(os.environ)
        self.world.at(moment)
        self.world.forget()
        try:
            result = CliRunner().invoke(main, ["sync"], env={**self.world.sandbox.settings_env(), **settings})
        finally:
            os.environ.clear()
            os.environ.update(before)
        assert result.exit_code == 0, result.output
        return [request for request in self.world.sandbox.requests if not request.path.endswith("/time")]

    def rows(self, key: SeriesKey, day: date, root: Path | None = None) -> pa.Table:
        return parquet.read_table(Layout(root or self.world.root / "data").file(key, day))

    def final(self, day: date) -> set[bool]:
        layout = Layout(self.world.root / "data")
        return {Ledger.read(layout.ledger(key)).rows[day].final for key in KEYS}


@pytest.fixture
def owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Owner]:
    """With some pages of trades a day."""
    with Sandbox(symbols=symbols_with(3_000)) as sandbox:
        yield Owner(World(tmp_path, sandbox, monkeypatch))


@pytest.fixture
def instance(owner: Owner, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    """Dagster's records of the owner's data folder."""
    monkeypatch.setenv("DAGSTER_HOME", str(owner.world.root / "data" / "dagster"))
    monkeypatch.setenv("MARKET_DATA_DIR", str(owner.world.root / "data"))
    with open_instance(Layout(owner.world.root / "data")) as instance:
        yield instance


def rest(requests: list[LoggedRequest], key: SeriesKey) -> list[dict[str, str]]:
    """The queries that a series' REST endpoint was asked."""
    path = f"{REST[key.market]}{'klines' if key.interval else 'aggTrades'}"
    return [request.query for request in requests if request.path == path]


def last_key(table: pa.Table, column: str) -> int:
    return int(table.column(column).cast(pa.int64())[-1].as_py())


def newest(instance: dg.DagsterInstance, key: SeriesKey, day: date) -> dg.AssetMaterialization:
    """The newest materialization of a day on record."""
    wanted = dg.AssetRecordsFilter(asset_key=asset_key_of(key), asset_partitions=[day.isoformat()])
    found = instance.fetch_materializations(wanted, limit=1).records[0].asset_materialization
    assert found is not None
    return found


def test_later_syncs_request_new_rows_and_equal_a_full_fetch(
    owner: Owner, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    owner.sync("2026-03-05T12:00:30")
    asked = owner.sync("2026-03-05T12:00:40")
    # No candle has closed since; only trades can have come.
    assert [request.path for request in asked if request.path.startswith("/data/")] == []
    assert {request.path.rsplit("/", 1)[-1] for request in asked} <= {"aggTrades", "klines"}
    for key in TRADES:
        assert all("fromId" in query for query in rest(asked, key))
    first = {key: owner.rows(key, TODAY) for key in KEYS}

    asked = owner.sync("2026-03-05T12:20:30")

    assert [request.path for request in asked if request.path.startswith("/data/")] == []
    (query,) = rest(asked, CANDLES)
    assert query["startTime"] == str(last_key(first[CANDLES], "open_time") // 1000 + 60_000)
    assert query["limit"] == "21"  # twenty that have closed and one that has not
    for key in TRADES:
        (query,) = rest(asked, key)
        assert query["fromId"] == str(last_key(first[key], "agg_trade_id") + 1)
    assert len(asked) == len(KEYS)

    fresh = tmp_path / "fresh"
    owner.sync("2026-03-05T12:20:30", fresh)
    for key in KEYS:
        extended, whole = owner.rows(key, TODAY), owner.rows(key, TODAY, fresh)
        assert extended.num_rows > first[key].num_rows
        assert extended.equals(whole), key
        on_record = newest(instance, key, TODAY).metadata
        assert on_record["action"].value == "extended"
        assert on_record["dagster/partition_row_count"].value == extended.num_rows
        assert on_record["content sha256"].value == content_sha256(extended)


def test_day_becomes_final_after_midnight_and_equals_its_archive(
    owner: Owner, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    owner.sync("2026-03-05T23:59:10")
    assert owner.final(TODAY) == {False}
    assert owner.rows(CANDLES, TODAY).num_rows == 1439

    owner.sync("2026-03-06T00:01:05")
    assert owner.final(TODAY) == {False}
    assert owner.rows(CANDLES, TODAY).num_rows == 1440
    assert owner.rows(CANDLES, date(2026, 3, 6)).num_rows == 1
    assert newest(instance, CANDLES, TODAY).metadata["action"].value == "extended"

    asked = owner.sync("2026-03-06T10:00:00")
    assert owner.final(TODAY) == {True}
    zips = [request.path for request in asked if request.path.endswith(".zip")]
    assert sorted(zips) == sorted(f"/{key.archive_daily(TODAY)}" for key in KEYS)
    fresh = tmp_path / "fresh"
    owner.sync("2026-03-06T10:00:00", fresh)
    for key in KEYS:
        record = parquet.read_provenance(Layout(fresh).file(key, TODAY))
        assert [part.source for part in record.parts] == ["archive_daily"]
        assert owner.rows(key, TODAY).equals(owner.rows(key, TODAY, fresh)), key
        on_record = newest(instance, key, TODAY).metadata
        assert (on_record["state"].value, on_record["source"].value) == ("final", "archive_daily")

    assert [path for path in (r.path for r in owner.sync("2026-03-06T10:00:20")) if str(TODAY) in path] == []
