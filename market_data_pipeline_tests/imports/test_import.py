"""``market-data import``: what somebody with an older cache sees, and what the lake has afterwards."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable, Iterable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from market_data_pipeline import MarketData as Client
from market_data_pipeline.errors import MalformedError, UsageError
from market_data_pipeline.imports.journal import journals
from market_data_pipeline.ingest.store import DayStore
from market_data_pipeline.lake import parquet
from market_data_pipeline.lake.ledger import Ledger
from market_data_pipeline.model.datasets import spec_of
from market_data_pipeline.model.provenance import Source
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.sandbox import WrongChecksum
from market_data_pipeline.settings import PREFIX
from market_data_pipeline.sources.binance.archive import ArchiveClient
from market_data_pipeline.sources.binance.zip_reader import read_zip
from market_data_pipeline_tests.support.shell import MarketData, shell
from market_data_pipeline_tests.support.world import World, agg_trades, days, klines, utc

BTC = klines("BTCUSDT", "1h")
TRADES = agg_trades("ETHUSDT", "um")
DAY = date(2026, 2, 4)
FEBRUARY = days("2026-02-03", "2026-02-05")

UNIVERSE = """\
collect:
  - market: spot
    symbols: [BTCUSDT]
    klines: {intervals: [1h], from: 2026-01-01}
"""
LOCK = "spot:\n  BTCUSDT: [{from: 2017-08-17, until: null}]\n"


@pytest.fixture
def market_data(world: World, monkeypatch: pytest.MonkeyPatch) -> MarketData:
    """Run the command in a world of its own: today is 2026-03-05."""
    return shell(world, monkeypatch, UNIVERSE, LOCK)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    folder = tmp_path / "cache"
    folder.mkdir()
    return folder


def zip_of(world: World, key: SeriesKey, day: date) -> bytes:
    client = ArchiveClient(world.settings)
    try:
        file = client.fetch(key.archive_daily(day))
    finally:
        client.close()
    assert file is not None
    return file.data


def rows_of(world: World, key: SeriesKey, wanted: Iterable[date]) -> pa.Table:
    """The archive's rows of some days."""
    return pa.concat_tables(
        read_zip(zip_of(world, key, day), key, Path(key.archive_daily(day)).stem, day, day) for day in wanted
    )


def put(path: Path, write: Callable[[Path], object], written: str = "2026-03-04T00:00:00") -> Path:
    """Write a file of a cache, at this time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path)
    at = utc(written).timestamp()
    os.utime(path, (at, at))
    return path


def put_parquet(path: Path, table: pa.Table, **more: Any) -> Path:
    return put(path, lambda one: pq.write_table(table, one), **more)


def put_zip(world: World, cache: Path, key: SeriesKey, day: date) -> Path:
    path = cache / key.archive_daily(day)
    put(path, lambda one: one.write_bytes(zip_of(world, key, day)))
    return path


def without_labels(table: pa.Table) -> pa.Table:
    return table.drop_columns([name for name in ("symbol", "interval") if name in table.column_names])


def report(market_data: MarketData, cache: Path, *options: str, code: int = 0) -> Any:
    result = market_data("import", str(cache), "--json", *options)
    assert result.exit_code == code, result.output
    found = json.loads(result.stdout)
    files = [one for one in found if one["state"] != "skipped"]
    identity = next((one["import"] for one in found), None)
    return {"files": files, "skipped": [one for one in found if one not in files], "identity": identity}


def state(root: Path) -> dict[str, bytes]:
    """All files of the lake and its ledgers."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for part in ("lake", "ledger")
        for path in (root / part).rglob("*.parquet")
    }


def is_imported(world: World, key: SeriesKey, day: date) -> bool:
    row = world.ledger(key).get(day)
    assert row is not None
    assert row.outcome == "held"
    assert row.final is (row.source != Source.IMPORT)
    return row.source == Source.IMPORT


