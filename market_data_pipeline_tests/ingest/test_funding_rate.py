"""Funding rates come from monthly zips and REST, by day, and a change of the interval is no gap."""

from __future__ import annotations

import contextlib
import io
import zipfile
from collections.abc import Iterator
from datetime import date, time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline import clock
from market_data_pipeline.checks.slots import missing_slots
from market_data_pipeline.coverage.summary import cover
from market_data_pipeline.model.datasets import spec_of
from market_data_pipeline.model.findings import Finding
from market_data_pipeline.model.outcomes import DayFailure, DayOutcome
from market_data_pipeline.model.schema import WORD, lake_schema
from market_data_pipeline.model.series import EXCHANGE, DataType, ListingSpans, Market, SeriesKey
from market_data_pipeline.sandbox import (
    Damage,
    DamagedArchive,
    GeneratedSymbol,
    MissingDay,
    MissingRows,
    Sandbox,
    WrongChecksum,
)
from market_data_pipeline.sources.binance.archive import ArchiveClient
from market_data_pipeline_tests.support.world import Result, World, days, utc

BTC = SeriesKey(EXCHANGE, Market.UM, DataType.FUNDING_RATE, "BTCUSDT")
CHANGING = SeriesKey(EXCHANGE, Market.UM, DataType.FUNDING_RATE, "RIVERUSDT")
_HOUR = 3_600_000_000


