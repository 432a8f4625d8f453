"""The SHA-256 of all bytes of a file is on record: no lost bit stays unseen, and no good file is called damaged."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import date
from pathlib import Path
from random import Random
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from market_data_pipeline.lake import parquet
from market_data_pipeline.lake.closed_months import close_months, remove_closed_days
from market_data_pipeline.lake.ledger import Ledger
from market_data_pipeline.lake.months import read_records
from market_data_pipeline.maintenance.scrub import verify_local
from market_data_pipeline.model.day import FAILED, HELD
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.sandbox import ReplacedArchive
from market_data_pipeline_tests.support.world import World, agg_trades, days, klines, utc

HOURS, TRADES = klines("BTCUSDT", "1h"), agg_trades("BTCUSDT")
DAY = date(2026, 2, 5)


def change(path: Path, data: bytes, *, same_time: bool = True) -> None:
    """Write other bytes into a file, which nothing but its bytes tells."""
    stat = path.stat()
    path.write_bytes(data)
    if same_time:
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def flipped(data: bytes, at: int, bit: int = 0) -> bytes:
    return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]


def footer_start(data: bytes) -> int:
    return len(data) - 8 - int.from_bytes(data[-8:-4], "little")


def at_wrong_statistics(path: Path) -> int:
    """Where a bit is of a statistic that readers skip rows by: the rows are as they were, and the bounds are not."""
    data = path.read_bytes()
    statistics: Any = pq.read_metadata(path).row_group(0).column(3).statistics
    bound = statistics.max
    for at in range(footer_start(data), len(data) - 8):
        try:
            with parquet.opened(flipped(data, at, 6)) as (_, metadata):
                found: Any = parquet.statistics_in(metadata, 0, 3)
                if found is not None and found.has_min_max and found.max < bound:
                    return at
        except parquet.UNREADABLE:
            continue
    raise AssertionError("no such bit")


@pytest.fixture
def held(world: World) -> World:
    world.ingest(HOURS, days("2026-02-04", "2026-02-06"))
    return world


def faults(world: World, key: SeriesKey = HOURS, *, mark: bool = False) -> list[date]:
    return verify_local(world.settings, [key], mark=mark).to_fetch.get(key, [])


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_anywhere_is_found(held: World, share: float, bit: int) -> None:
    path = held.layout.file(HOURS, DAY)
    data = path.read_bytes()
    change(path, flipped(data, int(share * len(data)), bit))
    try:
        assert faults(held) == [DAY]
    finally:
        change(path, data)


def test_a_flipped_bit_in_each_region_is_found(held: World) -> None:
    path = held.layout.file(HOURS, DAY)
    data = path.read_bytes()
    footer = footer_start(data)
    regions = [range(4), range(4, footer), range(footer, len(data) - 8), range(len(data) - 8, len(data))]
    random = Random(7)
    for at in (at for region in regions for at in random.sample(region, 4)):
        change(path, flipped(data, at))
        assert faults(held) == [DAY], at
    change(path, data)
    assert faults(held) == []


@pytest.mark.parametrize("same_time", [True, False], ids=["same time", "other time"])
def test_a_wrong_statistic_is_found_and_the_day_fetched_again(held: World, *, same_time: bool) -> None:
    path = held.layout.file(HOURS, DAY)
    good = path.read_bytes()
    change(path, flipped(good, at_wrong_statistics(path), 6), same_time=same_time)
    if same_time:
        report = verify_local(held.settings, [HOURS])
        assert "Backfill that day to replace it" in report.faults[HOURS][DAY]
        row = held.ledger(HOURS).rows[DAY]
        assert (row.outcome, row.failure) == (FAILED, "damaged")
        assert faults(held) == [DAY], "it stays damaged until it is replaced"
    held.forget()
    held.ingest(HOURS, [DAY])
    assert len(held.asked("2026-02-05.zip")) == 2
    assert faults(held) == []
    assert held.ledger(HOURS).rows[DAY].outcome == HELD


@pytest.mark.parametrize(
    "other",
    [
        lambda path: path.with_name("2026-02-06.parquet").read_bytes(),
        lambda path: path.read_bytes()[:-1],
        lambda path: path.read_bytes()[:100],
        lambda path: path.read_bytes() + b"\0",
        lambda path: path.read_bytes()[:-4] + bytes(16) + b"PAR1",
        lambda path: b"",
    ],
    ids=["another day's", "a byte less", "cut", "a byte more", "grown inside", "empty"],
)
def test_another_file_in_its_place_is_found(held: World, other: object) -> None:
    path = held.layout.file(HOURS, DAY)
    change(path, other(path))  # type: ignore[operator]
    assert faults(held, mark=True) == [DAY]
    held.ingest(HOURS, [DAY])
    assert faults(held) == []


def test_a_file_that_was_copied_with_another_time_is_good(held: World) -> None:
    for day in days("2026-02-04", "2026-02-06"):
        os.utime(held.layout.file(HOURS, day))
    assert faults(held, mark=True) == []
    held.forget()
    held.ingest(HOURS, days("2026-02-04", "2026-02-06"))
    assert not held.asked()


def test_restored_good_file_is_stored_again(held: World) -> None:
    path = held.layout.file(HOURS, DAY)
    good = path.read_bytes()
    change(path, flipped(good, at_wrong_statistics(path), 6))
    assert faults(held, mark=True) == [DAY]
    change(path, good, same_time=False)
    held.forget()
    assert held.one(HOURS, str(DAY)).row.is_stored_final
    assert not held.asked()


def test_a_newer_file_that_the_ledger_does_not_know_is_good(world: World) -> None:
    """A run was killed between the file and the ledger."""
    world.sandbox.faults.add(ReplacedArchive(series=str(HOURS), days=[DAY], at=utc("2026-03-06T00:00:00")))
    world.ingest(HOURS, [DAY])
    ledger = world.layout.ledger(HOURS)
    before = ledger.read_bytes()
    known = Ledger.read(ledger)
    known.put(replace(known.rows[DAY], replaced_by="another"))
    known.write(ledger)
    world.at("2026-03-06T12:00:00")
    world.ingest(HOURS, [DAY])
    sha256 = world.ledger(HOURS).rows[DAY].file_sha256
    ledger.write_bytes(before)
    assert world.ledger(HOURS).rows[DAY].file_sha256 != sha256
    assert faults(world, mark=True) == []
    assert world.ledger(HOURS).rows[DAY].file_sha256 == sha256


def forget_hashes(world: World, key: SeriesKey = HOURS) -> None:
    """Make a ledger what it is after an older version wrote it."""
    path = world.layout.ledger(key)
    table = parquet.read_table(path)
    parquet.write_table(path, table.drop_columns(["file_sha256", "month_sha256"]))


@pytest.mark.parametrize("lost", ["the columns", "the ledger"])
def test_hashes_are_recorded_once_verified(held: World, lost: str) -> None:
    path = held.layout.file(HOURS, DAY)
    good, known = path.read_bytes(), held.ledger(HOURS).rows[DAY].file_sha256
    assert known is not None
    if lost == "the ledger":
        held.layout.ledger(HOURS).unlink()
    else:
        forget_hashes(held)
    change(path, flipped(good, at_wrong_statistics(path), 6))
    assert faults(held) == [DAY], "statistics are compared with the rows"
    change(path, good)
    assert faults(held, mark=False) == []
    assert DAY not in held.ledger(HOURS).rows or held.ledger(HOURS).rows[DAY].file_sha256 is None
    assert faults(held, mark=True) == []
    assert held.ledger(HOURS).rows[DAY].file_sha256 == known
    change(path, flipped(good, footer_start(good) + 40))
    assert faults(held) == [DAY]


def test_trades_have_it_too(world: World) -> None:
    world.ingest(TRADES, [DAY])
    path = world.layout.file(TRADES, DAY)
    change(path, flipped(path.read_bytes(), at_wrong_statistics(path), 6))
    assert faults(world, TRADES, mark=True) == [DAY]
    world.ingest(TRADES, [DAY])
    assert faults(world, TRADES) == []


@pytest.fixture
def closed(world: World) -> World:
    january = days("2026-01-01", "2026-01-31")
    world.ingest(HOURS, january)
    assert close_months(world.layout, HOURS) == [january[0]]
    remove_closed_days(world.layout, HOURS, january)
    return world


def test_a_flipped_bit_in_a_closed_month_is_found_and_mended(closed: World) -> None:
    january = days("2026-01-01", "2026-01-31")
    path = closed.layout.month(HOURS, january[0])
    good = path.read_bytes()
    assert faults(closed) == []
    for at in (2, len(good) // 2, footer_start(good) + 50, at_wrong_statistics(path), len(good) - 6):
        change(path, flipped(good, at, 6))
        assert faults(closed) == january, at
        change(path, good)
    change(path, flipped(good, at_wrong_statistics(path), 6))
    assert faults(closed, mark=True) == january
    closed.ingest(HOURS, january)
    assert faults(closed) == []
    assert {row.outcome for row in closed.ledger(HOURS).rows.values()} == {HELD}


def test_month_rewritten_by_a_killed_run_is_good(closed: World) -> None:
    january = days("2026-01-01", "2026-01-31")
    ledger, path = closed.layout.ledger(HOURS), closed.layout.month(HOURS, january[0])
    before = ledger.read_bytes()
    known = Ledger.read(ledger)
    known.put(replace(known.rows[january[3]], replaced_by="another"))
    known.write(ledger)
    closed.at("2026-03-08T12:00:00")
    closed.ingest(HOURS, [january[3]])
    ledger.write_bytes(before)
    assert faults(closed, mark=True) == []
    assert len({row.month_sha256 for row in closed.ledger(HOURS).rows.values()}) == 1
    assert len(read_records(path)) == 31
    change(path, flipped(path.read_bytes(), 100))
    assert faults(closed) == january


def test_flipped_bit_in_a_ledger_never_changes_its_meaning(held: World) -> None:
    """A damaged ledger counts as lost, and is made again from the footers."""
    path = held.layout.ledger(HOURS)
    data, rows = path.read_bytes(), held.ledger(HOURS).rows
    hashes = [row.file_sha256 for row in rows.values()]
    random = Random(11)
    footer = footer_start(data)
    lost = 0
    for at in [*random.sample(range(footer), 150), *random.sample(range(footer, len(data)), 150)]:
        path.write_bytes(flipped(data, at, random.randrange(8)))
        found = held.ledger(HOURS).rows
        assert found in (rows, {}), at
        assert [row.file_sha256 for row in found.values()] in (hashes, []), at
        lost += not found
    assert lost > 150
    held.forget()
    path.write_bytes(flipped(data, 100))
    assert all(result.row.is_stored_final for result in held.ingest(HOURS, days("2026-02-04", "2026-02-06")))
    assert not held.asked()


def test_ledger_with_a_name_that_is_not_utf8_counts_as_lost(held: World) -> None:
    path = held.layout.ledger(HOURS)
    data = path.read_bytes()
    assert data.count(b"\x07outcome") > 0
    path.write_bytes(data.replace(b"\x07outcome", b"\x07\xe8utcome"))
    assert held.ledger(HOURS).rows == {}
    assert all(result.row.is_stored_final for result in held.ingest(HOURS, days("2026-02-04", "2026-02-06")))
