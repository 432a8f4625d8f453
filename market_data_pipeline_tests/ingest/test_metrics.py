"""Metrics: text times, rows in no order, blank ratios, labels that changed, and a REST tail of thirty days."""

from __future__ import annotations

import io
import zipfile
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from market_data_pipeline import MarketData, clock
from market_data_pipeline.checks.ordering import in_order
from market_data_pipeline.errors import MalformedError
from market_data_pipeline.lake import parquet
from market_data_pipeline.lake.checksums import verify_days
from market_data_pipeline.model.datasets import spec_of
from market_data_pipeline.model.findings import RELABELLED
from market_data_pipeline.model.outcomes import DayFailure, DayOutcome
from market_data_pipeline.model.series import EXCHANGE, DataType, Market, SeriesKey
from market_data_pipeline.sandbox import ChangedRows, Damage, DamagedArchive, MissingDay, MissingRows
from market_data_pipeline.sources.binance.zip_reader import read_zip
from market_data_pipeline_tests.support.shell import shell
from market_data_pipeline_tests.support.world import Result, World, days, utc

BTC = SeriesKey(EXCHANGE, Market.UM, DataType.METRICS, "BTCUSDT")
CM = SeriesKey(EXCHANGE, Market.CM, DataType.METRICS, "BTCUSD_PERP")
HEADER = (
    "create_time,symbol,sum_open_interest,sum_open_interest_value,count_toptrader_long_short_ratio,"
    "sum_toptrader_long_short_ratio,count_long_short_ratio,sum_taker_long_short_vol_ratio"
)


def stored(results: list[Result]) -> list[DayOutcome]:
    assert all(isinstance(result, DayOutcome) for result in results), results
    return [result for result in results if isinstance(result, DayOutcome)]


def times(table: pa.Table) -> list[Any]:
    return list(table.column("create_time").to_pylist())


def grid(day: str) -> list[Any]:
    start = utc(day).replace(tzinfo=None)
    return [start + timedelta(minutes=5 * n) for n in range(288)]


def read(text: str, day: str, key: SeriesKey = BTC) -> pa.Table:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(f"{key.symbol}-metrics-{day}.csv", text)
    of = date.fromisoformat(day)
    return read_zip(file.getvalue(), key, f"{key.symbol}-metrics-{day}", of, of)


def test_day_from_the_archive_is_sorted_and_complete(world: World) -> None:
    (one,) = stored([world.one(BTC, "2026-02-10")])
    assert (one.row.rows, one.row.final, one.row.verdicts, one.row.integrity) == (288, True, "", "info")
    assert times(world.table(BTC, "2026-02-10")) == grid("2026-02-10")
    assert {finding.rule for finding in one.row.findings_list()} == {"order", RELABELLED}


def test_labels_are_uniform_across_their_change(world: World) -> None:
    world.at("2026-06-28T12:00")
    results = stored(world.ingest(BTC, days("2026-06-23", "2026-06-27")))
    found = [at for day in days("2026-06-23", "2026-06-27") for at in times(world.table(BTC, str(day)))]
    assert found == [at for day in days("2026-06-23", "2026-06-27") for at in grid(str(day))]
    moved = [str(one.day) for one in results if any(f.rule == RELABELLED for f in one.row.findings_list())]
    assert moved == ["2026-06-23", "2026-06-24"]
    (finding,) = [f for f in results[0].row.findings_list() if f.rule == RELABELLED]
    assert finding.evidence.endswith("binance-public-data/issues/491")


def test_coin_margined_labels_never_changed(world: World) -> None:
    (one,) = stored([world.one(CM, "2026-02-10")])
    assert times(world.table(CM, "2026-02-10")) == grid("2026-02-10")
    assert not any(finding.rule == RELABELLED for finding in one.row.findings_list())


def test_blank_ratios_are_null_and_reported(world: World) -> None:
    (one,) = stored([world.one(CM, "2026-02-10")])
    table = world.table(CM, "2026-02-10")
    assert [table.column(name).null_count for name in table.column_names[3:]] == [0, 6, 6, 6, 0]
    (finding,) = [finding for finding in one.row.findings_list() if finding.rule == "blank"]
    assert (finding.count, one.row.integrity) == (6, "info")
    assert not [fault for fault in (found.fault for found in verify_days(world.layout, CM, [one.day])) if fault]
    assert parquet.read_table(world.layout.file(CM, one.day)).schema.field("count_long_short_ratio").nullable


def test_row_without_its_time_is_refused() -> None:
    text = f"{HEADER}\n2026-09-30 00:00:00,BTCUSDT,1,2,3,4,5,6\n,BTCUSDT,1,2,3,4,5,6\n"
    with pytest.raises(MalformedError, match="a row without create_time"):
        read(text, "2026-09-30")


def test_duplicate_rows_are_stored_once() -> None:
    rows = [f'2026-09-30 00:{minute:02}:00,BTCUSDT,1,2,,"",5,6' for minute in range(0, 60, 5)]
    table = read("\n".join([HEADER, *rows, *rows]) + "\n", "2026-09-30")
    ordered, findings, conflict = in_order(table, spec_of(BTC))
    assert (table.num_rows, ordered.num_rows, conflict) == (24, 12, None)
    assert {(finding.rule, finding.severity) for finding in findings} == {("order", "info"), ("duplicates", "warn")}


def test_doubled_rows_with_other_content_are_a_conflict(world: World) -> None:
    world.at("2026-07-10T12:00")
    day = date(2026, 7, 8)
    world.sandbox.faults.add(
        DamagedArchive(days=(day,), damage=Damage.CONFLICTING_DUPLICATES, series="metrics/BTCUSDT")
    )
    result = world.one(BTC, str(day))
    assert isinstance(result, DayFailure)
    assert result.failure == "conflict"


