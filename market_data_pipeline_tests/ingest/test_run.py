"""Days of a series come into the lake: from the archive, from REST, once, and never worse than before."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections import Counter
from collections.abc import Callable
from datetime import date
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from market_data_pipeline import clock
from market_data_pipeline.errors import DamagedFileError, SeriesBusyError, StorageError
from market_data_pipeline.ingest import from_archive, run
from market_data_pipeline.ingest.day_rows import DayRows
from market_data_pipeline.ingest.store import DayStore
from market_data_pipeline.lake import parquet, storage
from market_data_pipeline.lake.checksums import content_sha256
from market_data_pipeline.maintenance.flat_candles import classify_flat_candles
from market_data_pipeline.model.day import OtherArchive, after
from market_data_pipeline.model.needs import knows_archive, needs
from market_data_pipeline.model.outcomes import Action, DayFailure, DayOutcome
from market_data_pipeline.model.series import ListingSpans, Market, SeriesKey
from market_data_pipeline.sandbox import (
    CutBody,
    Damage,
    DamagedArchive,
    Delay,
    LateArchive,
    MarketOutage,
    MissingChecksum,
    MissingDay,
    MissingRows,
    Reset,
    SlowBody,
    Status,
    WrongChecksum,
)
from market_data_pipeline.sources.binance.archive import ArchiveClient
from market_data_pipeline_tests.support.world import Result, World, agg_trades, days, klines, utc

BTC = klines("BTCUSDT", "1m")
ETH_UM = klines("ETHUSDT", "1h", "um")
TRADES = agg_trades("BTCUSDT")


def outcome(result: DayOutcome | DayFailure) -> DayOutcome:
    assert isinstance(result, DayOutcome), result
    return result


def failure(result: DayOutcome | DayFailure) -> DayFailure:
    assert isinstance(result, DayFailure), result
    return result


# --- the plain way ------------------------------------------------------------------------------------------------


def test_day_from_the_archive_is_final_and_names_its_source(world: World) -> None:
    result = outcome(world.one(BTC, "2026-03-01"))
    assert (result.action, result.row.outcome, result.row.final, result.row.rows) == ("fetched", "held", True, 1440)
    record = parquet.read_provenance(world.layout.file(BTC, date(2026, 3, 1)))
    (part,) = record.parts
    assert (part.source, part.checksum, part.rows, part.first_row) == ("archive_daily", "verified", 1440, 0)
    assert part.url.endswith("/data/spot/daily/klines/BTCUSDT/1m/BTCUSDT-1m-2026-03-01.zip")
    assert all((part.sha256, part.etag, part.last_modified))
    table = world.table(BTC, "2026-03-01")
    assert record.content_sha256 == content_sha256(table)
    assert table.column("symbol").unique().to_pylist() == ["BTCUSDT"]
    assert table.column("interval").unique().to_pylist() == ["1m"]
    assert table.schema.field("open_time").type == pa.timestamp("us")
    assert world.ledger(BTC).rows[date(2026, 3, 1)] == result.row


def test_stored_days_are_reported_without_a_request(world: World) -> None:
    wanted = days("2026-02-27", "2026-03-02")
    first = world.ingest(BTC, wanted)
    world.forget()
    second = world.ingest(BTC, wanted)
    assert world.asked() == []
    assert [outcome(r).action for r in second] == [Action.HELD] * 4
    assert [r.row for r in second] == [r.row for r in first]


def test_results_come_in_the_order_of_days(world: World) -> None:
    wanted = days("2026-02-01", "2026-02-28")
    assert [r.day for r in world.ingest(ETH_UM, reversed(wanted))] == wanted


def test_a_run_over_a_whole_month_takes_the_monthly_zip_once(world: World) -> None:
    results = world.ingest(ETH_UM, days("2026-01-01", "2026-02-03"))
    assert {outcome(r).row.source for r in results[:31]} == {"archive_monthly"}
    assert {outcome(r).row.source for r in results[31:]} == {"archive_daily"}
    assert len(world.asked("/monthly/")) == 2  # the zip and its CHECKSUM
    assert len(world.asked("/daily/")) == 2 * 3


def test_days_without_a_monthly_zip_are_fetched_in_parallel(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    january = days("2026-01-01", "2026-01-31")
    world.set(download_threads=8)
    world.sandbox.faults.add(LateArchive(days=tuple(january), days_late=90, cadence="monthly", series="klines"))
    fetch_once, daily, eight = ArchiveClient._fetch_once, count(), threading.Barrier(8)

    def together(self: ArchiveClient, path: str, *rest: Any) -> Any:
        if "/daily/" in path and next(daily) < 8:
            eight.wait(timeout=60)  # each of the first eight has its slot, and waits for the others
        return fetch_once(self, path, *rest)

    monkeypatch.setattr(ArchiveClient, "_fetch_once", together)
    results = world.ingest(ETH_UM, january)
    assert [outcome(result).row.source for result in results] == ["archive_daily"] * 31
    assert next(daily) == 31


def test_day_incomplete_in_monthly_zip_comes_from_the_daily_zip(world: World) -> None:
    world.sandbox.faults.add(
        DamagedArchive(days=(date(2026, 1, 10),), damage=Damage.DUPLICATES, cadence="monthly", series="klines")
    )
    world.sandbox.faults.add(MissingDay(days=(date(2026, 1, 20),), cadence="monthly", series="klines"))
    results = {r.day: outcome(r).row for r in world.ingest(ETH_UM, days("2026-01-01", "2026-01-31"))}
    assert results[date(2026, 1, 20)].source == "archive_daily"
    assert {row.rows for row in results.values()} == {24}
    assert sum(row.source == "archive_monthly" for row in results.values()) >= 29


def test_days_outside_the_listing_are_reported_without_a_request(world: World) -> None:
    listing = ListingSpans(((date(2026, 3, 1), date(2026, 3, 2)),))
    results = world.ingest(BTC, days("2026-02-27", "2026-03-03"), listing)
    assert [outcome(r).action for r in results] == ["not_listed", "not_listed", "fetched", "fetched", "not_listed"]
    assert len(world.asked(".zip")) == 4


def test_day_before_an_unknown_listing_is_recognised(world: World) -> None:
    """No listing is recorded for the symbol."""
    result = outcome(world.one(klines("SOLUSDT", "1h"), "2018-01-05"))
    assert (result.action, result.row.outcome, result.row.final) == ("not_listed", "not_listed", True)


def test_trades_before_the_listing_cost_one_request(world: World) -> None:
    """Threads do not search hour by hour."""
    world.set(download_threads=4)
    world.sandbox.faults.add(Delay(path="^/fapi/", latency=0.2))  # all threads have the question by then
    results = world.ingest(agg_trades("SOLUSDT", "um"), days("2019-06-01", "2019-06-12"))
    assert {outcome(r).action for r in results} == {"not_listed"}
    assert len(world.asked("/fapi/")) == 1


def test_symbol_with_characters_unknown_to_dagster_is_ingested(world: World) -> None:
    world.at("2026-03-05T12:00:00")
    result = outcome(world.one(klines("币安人生USDT", "1h"), "2026-03-01"))
    assert result.row.rows == 24


# --- REST, today and becoming final -------------------------------------------------------------------------------


def test_day_missing_from_the_archive_is_provisional_from_rest(world: World) -> None:
    world.sandbox.faults.add(LateArchive(days=(date(2026, 3, 3),), days_late=5))
    result = outcome(world.one(BTC, "2026-03-03"))
    assert (result.row.source, result.row.final, result.row.rows) == ("rest", False, 1440)
    world.at("2026-03-09T12:00:00")
    final = outcome(world.one(BTC, "2026-03-03"))
    assert (final.row.source, final.row.final, final.row.rows) == ("archive_daily", True, 1440)


@pytest.mark.parametrize("key", [BTC, TRADES, agg_trades("BTCUSDT", "um"), klines("BTCUSD_PERP", "1m", "cm")], ids=str)
def test_rest_gives_the_archives_rows(world: World, key: object) -> None:
    assert isinstance(key, type(BTC))
    world.at("2026-03-04T23:00:00")  # futures trades are served for two days
    late = world.sandbox.faults.add(LateArchive(days=(date(2026, 3, 3),), days_late=5))
    assert outcome(world.one(key, "2026-03-03")).row.source == "rest"
    from_rest = world.table(key, "2026-03-03")
    world.sandbox.faults.remove(late)
    assert outcome(world.one(key, "2026-03-03")).row.source == "archive_daily"
    assert world.table(key, "2026-03-03").equals(from_rest)


@pytest.mark.parametrize("key", [BTC, TRADES], ids=str)
def test_today_is_extended_and_equals_one_full_fetch(world: World, key: object, tmp_path: Path) -> None:
    assert isinstance(key, type(BTC))
    first = outcome(world.one(key, "2026-03-05"))
    assert (first.action, first.row.final) == ("fetched", False)
    world.at("2026-03-05T12:07:30")
    world.forget()
    second = outcome(world.one(key, "2026-03-05"))
    assert second.action == "extended"
    assert second.row.rows > first.row.rows
    (asked,) = [r for r in world.sandbox.requests if not r.path.endswith("/time")]
    if key.interval:
        assert asked.query["startTime"] == str((first.row.last_key or 0) // 1000 + 60_000)
        assert second.row.rows == first.row.rows + 7
    else:
        assert asked.query["fromId"] == str((first.row.last_key or 0) + 1)
    extended = world.table(key, "2026-03-05")
    world.layout.file(key, date(2026, 3, 5)).unlink()
    outcome(world.one(key, "2026-03-05"))
    assert world.table(key, "2026-03-05").equals(extended)


@pytest.mark.parametrize("key", [BTC, TRADES], ids=str)
def test_across_midnight_a_day_is_completed_and_then_final(world: World, key: object) -> None:
    assert isinstance(key, type(BTC))
    world.at("2026-03-05T23:59:10")
    before = outcome(world.one(key, "2026-03-05"))
    world.at("2026-03-06T00:01:05")
    settled = outcome(world.one(key, "2026-03-05"))
    assert (settled.action, settled.row.final) == ("extended", False)
    assert settled.row.rows >= before.row.rows
    today = outcome(world.one(key, "2026-03-06"))
    assert today.row.rows >= 1
    world.forget()
    again = outcome(world.one(key, "2026-03-05"))
    assert (again.action, world.asked("/api/")) == ("held", [])
    from_rest = world.table(key, "2026-03-05")
    world.at("2026-03-06T10:00:00")
    final = outcome(world.one(key, "2026-03-05"))
    assert (final.row.final, final.row.source) == (True, "archive_daily")
    assert world.table(key, "2026-03-05").equals(from_rest)


def test_a_day_without_a_closed_candle_yet_is_empty(world: World) -> None:
    result = outcome(world.one(klines("BTCUSDT", "1d"), "2026-03-05"))
    assert (result.action, result.row.outcome, result.row.final) == ("empty", "empty", False)


def test_the_candle_that_is_open_is_left_out(world: World) -> None:
    world.one(BTC, "2026-03-05")
    assert pc.max(world.table(BTC, "2026-03-05").column("open_time")).as_py() == utc("2026-03-05T11:59").replace(
        tzinfo=None
    )


def test_trades_beyond_the_weight_of_a_run_wait_for_the_next(world: World) -> None:
    world.set(rest_trades_weight=12)  # three pages of a thousand
    first = outcome(world.one(TRADES, "2026-03-05"))
    assert first.row.rows <= 3000
    assert [f.rule for f in first.row.findings_list()] == ["unpublished"]
    assert first.row.gaps == "warn"
    world.set(rest_trades_weight=4000)
    second = outcome(world.one(TRADES, "2026-03-05"))
    assert second.row.gaps == "info"
    assert second.row.rows > first.row.rows
    ids: list[Any] = world.table(TRADES, "2026-03-05").column("agg_trade_id").to_pylist()
    assert ids == list(range(ids[0], ids[0] + len(ids)))


def test_day_without_weight_left_reports_missing_trades(world: World) -> None:
    assert outcome(world.one(TRADES, "2026-03-05")).row.gaps == "info"
    world.set(rest_trades_weight=0)
    world.at("2026-03-06T00:05:00")
    row = outcome(world.one(TRADES, "2026-03-05")).row
    assert ([f.rule for f in row.findings_list()], row.gaps) == (["unpublished"], "warn")


def test_without_any_weight_for_trades_the_day_is_unpublished(world: World) -> None:
    world.set(rest_trades_weight=0)
    world.sandbox.faults.add(LateArchive(days=(date(2026, 3, 3),), days_late=5))
    failed = failure(world.one(TRADES, "2026-03-03"))
    assert failed.failure == "unpublished"
    assert "REST_TRADES_WEIGHT" in failed.reason


def test_rows_only_in_rest_stay_when_the_archive_comes(world: World) -> None:
    late = world.sandbox.faults.add(LateArchive(days=(date(2026, 3, 3),), days_late=5))
    world.one(BTC, "2026-03-03")
    whole = world.table(BTC, "2026-03-03")
    world.sandbox.faults.remove(late)
    world.sandbox.faults.add(
        MissingRows(start=utc("2026-03-03T10:00"), end=utc("2026-03-03T10:20"), where="archive", series="klines")
    )
    result = outcome(world.one(BTC, "2026-03-03"))
    assert (result.row.final, result.row.rows, result.row.source) == (True, 1440, "archive_daily+rest")
    assert world.table(BTC, "2026-03-03").equals(whole)
    parts = parquet.read_provenance(world.layout.file(BTC, date(2026, 3, 3))).parts
    assert [(p.source, p.first_row, p.rows) for p in parts] == [
        ("archive_daily", 0, 600), ("rest", 600, 20), ("archive_daily", 620, 820),
    ]  # fmt: skip


# --- gaps ---------------------------------------------------------------------------------------------------------


def test_missing_candles_are_an_exact_range(world: World) -> None:
    world.sandbox.faults.add(MissingRows(start=utc("2026-03-03T10:00"), end=utc("2026-03-03T10:20"), series="klines"))
    row = outcome(world.one(BTC, "2026-03-03")).row
    (found,) = [f for f in row.findings_list() if f.rule == "outage"]
    (gap,) = found.ranges
    start = int(utc("2026-03-03T10:00").timestamp() * 1e6)
    assert (gap.first, gap.last, gap.count) == (start, start + 19 * 60_000_000, 20)
    assert (row.gaps, row.missing, row.integrity) == ("info", 20, "info")
    assert found.evidence == "REST has no candle either"


def test_candles_that_stop_coming_are_missed_while_they_do(world: World) -> None:
    before = outcome(world.one(BTC, "2026-03-05")).row
    world.sandbox.faults.add(MissingRows(start=utc("2026-03-05T12:00"), end=utc("2026-03-05T14:00"), series="klines"))
    world.at("2026-03-05T13:00:30")
    result = outcome(world.one(BTC, "2026-03-05"))
    assert (result.action, result.row.missing, result.row.gaps) == ("held", 60, "warn")
    assert result.row.content_sha256 == before.content_sha256
    world.sandbox.faults.clear()
    whole = outcome(world.one(BTC, "2026-03-05"))
    assert (whole.action, whole.row.missing, whole.row.rows) == ("extended", 0, 780)


@pytest.mark.parametrize("key", [BTC, TRADES], ids=str)
def test_hole_in_a_growing_day_is_requested_with_backoff(world: World, key: SeriesKey) -> None:
    """A page of REST lacked what REST has later."""
    day, today = "2026-03-05", date(2026, 3, 5)
    hole = world.sandbox.faults.add(
        MissingRows(start=utc(f"{day}T11:00"), end=utc(f"{day}T11:20"), series=key.data_type, where="rest")
    )

    def asked_into_the_hole(moment: str) -> int:
        """How many requests were made for what lies before the last row that was held."""
        last = world.ledger(key).rows[today].last_key or 0
        world.at(f"{day}T{moment}")
        world.forget()
        assert outcome(world.one(key, day)).action == "extended"
        asked = [r.query for r in world.sandbox.requests if r.path.endswith(f"/{key.data_type}")]
        starts = [int(query["fromId"] if "fromId" in query else query["startTime"] + "000") for query in asked]
        assert sum(start > last for start in starts) >= 1, "what came since is asked for whatever lacks"
        return sum(start <= last for start in starts)

    outcome(world.one(key, day))
    assert [asked_into_the_hole(moment) for moment in ("12:10:30", "12:20:30", "13:20:30")] == [0, 1, 0]
    world.sandbox.faults.remove(hole)
    assert world.ledger(key).rows[today].verdicts == "unpublished"
    assert [asked_into_the_hole(moment) for moment in ("14:20:30", "15:20:30", "18:20:30")] == [1, 0, 0]
    assert world.ledger(key).rows[today].verdicts == ""
    parts = parquet.read_provenance(world.layout.file(key, today)).parts
    held = world.table(key, day)
    assert [(part.source.value, part.rows) for part in parts] == [("rest", held.num_rows)]
    world.layout.file(key, today).unlink()
    world.one(key, day)
    assert world.table(key, day).equals(held)


@pytest.mark.parametrize("key", [BTC, TRADES], ids=str)
def test_hole_in_a_day_of_rest_is_the_only_request(world: World, key: SeriesKey) -> None:
    day = "2026-03-03"
    world.sandbox.faults.add(LateArchive(days=[date(2026, 3, 3)], days_late=9))
    hole = world.sandbox.faults.add(
        MissingRows(start=utc(f"{day}T11:00"), end=utc(f"{day}T11:20"), series=key.data_type, where="rest")
    )
    lacks = outcome(world.one(key, day)).row
    assert (lacks.final, lacks.verdicts) == (False, "unpublished")
    refused = world.sandbox.faults.add(Status(path=f"/api/v3/{key.data_type}", status=451))
    world.at("2026-03-06T10:00:00")
    again = outcome(world.one(key, day))
    assert (again.action, again.row.rows, again.row.attempts) == ("held", lacks.rows, 2)
    world.sandbox.faults.remove(refused)
    world.sandbox.faults.remove(hole)
    world.forget()
    world.at("2026-03-07T10:00:00")
    whole = outcome(world.one(key, day))
    assert (whole.action, whole.row.verdicts, whole.row.final) == ("extended", "", False)
    assert whole.row.rows > lacks.rows
    assert len(world.asked(f"/{key.data_type}")) == 1 + len(world.asked(".zip"))
    world.forget()
    world.at("2026-03-08T10:00:00")
    assert outcome(world.one(key, day)).action == "held"
    assert world.asked("/api/") == []


# --- bad input ----------------------------------------------------------------------------------------------------

BAD = [
    (WrongChecksum(path="2026-03-02"), "checksum", "does not match its published checksum"),
    (DamagedArchive(days=(date(2026, 3, 2),), damage=Damage.NOT_A_ZIP), "malformed", "broken"),
    (DamagedArchive(days=(date(2026, 3, 2),), damage=Damage.EXTRA_COLUMN), "malformed", "Expected 12 columns, got 13"),
    (DamagedArchive(days=(date(2026, 3, 2),), damage=Damage.EXPONENT_TIMES), "malformed", "spreadsheet"),
    (DamagedArchive(days=(date(2026, 3, 2),), damage=Damage.OTHER_DAY), "malformed", "rows of other days"),
    (
        DamagedArchive(days=(date(2026, 3, 2),), damage=Damage.OTHER_SYMBOL),
        "malformed",
        "should contain BTCUSDT-1m-2026-03-02.csv and nothing else",
    ),
    (
        DamagedArchive(days=(date(2026, 3, 2),), damage=Damage.TWO_FILES),
        "malformed",
        "should contain BTCUSDT-1m-2026-03-02.csv and nothing else",
    ),
    (DamagedArchive(days=(date(2026, 3, 2),), damage=Damage.CONFLICTING_DUPLICATES), "conflict", "two different rows"),
]


@pytest.mark.parametrize(("fault", "kind", "text"), BAD, ids=lambda v: str(getattr(v, "damage", ""))[:20])
def test_a_bad_archive_fails_its_day_and_no_other(world: World, fault: object, kind: str, text: str) -> None:
    world.sandbox.faults.add(fault)  # type: ignore[type-var]
    good, bad, also_good = world.ingest(BTC, days("2026-03-01", "2026-03-03"))
    assert (outcome(good).row.rows, outcome(also_good).row.rows) == (1440, 1440)
    failed = failure(bad)
    assert failed.failure == kind
    assert text in failed.reason
    assert "binance/spot/klines/BTCUSDT/1m 2026-03-02" in failed.reason
    assert world.ledger(BTC).rows[date(2026, 3, 2)].reason == failed.reason
    assert not world.layout.file(BTC, date(2026, 3, 2)).exists()
    (record,) = world.layout.quarantine(BTC).glob("*.json")
    assert json.loads(record.read_text())["reason"] in failed.reason
    assert record.with_suffix(".zip").stat().st_size > 0
    world.sandbox.faults.clear()
    world.forget()
    assert [outcome(r).action for r in world.ingest(BTC, days("2026-03-01", "2026-03-03"))] == [
        "held",
        "fetched",
        "held",
    ]
    assert all("2026-03-02" in path for path in world.asked(".zip"))
    assert not list(world.layout.quarantine(BTC).iterdir())  # the good file says all that there is to say


def test_a_file_that_is_damaged_by_hand_is_named_and_replaced(world: World) -> None:
    world.ingest(BTC, days("2026-03-01", "2026-03-02"))
    path = world.layout.file(BTC, date(2026, 3, 2))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DamagedFileError, match=r"2026-03-02\.parquet is damaged.*Backfill that day"):
        parquet.read_table(path)
    world.forget()
    assert [outcome(r).action for r in world.ingest(BTC, days("2026-03-01", "2026-03-02"))] == ["held", "fetched"]
    assert len(world.asked(".zip")) == 2
    assert world.table(BTC, "2026-03-02").num_rows == 1440


def test_file_that_contradicts_its_footer_is_replaced(world: World) -> None:
    world.one(BTC, "2026-03-02")
    path = world.layout.file(BTC, date(2026, 3, 2))
    record, table = parquet.read_provenance(path), parquet.read_table(path)
    wrong = table.set_column(3, "open", pc.add(table.column("open"), 1.0))
    parquet.write_table(path, wrong, record)
    assert outcome(world.one(BTC, "2026-03-02")).action == "fetched"
    assert world.table(BTC, "2026-03-02").equals(table)


def test_file_with_other_content_stays_refused_after_a_failure(world: World) -> None:
    world.one(BTC, "2026-03-02")
    path = world.layout.file(BTC, date(2026, 3, 2))
    record, table = parquet.read_provenance(path), parquet.read_table(path)
    wrong = table.set_column(3, "open", pc.add(table.column("open"), 1.0))
    parquet.write_table(path, wrong, record)
    fault = world.sandbox.faults.add(WrongChecksum(path="2026-03-02"))
    failure(world.one(BTC, "2026-03-02"))
    world.sandbox.faults.remove(fault)
    assert outcome(world.one(BTC, "2026-03-02")).action == "fetched"
    assert world.table(BTC, "2026-03-02").equals(table)


def test_an_older_good_file_survives_a_failed_attempt(world: World) -> None:
    late = world.sandbox.faults.add(LateArchive(days=(date(2026, 3, 3),), days_late=5))
    before = outcome(world.one(BTC, "2026-03-03")).row
    world.sandbox.faults.remove(late)
    world.sandbox.faults.add(WrongChecksum(path="2026-03-03"))
    failed = failure(world.one(BTC, "2026-03-03"))
    assert (failed.row.outcome, failed.row.rows, failed.row.failure) == ("held", 1440, "checksum")
    assert failed.row.content_sha256 == before.content_sha256
    assert world.table(BTC, "2026-03-03").num_rows == 1440


def test_without_a_checksum_the_day_is_provisional_and_warned_of(world: World) -> None:
    fault = world.sandbox.faults.add(MissingChecksum(days=(date(2026, 3, 2),)))
    row = outcome(world.one(BTC, "2026-03-02")).row
    assert (row.final, row.checksum, row.integrity, row.rows) == (False, "missing", "warn", 1440)
    world.sandbox.faults.remove(fault)
    row = outcome(world.one(BTC, "2026-03-02")).row
    assert (row.final, row.checksum, row.integrity) == (True, "verified", "info")


def test_a_day_that_no_source_has_fails_with_both_answers(world: World) -> None:
    world.sandbox.faults.add(MissingDay(days=(date(2026, 3, 2),)))
    world.sandbox.faults.add(MissingRows(start=utc("2026-03-02T00:00"), end=utc("2026-03-03T00:00"), where="rest"))
    failed = failure(world.one(BTC, "2026-03-02"))
    assert failed.failure == "absent"
    assert "the archive has no file for it (404)" in failed.reason
    assert "REST has no rows for it either" in failed.reason


PASSING = [
    Status(path="2026-03-02.zip$", status=503, times=2),
    Status(path="2026-03-02.zip$", status=429, retry_after=0, times=1),
    CutBody(path="2026-03-02.zip$", times=2),
    Reset(path="2026-03-02.zip$", times=1),
    WrongChecksum(path="2026-03-02", times=1),
]


@pytest.mark.parametrize("fault", PASSING, ids=lambda f: f"{type(f).__name__}{getattr(f, 'status', '')}")
def test_passing_faults_are_tried_again(world: World, fault: Status) -> None:
    world.sandbox.faults.add(fault)
    assert outcome(world.one(BTC, "2026-03-02")).row.rows == 1440


def test_a_body_that_stalls_is_fetched_again(world: World) -> None:
    world.set(timeout_seconds=3)
    world.sandbox.faults.add(SlowBody(path="2026-03-02.zip$", seconds=30, times=1))
    assert outcome(world.one(BTC, "2026-03-02")).row.rows == 1440
    assert len(world.asked("2026-03-02.zip")) == 2 + 1  # with its CHECKSUM


@pytest.mark.parametrize("status", [403, 418, 451])
def test_refusing_rest_host_is_off_while_the_archive_continues(world: World, status: int) -> None:
    world.sandbox.faults.add(Status(path="/api/v3/", status=status, retry_after=120))
    results = world.ingest(BTC, days("2026-03-02", "2026-03-05"))
    assert [type(r) for r in results] == [DayOutcome, DayOutcome, DayOutcome, DayFailure]
    failed = failure(results[-1])
    assert failed.failure == "host_off"
    assert "MARKET_DATA_SPOT_URL" in failed.reason
    assert len(world.asked("/api/")) == 1


def test_a_ban_is_remembered_by_the_next_run(world: World) -> None:
    world.sandbox.faults.add(Status(path="/api/v3/", status=418, retry_after=120))
    failure(world.one(BTC, "2026-03-05"))
    world.sandbox.faults.clear()
    world.forget()
    failed = failure(world.one(BTC, "2026-03-05"))
    assert "banned this address until" in failed.reason
    assert world.asked() == []


def test_pause_requested_by_rest_is_observed(world: World) -> None:
    world.sandbox.faults.add(Status(path="/api/v3/klines", status=429, retry_after=0, times=2))
    assert outcome(world.one(BTC, "2026-03-05")).row.rows == 720


def test_pause_longer_than_our_limit_turns_rest_off(world: World) -> None:
    world.sandbox.faults.add(Status(path="/api/v3/klines", status=429, retry_after=600))
    failed = failure(world.one(BTC, "2026-03-05"))
    assert failed.failure == "host_off"
    assert "longer pauses than we wait" in failed.reason
    assert len(world.asked("/klines")) == 1


def test_unreachable_archive_is_reported(world: World) -> None:
    world.set(retries=1, vision_url="http://127.0.0.1:9", spot_url="http://127.0.0.1:9", download_threads=1)
    results = world.ingest(BTC, days("2026-02-20", "2026-03-03"))
    assert {failure(r).failure for r in results} == {"network"}
    assert "is unreachable" in failure(results[-1]).reason


def test_a_disk_that_refuses_loses_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.one(BTC, "2026-03-01")
    before = world.layout.file(BTC, date(2026, 3, 1)).read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(StorageError, match="disk is full"):
            world.ingest(BTC, days("2026-03-01", "2026-03-03"))
    assert world.layout.file(BTC, date(2026, 3, 1)).read_bytes() == before
    assert not list(world.layout.folder(BTC).glob("2026-03-0[23]*"))
    assert not list(world.layout.folder(BTC).glob(".*"))
    assert [outcome(r).action for r in world.ingest(BTC, days("2026-03-01", "2026-03-03"))] == [
        "held", "fetched", "fetched",
    ]  # fmt: skip


# --- ledger and lock ----------------------------------------------------------------------------------------------


def test_a_ledger_that_is_lost_is_made_again_from_the_footers(world: World) -> None:
    wanted = days("2026-02-27", "2026-03-02")
    before = [r.row for r in world.ingest(BTC, wanted)]
    world.layout.ledger(BTC).unlink()
    world.forget()
    after = world.ingest(BTC, wanted)
    assert world.asked() == []
    assert [r.row for r in after] == before
    assert world.layout.ledger(BTC).exists()


def test_leftovers_of_a_killed_writer_are_removed(world: World) -> None:
    world.one(BTC, "2026-03-01")
    leftover = world.layout.folder(BTC) / ".2026-03-02.parquet.1-aa.tmp"
    leftover.write_bytes(b"half")
    world.one(BTC, "2026-03-03")
    assert not leftover.exists()


def test_leftovers_of_this_ledger_are_removed_but_no_others(world: World) -> None:
    world.one(BTC, "2026-03-01")
    folder = world.layout.ledger(BTC).parent
    mine, another = folder / ".1m.parquet.1-aa.tmp", folder / ".1h.parquet.1-aa.tmp"
    for leftover in (mine, another):
        leftover.write_bytes(b"half")
    world.one(BTC, "2026-03-03")
    assert (mine.exists(), another.exists()) == (False, True)


def test_second_writer_waits_or_names_the_first(world: World) -> None:
    world.set(lock_wait_seconds=0.05)
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with storage.only_writer(world.layout.lock(BTC), 1, "test"):
            held.set()
            done.wait(120)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        held.wait(120)
        with pytest.raises(SeriesBusyError, match="binance/spot/klines/BTCUSDT/1m is being written by another run"):
            world.one(BTC, "2026-03-01")
    finally:
        done.set()
        thread.join()
    assert outcome(world.one(BTC, "2026-03-01")).action == "fetched"


# --- again and again ----------------------------------------------------------------------------------------------


def test_each_monthly_zip_is_requested_once(world: World) -> None:
    hours = klines("BTCUSDT", "1h")
    world.set(download_threads=8)
    world.ingest(hours, days("2025-03-01", "2026-01-31"))
    asked = Counter(path for path in world.asked("/monthly/") if path.endswith(".zip"))
    assert len(asked) == 11
    assert set(asked.values()) == {1}


def test_replaced_days_do_not_come_from_an_older_monthly_zip(world: World) -> None:
    hours, january = klines("BTCUSDT", "1h"), days("2026-01-01", "2026-01-31")
    late = world.sandbox.faults.add(MissingDay(days=january, cadence="monthly"))
    assert {outcome(result).row.source for result in world.ingest(hours, january)} == {"archive_daily"}
    world.sandbox.faults.remove(late)
    ledger = world.ledger(hours)
    for day in january:
        ledger.put(after(ledger.rows[day], day, OtherArchive("another")))
    ledger.write(world.layout.ledger(hours))
    world.forget()
    assert {outcome(result).row.source for result in world.ingest(hours, january)} == {"archive_daily"}
    assert world.asked("/monthly/") == []


def test_replacement_without_checksum_leaves_the_verified_day(world: World) -> None:
    """It is not fetched again."""
    row = outcome(world.one(BTC, "2026-03-03")).row
    world.sandbox.faults.add(MissingChecksum(days=[date(2026, 3, 3)]))
    ledger = world.ledger(BTC)
    ledger.put(after(row, row.day, OtherArchive("another")))
    ledger.write(world.layout.ledger(BTC))
    found = failure(world.one(BTC, "2026-03-03"))
    assert found.failure == "unproven"
    assert (found.row.outcome, found.row.final, found.row.content_sha256) == ("held", True, row.content_sha256)
    assert knows_archive(found.row, "another")
    world.forget()
    world.at("2026-06-05T12:00:00")
    world.one(BTC, "2026-03-03")
    assert world.asked() == []


def test_a_provisional_day_that_ended_quietly_is_whole(world: World) -> None:
    """No trade came after the last look at the day; that none came until midnight is known by the next look."""
    day = "2026-03-03"
    world.sandbox.faults.add(LateArchive(days=[date(2026, 3, 3)], days_late=9))
    world.sandbox.faults.add(MarketOutage(start=utc(f"{day}T20:00"), end=utc("2026-03-04T00:00")))
    for moment in (f"{day}T23:05:00", "2026-03-04T00:05:00"):
        world.at(moment)
        world.one(TRADES, day)
    world.forget()
    world.at("2026-03-05T10:00:00")
    world.one(TRADES, day)
    assert world.asked("/api/") == []


def test_unknown_answer_of_rest_fails_the_day_until_understood(world: World) -> None:
    world.sandbox.faults.add(LateArchive(days=[date(2026, 3, 4)], days_late=9))
    garbage = world.sandbox.faults.add(Status(path="/api/v3/klines", status=200))
    found = failure(world.one(BTC, "2026-03-04"))
    assert found.failure == "rest_answer"
    world.sandbox.faults.remove(garbage)
    world.at("2026-03-05T14:00:00")
    assert needs(found.row, clock.now()).is_worth_asking
    assert outcome(world.one(BTC, "2026-03-04")).row.rows == 1440


def test_day_before_any_listing_is_requested_once(world: World) -> None:
    assert outcome(world.one(BTC, "2017-01-01")).action == "not_listed"
    world.forget()
    assert outcome(world.one(BTC, "2017-01-01")).action == "not_listed"
    assert world.asked() == []


def test_ledger_without_read_permission_is_not_taken_for_lost(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.sandbox.faults.add(WrongChecksum(path="BTCUSDT-1m-2026-03-03"))
    world.one(BTC, "2026-03-03")
    opened = os.open

    def refuses(path: Path, *more: Any, **named: Any) -> Any:
        if path == world.layout.ledger(BTC):
            raise OSError(errno.EMFILE, "Too many open files")
        return opened(path, *more, **named)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuses)
        with pytest.raises(StorageError, match=r"cannot be read \(Too many open files\)"):
            world.one(BTC, "2026-03-02")
    world.one(BTC, "2026-03-02")
    assert {day.day: row.outcome for day, row in world.ledger(BTC).rows.items()} == {2: "held", 3: "failed"}


def test_refresh_without_changes_leaves_the_market_verdict(world: World) -> None:
    keys = [klines(symbol, "1m", "um") for symbol in ("BTCUSDT", "ETHUSDT")]
    world.sandbox.faults.add(MarketOutage(start=utc("2026-03-03T10:00"), end=utc("2026-03-03T10:20"), series="/um/"))
    world.sandbox.faults.add(
        MissingRows(start=utc("2026-03-03T12:00"), end=utc("2026-03-03T12:05"), series="um/klines/BTC", where="archive")
    )
    world.sandbox.faults.add(Status(path="/fapi/", status=451))
    for key in keys:
        world.one(key, "2026-03-03")
    classify_flat_candles(world.layout, Market.UM)
    assert "unconfirmed" in world.ledger(keys[0]).rows[date(2026, 3, 3)].verdicts
    world.at("2026-03-05T14:00:00")
    assert "unconfirmed" in outcome(world.one(keys[0], "2026-03-03")).row.verdicts


def test_damaged_day_does_not_reserve_memory_of_downloads(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with_a_gap, fresh = days("2026-03-01", "2026-03-02")
    world.sandbox.faults.add(MissingRows(start=utc("2026-03-01T10:00"), end=utc("2026-03-01T10:05"), where="archive"))
    usual = world.settings.spot_url
    world.set(retries=0, spot_url="http://127.0.0.1:9")
    assert outcome(world.one(BTC, str(with_a_gap))).row.missing == 5
    world.set(spot_url=usual)
    world.at("2026-03-20T12:00")
    path = world.layout.file(BTC, with_a_gap)
    before = path.stat()
    path.write_bytes(b"x" * before.st_size)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # the ledger does not see it
    for module in (run, from_archive):
        monkeypatch.setattr(module, "MEMORY_PER_BYTE", 1 << 40)  # each day takes all memory there is
    downloading, rows_of = threading.Event(), DayStore.rows

    def fetch(archive: ArchiveClient, path: str, admit: Callable[[int], None], *more: Any) -> Any:
        def admitted(size: int) -> None:
            downloading.set()
            admit(size)

        return original(archive, path, admitted, *more)

    def rows(day_store: DayStore, day: date) -> DayRows | None:
        assert downloading.wait(120)  # the only place of all downloads is taken, by one that waits for memory
        return rows_of(day_store, day)

    original = ArchiveClient.fetch
    monkeypatch.setattr(ArchiveClient, "fetch", fetch)
    monkeypatch.setattr(DayStore, "rows", rows)
    world.set(download_threads=1)
    results: list[Result] = []
    bringing = threading.Thread(target=lambda: results.extend(world.ingest(BTC, [with_a_gap, fresh])), daemon=True)
    bringing.start()
    bringing.join(120)
    assert [outcome(result).row.rows for result in results] == [1440, 1440]