def test_kept_zip_becomes_final_by_one_checksum(world: World, market_data: MarketData, cache: Path) -> None:
    path = put_zip(world, cache, BTC, DAY)
    before = path.read_bytes(), path.stat().st_mtime_ns
    world.forget()
    [file] = report(market_data, cache)["files"]
    assert (file["state"], file["final"], file["rows"]) == ("imported", 1, 24)
    assert [one for one in world.asked() if one.endswith((".zip", ".CHECKSUM"))] == [
        f"/{BTC.archive_daily(DAY)}.CHECKSUM"
    ]
    assert not is_imported(world, BTC, DAY)
    stored = world.table(BTC, str(DAY))
    row = world.ledger(BTC).get(DAY)
    # The lake has what a download would have stored, so nothing is fetched again.
    world.layout.file(BTC, DAY).unlink()
    world.one(BTC, str(DAY))
    assert world.table(BTC, str(DAY)).equals(stored)
    fetched = world.ledger(BTC).get(DAY)
    assert row is not None
    assert fetched is not None
    for name in ("content_sha256", "archive_sha256", "etag", "source", "checksum", "findings"):
        assert getattr(row, name) == getattr(fetched, name)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


def test_zip_that_differs_from_its_checksum_is_refused(world: World, market_data: MarketData, cache: Path) -> None:
    path = put_zip(world, cache, BTC, DAY)
    path.with_name(f"{path.name}.CHECKSUM").write_text(f"{'0' * 64}  {path.name}\n")
    [file] = report(market_data, cache, code=1)["files"]
    assert file["state"] == "refused"
    assert "does not match its .CHECKSUM" in file["reason"]
    assert not state(world.layout.root)


def test_zip_that_was_replaced_since_is_refused(world: World, market_data: MarketData, cache: Path) -> None:
    put_zip(world, cache, BTC, DAY)
    world.sandbox.faults.add(WrongChecksum(path=r"BTCUSDT-1h-2026-02-04\.zip"))
    [file] = report(market_data, cache, code=1)["files"]
    assert "The archive publishes another checksum" in file["reason"]
    assert not state(world.layout.root)


def test_symbol_layout_becomes_provisional(world: World, market_data: MarketData, cache: Path) -> None:
    table = without_labels(rows_of(world, BTC, FEBRUARY))
    put_parquet(cache / "BTCUSDT" / "1h.parquet", table.rename_columns({"open_time": "timestamp", "count": "trades"}))
    assert "Pass --market" in report(market_data, cache, code=1)["files"][0]["reason"]
    found = report(market_data, cache, "--market", "spot")
    [file] = found["files"]
    assert (file["state"], file["provisional"], file["final"]) == ("imported", 3, 0)
    assert all(is_imported(world, BTC, day) for day in FEBRUARY)
    [part] = parquet.read_provenance(world.layout.file(BTC, DAY)).parts
    assert part.url.startswith(f"import:{found['identity']}/BTCUSDT/1h.parquet?sha256=")
    # A second run changes nothing.
    before = state(world.layout.root)
    again = report(market_data, cache, "--market", "spot")
    assert (again["identity"], again["files"][0]["state"]) == (None, "known")
    assert state(world.layout.root) == before
    # The archive wins.
    world.ingest(BTC, FEBRUARY)
    assert not any(is_imported(world, BTC, day) for day in FEBRUARY)
    assert report(market_data, cache, "--market", "spot")["files"][0]["differing"] == 0


@pytest.mark.parametrize("form", ["arrow", "parquet inside", "feather"])
def test_period_trees_are_imported(world: World, market_data: MarketData, cache: Path, form: str) -> None:
    table = without_labels(rows_of(world, BTC, [DAY]))
    zoned = table.set_column(0, "open_time", table["open_time"].cast(pa.timestamp("ns", "UTC")))
    path = cache / "binance" / "spot" / "klines" / "daily" / "BTCUSDT" / "1h" / "20260204.arrow"

    def write(one: Path) -> None:
        if form == "parquet inside":
            pq.write_table(zoned, one)
        elif form == "feather":
            pa.feather.write_feather(zoned, str(one))
        else:
            with pa.ipc.new_file(str(one), zoned.schema) as writer:
                writer.write_table(zoned)

    put(path, write)
    assert report(market_data, cache)["files"][0]["provisional"] == 1
    assert without_labels(world.table(BTC, str(DAY))).equals(table)