@pytest.fixture
def river(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A world with a symbol whose funding interval goes from 8 to 4 to 1 hours."""
    symbol = GeneratedSymbol(
        Market.UM,
        "RIVERUSDT",
        date(2025, 11, 20),
        trades_per_day=200,
        funding=((date(2026, 1, 10), 4), (date(2026, 1, 20), 1)),
    )
    with Sandbox(now=utc("2026-03-04T12:00"), symbols=[symbol]) as sandbox:
        world = World(tmp_path, sandbox, monkeypatch)
        world.at("2026-03-04T12:00")
        yield world


def stored(results: list[Result]) -> list[DayOutcome]:
    assert all(isinstance(result, DayOutcome) for result in results), results
    return [result for result in results if isinstance(result, DayOutcome)]


def gaps(world: World, key: SeriesKey, day: str) -> list[Finding]:
    row = world.ledger(key).rows[date.fromisoformat(day)]
    return [finding for finding in row.findings_list() if finding.check == "gaps"]


def hours_of(world: World, key: SeriesKey, day: str) -> list[Any]:
    return world.table(key, day).column("funding_interval_hours").to_pylist()


def test_monthly_zip_fills_the_files_of_its_days(world: World) -> None:
    results = stored(world.ingest(BTC, days("2026-01-01", "2026-01-31")))
    assert {(one.row.source, one.row.final, one.row.rows) for one in results} == {("archive_monthly", True, 3)}
    assert [path.rsplit("/", 1)[1] for path in world.asked("fundingRate")] == [
        "BTCUSDT-fundingRate-2026-01.zip",
        "BTCUSDT-fundingRate-2026-01.zip.CHECKSUM",
    ]


def test_single_day_of_a_past_month_comes_from_the_monthly_zip(world: World) -> None:
    (one,) = stored([world.one(BTC, "2026-01-15")])
    assert (one.row.source, one.row.final) == ("archive_monthly", True)
    assert not [path for path in world.asked() if "/daily/" in path]


def test_tail_comes_from_rest_until_the_month_is_published(world: World) -> None:
    world.at("2026-03-02T12:00")
    (one,) = stored([world.one(BTC, "2026-02-28")])
    assert (one.row.source, one.row.final, one.row.rows) == ("rest", False, 3)
    assert hours_of(world, BTC, "2026-02-28") == [8, 8, 8]
    from_rest = world.table(BTC, "2026-02-28")
    world.at("2026-03-04T12:00")
    (one,) = stored([world.one(BTC, "2026-02-28")])
    assert (one.row.source, one.row.final) == ("archive_monthly", True)
    assert world.table(BTC, "2026-02-28").equals(from_rest)
    assert not one.row.findings_list()


def test_today_grows_without_a_gap(world: World) -> None:
    world.at("2026-03-04T07:00")
    (one,) = stored([world.one(BTC, "2026-03-04")])
    assert (one.row.rows, one.row.verdicts) == (1, "")
    world.at("2026-03-04T16:30")
    (one,) = stored([world.one(BTC, "2026-03-04")])
    assert (one.row.rows, one.row.verdicts, one.action) == (3, "", "extended")


def test_change_of_the_interval_is_not_a_gap(river: World) -> None:
    results = stored(river.ingest(CHANGING, days("2026-01-01", "2026-02-10")))
    assert {result.row.verdicts for result in results} == {""}
    counts = {day: river.ledger(CHANGING).rows[day].rows for day in days("2026-01-09", "2026-01-21")}
    assert [counts[date(2026, 1, day)] for day in (9, 10, 19, 20)] == [3, 6, 6, 24]
    assert hours_of(river, CHANGING, "2026-01-09") == [8, 8, 8]
    assert set(hours_of(river, CHANGING, "2026-01-20")) == {1}


def test_change_of_the_interval_in_the_tail_is_not_a_gap(river: World) -> None:
    river.at("2026-01-21T12:00")
    results = stored(river.ingest(CHANGING, days("2026-01-05", "2026-01-21")))
    assert {(result.row.source, result.row.verdicts) for result in results} == {("rest", "")}
    # REST has no interval. The first row of a new one shows the distance from the row before it.
    assert hours_of(river, CHANGING, "2026-01-10") == [8, 4, 4, 4, 4, 4]


@pytest.mark.parametrize("hour", [0, 8, 16])
def test_removed_row_is_found_and_filled_from_rest(world: World, hour: int) -> None:
    other = SeriesKey(EXCHANGE, Market.UM, DataType.FUNDING_RATE, "ETHUSDT")
    missing = MissingRows(
        start=utc(f"2026-01-15T{hour:02}:00"),
        end=utc(f"2026-01-15T{hour:02}:01"),
        where="archive",
        series="fundingRate/ETHUSDT",
    )
    world.sandbox.faults.add(missing)
    (one,) = stored([world.one(other, "2026-01-15")])
    assert (one.row.rows, one.row.verdicts, one.row.gaps) == (3, "healed", "info")
    (finding,) = gaps(world, other, "2026-01-15")
    assert finding.count == 1
    assert hours_of(world, other, "2026-01-15") == [8, 8, 8]


def test_row_that_rest_does_not_have_either_is_an_outage(world: World) -> None:
    world.sandbox.faults.add(
        MissingRows(start=utc("2026-01-15T08:00"), end=utc("2026-01-15T08:01"), series="fundingRate")
    )
    (one,) = stored([world.one(BTC, "2026-01-15")])
    assert (one.row.rows, one.row.verdicts) == (2, "outage")
    (finding,) = gaps(world, BTC, "2026-01-15")
    assert finding.evidence == "REST has no row at that time either"
    assert [range_.first for range_ in finding.ranges] == [int(utc("2026-01-15T08:00").timestamp() * 1e6)]


def test_last_day_missing_from_a_month_comes_from_rest(world: World) -> None:
    world.sandbox.faults.add(MissingDay(days=(date(2026, 1, 31),), cadence="monthly", series="fundingRate"))
    results = stored(world.ingest(BTC, days("2026-01-01", "2026-01-31")))
    assert [(one.row.source, one.row.final, one.row.rows) for one in results[-2:]] == [
        ("archive_monthly", True, 3),
        ("rest", False, 3),
    ]


def test_wrong_checksum_fails_every_day_of_the_month(world: World) -> None:
    world.sandbox.faults.add(WrongChecksum(path="fundingRate"))
    results = world.ingest(BTC, days("2026-01-30", "2026-01-31"))
    assert [result.failure for result in results if isinstance(result, DayFailure)] == ["checksum", "checksum"]


def test_conflicting_rows_are_refused_with_both_values(world: World) -> None:
    world.sandbox.faults.add(
        DamagedArchive(days=(date(2026, 1, 15),), damage=Damage.CONFLICTING_DUPLICATES, series="fundingRate")
    )
    result = world.one(BTC, "2026-01-15")
    assert isinstance(result, DayFailure)
    assert (result.failure, "two different rows have calc_time" in result.reason) == ("conflict", True)


def test_exponents_are_read_as_numbers(world: World) -> None:
    world.ingest(BTC, days("2026-01-01", "2026-01-31"))
    with contextlib.closing(ArchiveClient(world.settings)) as archive:
        file = archive.fetch(BTC.archive_monthly(date(2026, 1, 1)))
    assert file is not None
    with zipfile.ZipFile(io.BytesIO(file.data)) as opened:
        lines = opened.read(f"{file.stem}.csv").decode().splitlines()[1:]
    texts = {int(at) * 1_000: rate for at, _, rate in (line.split(",") for line in lines)}
    assert any("E-" in rate for rate in texts.values())
    found: dict[Any, Any] = {}
    for day in days("2026-01-01", "2026-01-31"):
        table = world.table(BTC, str(day))
        times = table.column("calc_time").cast(pa.int64()).to_pylist()
        found |= dict(zip(times, table.column("last_funding_rate").to_pylist(), strict=True))
    assert found == {at: float(Decimal(rate)) for at, rate in texts.items()}


def test_coin_margined_funding_loads_too(world: World) -> None:
    key = SeriesKey(EXCHANGE, Market.CM, DataType.FUNDING_RATE, "BTCUSD_PERP")
    results = stored(world.ingest(key, days("2026-01-30", "2026-02-01")))
    assert [one.row.source for one in results] == ["archive_monthly"] * 3
    world.at("2026-02-02T12:00")
    (one,) = stored([world.one(key, "2026-02-02")])
    assert (one.row.source, one.row.rows) == ("rest", 2)


def test_funding_requests_have_their_own_budget(world: World) -> None:
    world.one(BTC, "2026-03-04")
    names = {path.name for path in (world.root / "budget").iterdir()}
    assert any(name.endswith("_funding.weight.sqlite") for name in names)


# --- the rule -------------------------------------------------------------------------------------------------------


def table_of(*rows: tuple[str, int]) -> pa.Table:
    times = [int(utc(f"2026-01-15T{at}").timestamp() * 1e6) + 4_000 for at, _ in rows]
    columns = [
        pa.array(["BTCUSDT"] * len(rows)).dictionary_encode().cast(WORD),
        pa.array(times).cast(pa.timestamp("us")),
        pa.array([hours for _, hours in rows]),
        pa.array([0.0001] * len(rows)),
    ]
    return pa.table(columns, schema=lake_schema(Market.UM, DataType.FUNDING_RATE))


def due(*rows: tuple[str, int], listing: ListingSpans | None = None) -> list[str]:
    end = int(utc("2026-01-16T00:00").timestamp() * 1e6) + 60_000_001
    missing = missing_slots(BTC, table_of(*rows), date(2026, 1, 15), end, listing or ListingSpans())
    return [clock.naive_from_us(int(at)).strftime("%H:%M") for at in missing]


def test_rows_are_due_by_the_interval_of_the_row_before() -> None:
    assert due(("00:00", 8), ("16:00", 8)) == ["08:00"]
    assert due(("08:00", 4), ("20:00", 4)) == ["00:00", "04:00", "12:00", "16:00"]
    assert due(("00:00", 8)) == ["08:00", "16:00"]


@pytest.mark.parametrize("told", [4, 8])
def test_either_row_of_a_change_may_have_the_new_interval(told: int) -> None:
    assert due(("00:00", 8), ("08:00", told), ("12:00", 4), ("16:00", 4), ("20:00", 4)) == []
    assert due(("00:00", 4), ("04:00", 4), ("08:00", told), ("16:00", 8)) == []


def test_no_row_is_due_outside_of_the_listing() -> None:
    listing = ListingSpans(((date(2026, 1, 15), date(2026, 1, 15)),))
    assert due(("08:00", 8), listing=listing) == []


def test_spec_declares_monthly_files_only() -> None:
    spec = spec_of(BTC)
    assert (spec.daily, spec.monthly, spec.rest.budget) == (False, True, "funding")


@given(st.sampled_from([1, 2, 4, 8]), st.data())
def test_removed_slots_are_exactly_the_missing_ones(hours: int, data: st.DataObject) -> None:
    every = [f"{hour:02}:00" for hour in range(0, 24, hours)]
    removed = data.draw(st.sets(st.sampled_from(every), max_size=len(every) - 1))
    assert due(*((at, hours) for at in every if at not in removed)) == sorted(removed)


@given(st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 4, 8]), st.integers(0, 2), st.booleans())
def test_no_change_of_the_interval_is_a_gap(before: int, after: int, eighth: int, early: bool) -> None:
    """The row at the change may have the interval that ends or the one that begins."""
    change = 8 * eighth
    hours = [*range(0, change, before), *range(change, 24, after)]
    rows = [
        (f"{hour:02}:00", before if hour < change or (hour == change and not early and eighth) else after)
        for hour in hours
    ]
    last = 24 - int(rows[-1][0][:2])
    assert due(*rows) == [] or last > rows[-1][1]


def test_first_day_before_any_funding_is_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    symbol = GeneratedSymbol(Market.UM, "LATEUSDT", date(2026, 1, 15), opens=time(20), trades_per_day=200)
    key = SeriesKey(EXCHANGE, Market.UM, DataType.FUNDING_RATE, "LATEUSDT")
    listing = ListingSpans(((date(2026, 1, 15), None),))
    with Sandbox(now=utc("2026-01-17T12:00"), symbols=[symbol]) as sandbox:
        world = World(tmp_path, sandbox, monkeypatch)
        world.at("2026-01-17T12:00")
        results = stored(world.ingest(key, days("2026-01-15", "2026-01-16"), listing))
        assert [(one.row.outcome, one.row.final, one.row.rows) for one in results] == [
            ("empty", False, 0),
            ("held", False, 3),
        ]
        world.at("2026-03-04T12:00")
        results = stored(world.ingest(key, days("2026-01-15", "2026-01-16"), listing))
        assert [(one.row.outcome, one.row.final) for one in results] == [("empty", True), ("held", True)]


def test_provisional_days_are_overdue_after_the_month(world: World) -> None:
    world.at("2026-02-27T12:00")
    world.ingest(BTC, days("2026-02-01", "2026-02-26"))
    rows = world.ledger(BTC).rows
    span = [(date(2026, 2, 1), date(2026, 2, 26))]
    found = [cover(BTC, rows, {}, span, day, 14).overdue for day in (date(2026, 3, 14), date(2026, 3, 15))]
    assert [len(overdue) for overdue in found] == [0, 26]