def test_tail_comes_from_five_endpoints_of_rest(world: World) -> None:
    world.at("2026-07-08T12:02")
    (one,) = stored([world.one(BTC, "2026-07-08")])
    assert (one.row.source, one.row.rows, one.row.verdicts) == ("rest", 144, "")
    assert len(set(world.asked("/futures/data/"))) == 5
    from_rest = world.table(BTC, "2026-07-08")
    world.at("2026-07-09T12:00")
    (one,) = stored([world.one(BTC, "2026-07-08")])
    assert (one.row.source, one.row.rows) == ("archive_daily", 288)
    assert world.table(BTC, "2026-07-08").slice(0, 144).equals(from_rest)
    assert not [finding for finding in one.row.findings_list() if finding.rule == "disagreement"]


def test_missing_rows_are_filled_from_rest(world: World) -> None:
    world.at("2026-07-10T12:00")
    gone = MissingRows(start=utc("2026-07-08T08:00"), end=utc("2026-07-08T09:00"), where="archive", series="metrics")
    world.sandbox.faults.add(gone)
    (one,) = stored([world.one(BTC, "2026-07-08")])
    assert (one.row.rows, one.row.verdicts) == (288, "healed")


def test_rows_older_than_rest_are_an_archive_defect(world: World) -> None:
    world.at("2026-09-10T12:00")
    gone = MissingRows(start=utc("2026-07-08T08:00"), end=utc("2026-07-08T09:00"), series="metrics")
    world.sandbox.faults.add(gone)
    (one,) = stored([world.one(BTC, "2026-07-08")])
    assert (one.row.rows, one.row.verdicts, one.row.missing) == (276, "archive_defect", 12)
    assert not world.asked("/futures/data/")


def test_replaced_value_is_reported_with_both_values(world: World) -> None:
    world.at("2026-07-09T07:00")
    world.one(BTC, "2026-07-08")
    world.sandbox.faults.add(
        ChangedRows(
            start=utc("2026-07-08T05:00"),
            end=utc("2026-07-08T05:05"),
            series="metrics",
            where="archive",
            column="sum_open_interest",
        )
    )
    world.at("2026-07-09T12:00")
    (one,) = stored([world.one(BTC, "2026-07-08")])
    (finding,) = [one for one in one.row.findings_list() if one.rule == "disagreement"]
    assert (finding.count, "2026-07-08 05:00:00 sum_open_interest" in finding.message) == (1, True)


def test_day_missing_from_the_archive_is_absent(world: World) -> None:
    """As 97 days of cm BTCUSD_PERP. The symbol traded, so the day is not an outage."""
    world.sandbox.faults.add(MissingDay(days=(date(2026, 1, 10),), series="metrics"))
    for key in (BTC, CM):
        result = world.one(key, "2026-01-10")
        assert isinstance(result, DayFailure)
        assert result.failure == "absent"


def test_coin_margined_tail_waits_for_the_archive(world: World) -> None:
    today = clock.today()
    (one,) = stored([world.one(CM, str(today))])
    assert one.row.outcome == "empty"
    assert not world.asked("/futures/data/")


def test_added_metrics_are_served_by_python_and_sql(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    run = shell(world, monkeypatch, "collect:\n  - {market: um, symbols: [ETHUSDT], metrics: {from: 2026-03-01}}\n")
    world.at("2026-03-04T12:02")
    result = run("add", "BTCUSDT", "metrics", "--market", "um", "--from", "2026-03-01", "--yes")
    assert result.exit_code == 0, result.output
    market = MarketData(world.layout.root)
    frame = market.metrics("BTCUSDT", "2026-03-02", "2026-03-04", on_gap="raise").df()
    assert (len(frame), frame.sum_open_interest.min() > 0) == (576, True)
    (row,) = (
        market.sql(
            "SELECT count(*) AS n, count(DISTINCT create_time) AS slots FROM binance_um.metrics WHERE symbol = $symbol",
            {"symbol": "BTCUSDT"},
        )
        .arrow()
        .to_pylist()
    )
    assert row["n"] == row["slots"] == 3 * 288 + 144


def test_days_that_rest_will_drop_are_fetched_first(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """REST has 30 days of metrics, from 2026-02-03 on: earlier days and other types wait for them."""
    types = "metrics: {from: 2026-01-31}, fundingRate: {from: 2026-01-31}"
    run = shell(world, monkeypatch, f"collect:\n  - {{market: um, symbols: [BTCUSDT], {types}}}\n")
    result = run("backfill", "--from", "2026-01-31", "--through", "2026-02-06", "--yes")
    assert result.exit_code == 0, result.output
    asked = [path for path in world.asked(".zip") if not path.endswith(".CHECKSUM")]
    first = {BTC.archive_daily(day) for day in days("2026-02-03", "2026-02-06")}
    assert {path.lstrip("/") for path in asked[: len(first)]} == first
    assert len(asked) > len(first)


def test_recorded_metrics_are_read_value_by_value(realdata: Path) -> None:
    sample = realdata / "datatypes" / "Replikanti__mie" / "BTCUSDT-metrics-2026-09-30.csv"
    if not sample.exists():
        pytest.skip("the recorded sample of metrics is not here")
    text = sample.read_text()
    rows = [line.split(",") for line in text.splitlines()[1:]]
    table = read(text, "2026-09-30")
    assert [str(at) for at in times(table)] == [row[0] for row in rows]
    for at, name in enumerate(HEADER.split(",")[2:], start=2):
        assert table.column(name).to_pylist() == [float(row[at]) for row in rows]