def test_backfilled_trades_are_imported(world: World, market_data: MarketData, cache: Path) -> None:
    table = rows_of(world, TRADES, [DAY])
    rest = {column.name: column.rest for column in spec_of(TRADES).columns}
    old = without_labels(table).rename_columns(rest).append_column("M", pc.equal(table["agg_trade_id"], pa.scalar(-1)))
    old = old.set_column(old.column_names.index("T"), "T", pc.divide(old["T"].cast(pa.int64()), 1000))
    put_parquet(cache / f"backfill_{DAY}.parquet", old)
    assert "--symbol" in report(market_data, cache, "--market", "um", code=1)["files"][0]["reason"]
    [file] = report(market_data, cache, "--market", "um", "--symbol", "ETHUSDT")["files"]
    assert (file["state"], file["rows"]) == ("imported", table.num_rows)
    assert world.table(TRADES, str(DAY)).equals(table)


def test_undo_restores_every_byte(world: World, market_data: MarketData, cache: Path) -> None:
    first, middle, last = FEBRUARY
    world.one(BTC, str(last))
    table = rows_of(world, BTC, [first])
    put_parquet(cache / "BTCUSDT" / "1h.parquet", without_labels(table))
    report(market_data, cache, "--market", "spot")
    before = state(world.layout.root)
    put_zip(world, cache, BTC, first)  # makes a provisional day final
    put_zip(world, cache, BTC, middle)
    found = report(market_data, cache, "--market", "spot", "--layout", "archive")
    assert sum(file["final"] for file in found["files"]) == 2
    assert state(world.layout.root) != before
    result = market_data("import", "--undo", found["identity"])
    assert (result.exit_code, "2 days of import" in result.stdout) == (0, True)
    assert state(world.layout.root) == before
    assert market_data("status").exit_code in (0, 3)
    again = json.loads(market_data("import", "--undo", found["identity"], "--json").stdout)
    assert (again[0]["removed"], again[0]["stay"]) == (0, 0)


def test_undo_leaves_no_trace_in_a_new_lake(world: World, market_data: MarketData, cache: Path) -> None:
    put_parquet(cache / "BTCUSDT" / "1h.parquet", without_labels(rows_of(world, BTC, [DAY])))
    found = report(market_data, cache, "--market", "spot")
    market_data("import", "--undo", found["identity"])
    assert not state(world.layout.root)
    assert not (world.layout.root / "lake").exists()


def test_undo_keeps_days_that_the_archive_replaced(world: World, market_data: MarketData, cache: Path) -> None:
    put_parquet(cache / "BTCUSDT" / "1h.parquet", without_labels(rows_of(world, BTC, FEBRUARY)))
    found = report(market_data, cache, "--market", "spot")
    world.one(BTC, str(DAY))
    [undone] = json.loads(market_data("import", "--undo", found["identity"], "--json").stdout)
    assert (undone["removed"], undone["stay"]) == (2, 1)
    assert sorted(world.ledger(BTC).rows) == [DAY]


def test_undo_names_the_imports_that_there_are(market_data: MarketData) -> None:
    result = market_data("import", "--undo", "x")
    assert result.exit_code == 2
    assert "No import is called 'x'. Nothing was imported yet." in result.stderr
    assert market_data("import").exit_code == 2


def test_dry_run_stores_nothing(world: World, market_data: MarketData, cache: Path) -> None:
    put_zip(world, cache, BTC, DAY)
    put_parquet(cache / "BTCUSDT" / "1h.parquet", without_labels(rows_of(world, BTC, FEBRUARY)))
    world.forget()
    found = report(market_data, cache, "--market", "spot", "--dry-run")
    assert [file["state"] for file in found["files"]] == ["imported", "imported"]
    assert not world.asked()
    assert not state(world.layout.root)
    assert not (world.layout.root / "imports").exists()


def test_candles_without_counts_are_compared(world: World, market_data: MarketData, cache: Path) -> None:
    world.ingest(BTC, FEBRUARY[:2])
    before = state(world.layout.root)
    table = rows_of(world, BTC, FEBRUARY).select(["open_time", "open", "high", "low", "close", "volume"])
    close = table["close"].to_numpy().copy()
    close[5] += 1
    table = table.set_column(4, "close", pa.array(close)).rename_columns({"open_time": "date"})
    put(cache / "BTC_USDT-1h.feather", lambda one: pa.feather.write_feather(table, str(one)))
    [file] = report(market_data, cache)["files"]
    assert file["state"] == "compared"
    assert (file["compared"], file["differing"]) == (48, 1)
    assert "2026-02-03 05:00:00: close is" in file["example"]
    assert state(world.layout.root) == before


def test_unzipped_csv_becomes_provisional(world: World, market_data: MarketData, cache: Path) -> None:
    path = cache / BTC.archive_daily(DAY)
    with zipfile.ZipFile(io.BytesIO(zip_of(world, BTC, DAY))) as opened:
        data = opened.read(f"{path.stem}.csv")
    put(path.with_suffix(".csv"), lambda one: one.write_bytes(data))
    put(cache / BTC.archive_daily(FEBRUARY[0]).replace(".zip", ".csv"), lambda one: one.write_bytes(data))
    wrong, good = report(market_data, cache, code=1)["files"]
    assert (good["state"], good["provisional"]) == ("imported", 1)
    assert "rows of other days" in wrong["reason"]
    assert is_imported(world, BTC, DAY)


def test_monthly_zip_becomes_final(world: World, market_data: MarketData, cache: Path) -> None:
    client = ArchiveClient(world.settings)
    file = client.fetch(BTC.archive_monthly(DAY))
    client.close()
    assert file is not None
    put(cache / BTC.archive_monthly(DAY), lambda one: one.write_bytes(file.data))
    [found] = report(market_data, cache)["files"]
    assert (found["final"], found["rows"]) == (28, 28 * 24)
    world.forget()
    assert report(market_data, cache)["files"][0]["state"] == "known"
    assert not world.asked()


def test_zip_stays_provisional_without_the_archive(
    world: World, market_data: MarketData, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_zip(world, cache, BTC, DAY)
    with monkeypatch.context() as patch:
        patch.setenv(f"{PREFIX}VISION_URL", "http://127.0.0.1:1")
        [file] = report(market_data, cache)["files"]
    assert file["provisional"] == 1
    assert "the archive did not answer" in file["notes"]
    assert is_imported(world, BTC, DAY)
    [file] = report(market_data, cache)["files"]
    assert (file["state"], file["final"]) == ("imported", 1)


def test_killed_import_can_be_undone(
    world: World, market_data: MarketData, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kill it after the first of three days was stored, before ledger and report are written."""
    put_parquet(cache / "BTCUSDT" / "1h.parquet", without_labels(rows_of(world, BTC, FEBRUARY)))
    put_day = DayStore.put

    def killed(store: DayStore, day: date, *rest: Any) -> Any:
        if day != FEBRUARY[0]:
            raise KeyboardInterrupt
        return put_day(store, day, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(DayStore, "put", killed)
        patch.setattr(Ledger, "write", lambda *_: None)
        assert market_data("import", str(cache), "--market", "spot").exit_code != 0
    assert list(state(world.layout.root)) == [BTC.file(FEBRUARY[0])]
    [identity] = journals(world.layout)
    [undone] = json.loads(market_data("import", "--undo", identity, "--json").stdout)
    assert (undone["removed"], undone["stay"]) == (1, 0)
    assert not state(world.layout.root)


def test_old_cache_is_read_without_an_import(world: World, market_data: MarketData, cache: Path) -> None:
    table = without_labels(rows_of(world, BTC, FEBRUARY))
    put_parquet(cache / "BTCUSDT" / "1h" / "2026-02-03.arrow", table.slice(0, 24))
    put_parquet(cache / "BTCUSDT" / "1h" / "202602.arrow", table)
    market = Client(world.layout.root)
    assert market.read_old(cache, "BTCUSDT", "1h", market="spot").equals(table.combine_chunks())
    with pytest.raises(UsageError, match="has no file of BTCUSDT 1m"):
        market.read_old(cache, "BTCUSDT", "1m", market="spot")
    with pytest.raises(UsageError, match="Pass --market"):
        market.read_old(cache, "BTCUSDT", "1h")
    path = cache / "BTCUSDT" / "1h" / "202602.arrow"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(MalformedError, match=r"BTCUSDT/1h/202602.arrow: It is damaged or cut short"):
        market.read_old(cache, "BTCUSDT", "1h", market="spot")
    assert not state(world.layout.root)


# --- bad input --------------------------------------------------------------------------------------------------------


def _moved(table: pa.Table, hours: float) -> pa.Table:
    at = pc.add(table["open_time"], pa.scalar(timedelta(hours=hours), pa.duration("us")))
    return table.set_column(0, "open_time", at)


BAD: dict[str, tuple[Callable[[pa.Table], pa.Table], str]] = {
    "local times": (lambda table: _moved(table, 8), "another time zone"),
    "half an hour off": (lambda table: _moved(table, 0.5), "do not begin on the grid"),
    "another interval": (lambda table: table.take(list(range(0, table.num_rows, 2))), "7200 s apart, not 1h"),
    "times of no unit": (
        lambda table: table.set_column(0, "open_time", pa.array([5] * table.num_rows)),
        "2001 to 2099",
    ),
    "another symbol": (lambda table: table.append_column("symbol", [["ETHUSDT"] * table.num_rows]), "says ETHUSDT"),
    "few columns": (lambda table: table.select(["open_time", "open"]), "neither all columns"),
    "no rows": (lambda table: table.slice(0, 0), "It has no rows."),
    "words for prices": (
        lambda table: table.set_column(1, "open", pa.array(["x"] * table.num_rows)),
        "column open has values that are not double",
    ),
    "half a row": (
        lambda table: table.set_column(1, "open", pa.array([None, *range(1, table.num_rows)], pa.float64())),
        "A row has no open",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_wrong_rows_are_refused_with_words(world: World, market_data: MarketData, cache: Path, name: str) -> None:
    change, words = BAD[name]
    table = without_labels(rows_of(world, BTC, FEBRUARY))
    put_parquet(cache / "BTCUSDT" / "1h.parquet", change(table))
    [file] = report(market_data, cache, "--market", "spot", code=1)["files"]
    assert file["state"] == "refused"
    assert words in file["reason"]
    assert not state(world.layout.root)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
@pytest.mark.parametrize("name", ["BTCUSDT/1h.parquet", "BTCUSDT/1h/2026-02-04.arrow", "BTC_USDT-1h.json.gz"])
def test_half_a_file_is_refused(world: World, market_data: MarketData, cache: Path, name: str, share: float) -> None:
    table = without_labels(rows_of(world, BTC, [DAY]))
    path = cache / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".arrow":
        pa.feather.write_feather(table, str(path))
    else:
        pq.write_table(table, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    [file] = report(market_data, cache, "--market", "spot", code=1)["files"]
    assert file["state"] == "refused"
    assert file["reason"].startswith(("It ", "Its JSON "))


def test_rows_of_another_symbol_are_found_by_the_lake(world: World, market_data: MarketData, cache: Path) -> None:
    world.one(BTC, str(DAY))
    other = klines("ETHUSDT", "1h")
    put_parquet(cache / "BTCUSDT" / "1h.parquet", without_labels(rows_of(world, other, FEBRUARY)))
    before = state(world.layout.root)
    [file] = report(market_data, cache, "--market", "spot", code=1)["files"]
    assert "another symbol, market or time zone" in file["reason"]
    assert state(world.layout.root) == before


def test_unsorted_and_doubled_rows_are_stored_once(world: World, market_data: MarketData, cache: Path) -> None:
    table = without_labels(rows_of(world, BTC, FEBRUARY))
    mixed = np.r_[np.random.default_rng(1).permutation(table.num_rows), [3, 40]]
    put_parquet(cache / "BTCUSDT" / "1h.parquet", table.take(mixed))
    report(market_data, cache, "--market", "spot")
    assert without_labels(pa.concat_tables(world.table(BTC, str(day)) for day in FEBRUARY)).equals(
        table.combine_chunks()
    )


def test_day_with_two_versions_of_a_row_is_left_out(world: World, market_data: MarketData, cache: Path) -> None:
    table = without_labels(rows_of(world, BTC, FEBRUARY))
    wrong = table.slice(0, 1).set_column(4, table.schema.field("close"), pa.array([1.5]))
    put_parquet(cache / "BTCUSDT" / "1h.parquet", pa.concat_tables([wrong, table]))
    [file] = report(market_data, cache, "--market", "spot")["files"]
    assert file["provisional"] == 2
    assert "2026-02-03 is not stored: two different rows" in file["notes"]


def test_newest_candle_may_be_unfinished(world: World, market_data: MarketData, cache: Path) -> None:
    table = without_labels(rows_of(world, BTC, [DAY])).slice(0, 11)
    put_parquet(cache / "BTCUSDT" / "1h.parquet", table, written="2026-02-04T10:20:00")
    [file] = report(market_data, cache, "--market", "spot")["files"]
    assert "2026-02-04 10:00:00) is left out" in file["notes"]
    assert world.table(BTC, str(DAY)).num_rows == 10


def test_missing_rows_stay_missing(world: World, market_data: MarketData, cache: Path) -> None:
    table = without_labels(rows_of(world, BTC, [DAY]))
    empty = np.isin(np.arange(24), [5, 6])
    for at, name in enumerate(table.column_names):
        if pa.types.is_floating(table.schema.field(name).type):
            table = table.set_column(at, name, pa.array(np.where(empty, np.nan, table[name].to_numpy())))
    table = table.set_column(8, "count", pc.if_else(pa.array(empty), None, table["count"]))
    table = table.set_column(6, "close_time", pc.if_else(pa.array(empty), None, table["close_time"]))
    put_parquet(cache / "BTCUSDT" / "1h.parquet", table)
    [file] = report(market_data, cache, "--market", "spot")["files"]
    assert "2 rows without values are left out." in file["notes"]
    assert world.table(BTC, str(DAY)).num_rows == 22
    row = world.ledger(BTC).get(DAY)
    assert row is not None
    assert row.missing == 2


def test_trades_that_end_early_are_refused(world: World, market_data: MarketData, cache: Path) -> None:
    table = rows_of(world, TRADES, [DAY])
    put_parquet(cache / "ETHUSDT" / f"backfill_{DAY}.parquet", without_labels(table).slice(0, table.num_rows // 2))
    [file] = report(market_data, cache, "--market", "um", code=1)["files"]
    assert "long before midnight" in file["reason"]


def test_links_that_leave_the_folder_are_skipped(world: World, market_data: MarketData, cache: Path) -> None:
    outside = put_parquet(world.root / "outside" / "1h.parquet", without_labels(rows_of(world, BTC, [DAY])))
    (cache / "BTCUSDT").mkdir()
    (cache / "BTCUSDT" / "1h.parquet").symlink_to(outside)
    (cache / "ETHUSDT").symlink_to(outside.parent)
    os.mkfifo(cache / "BTC_USDT-1h.json")
    found = report(market_data, cache, "--market", "spot")
    assert not found["files"]
    assert {one["path"]: one["reason"] for one in found["skipped"]} == {
        "BTCUSDT/1h.parquet": "a link that leaves the folder",
        "ETHUSDT": "a link that leaves the folder",
        "BTC_USDT-1h.json": "not a regular file",
    }


def test_data_folder_is_no_cache(world: World, market_data: MarketData) -> None:
    world.one(BTC, str(DAY))
    result = market_data("import", str(world.layout.root))
    assert result.exit_code == 2
    assert "is the data folder itself" in result.stderr
