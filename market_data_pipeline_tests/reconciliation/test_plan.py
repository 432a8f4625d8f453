"""Which days of klines are due to be compared with their source, and when what is found is on record."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from market_data_pipeline import clock
from market_data_pipeline.errors import DamagedFileError
from market_data_pipeline.lake.ledger import Ledger
from market_data_pipeline.model.day import HELD, DayRecord
from market_data_pipeline.model.lineage import source_of
from market_data_pipeline.model.reconciliation import DayReconciled, Difference
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.reconciliation import plan as planning
from market_data_pipeline.reconciliation.plan import compare, found_before, plan
from market_data_pipeline.reconciliation.record import read_reconciled, write_reconciled
from market_data_pipeline_tests.support.small_lake import SmallLake, days_from, series

HOURS = series("BTCUSDT", "1h")
MINUTES = source_of(HOURS)
DAYS = days_from("2024-01-01", 5)


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SmallLake:
    """Five days of hours and minutes, compared two at a time, of which none was compared yet."""
    monkeypatch.setattr(planning, "BATCH_DAYS", 2)
    monkeypatch.setattr(clock, "now", lambda: datetime(2024, 3, 1, tzinfo=UTC))
    lake = SmallLake(tmp_path / "data")
    for key in (HOURS, MINUTES):
        lake.put(key, DAYS)
    return lake


def on_record(lake: SmallLake) -> list[date]:
    return sorted(read_reconciled(lake.layout.reconciled(HOURS)))


# --- what is due -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [HOURS, MINUTES])
def test_day_without_its_file_is_named_and_others_are_compared(lake: SmallLake, side: SeriesKey) -> None:
    gone = lake.layout.file(side, DAYS[2])
    gone.unlink()

    wanted = plan(lake.layout, HOURS)

    assert wanted.days == (*DAYS[:2], *DAYS[3:])
    assert wanted.trouble() == (
        f"{HOURS} is not compared on every day: {gone} is gone. Backfill that day to restore it."
    )
    assert [one.day for batch in compare(lake.layout, HOURS, wanted.days, memory_mb=256) for one in batch] == [
        *wanted.days
    ]
    lake.layout.file(side, DAYS[0]).unlink()
    assert plan(lake.layout, HOURS).trouble() == wanted.trouble()  # compared before: that day is looked up, not read
    again = plan(lake.layout, HOURS, again=True)
    assert again.days == (DAYS[1], *DAYS[3:])
    assert "and so is 1 more. Backfill their days" in str(again.trouble())


def test_earlier_results_remain_for_unchanged_days(lake: SmallLake) -> None:
    found = [one for batch in compare(lake.layout, HOURS, DAYS, memory_mb=256) for one in batch]
    assert [one.bars for one in found] == [24] * 5
    lake.put(HOURS, [DAYS[1]], version=3)
    lake.put(MINUTES, [DAYS[3]], version=3)
    wanted = plan(lake.layout, HOURS, DAYS[1])
    assert wanted.days == (DAYS[1], DAYS[3])
    assert found_before(lake.layout, wanted) == [found[2], found[4]]


def test_plan_of_ten_years_is_faster_than_reading_one_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A schedule makes one for each of hundreds of series, in a minute."""
    monkeypatch.setattr(clock, "now", lambda: datetime(2026, 3, 1, tzinfo=UTC))
    layout = SmallLake(tmp_path).layout
    at = datetime(2026, 1, 1)  # noqa: DTZ001 - the lake's times have no zone
    difference = Difference(at, "high", 1.0, 2.0, "missing_candles")
    known = DayReconciled(DAYS[0], str(MINUTES), "ab", "ab", at, 24, 1, 1, None, (difference,))
    row = DayRecord(day=DAYS[0], outcome=HELD, final=True, rows=24, content_sha256="ab", fetched_at=at, asked_at=at)
    days = days_from("2018-01-01", 2900)
    for key in (HOURS, MINUTES):
        Ledger([replace(row, day=day) for day in days]).write(layout.ledger(key))
    write_reconciled(layout.reconciled(HOURS), [replace(known, day=day) for day in days])

    def least(what: Callable[[], object]) -> float:
        taken = []
        for _ in range(3):
            began = time.process_time()
            what()
            taken.append(time.process_time() - began)
        return min(taken)

    assert plan(layout, HOURS).days == ()
    assert len(plan(layout, HOURS).done) == len(days)
    whole = least(lambda: Ledger.read(layout.ledger(HOURS)))
    assert least(lambda: plan(layout, HOURS)) < whole
    # A run of the klines speaks of its own days.
    assert least(lambda: found_before(layout, plan(layout, HOURS, days[-1], days[-1]))) < whole / 2


# --- what is on record -----------------------------------------------------------------------------------------------


def test_the_record_is_written_at_the_end_and_every_few_seconds(
    lake: SmallLake, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    for _ in compare(lake.layout, HOURS, DAYS, memory_mb=256):
        seen.append(on_record(lake))
    assert (seen, on_record(lake)) == ([[], [], []], DAYS)

    lake.layout.reconciled(HOURS).unlink()
    monkeypatch.setattr(planning, "WRITE_SECONDS", 0)
    seen = []
    for _ in compare(lake.layout, HOURS, DAYS, memory_mb=256):
        seen.append(on_record(lake))
    assert (seen, on_record(lake)) == ([[], DAYS[:2], DAYS[:4]], DAYS)


def test_stopped_batch_is_not_recorded_and_earlier_ones_are(lake: SmallLake) -> None:
    batches = compare(lake.layout, HOURS, DAYS, memory_mb=256)
    next(batches)
    next(batches)
    batches.close()  # type: ignore[attr-defined]  # a generator
    assert on_record(lake) == DAYS[:2]


def test_days_before_a_damaged_file_are_on_record(lake: SmallLake) -> None:
    damaged = lake.layout.file(MINUTES, DAYS[3])
    damaged.write_bytes(b"PAR1")
    with pytest.raises(DamagedFileError, match=str(damaged)):
        list(compare(lake.layout, HOURS, DAYS, memory_mb=256))
    assert on_record(lake) == DAYS[:2]


def test_results_recorded_by_another_process_stay(lake: SmallLake) -> None:
    batches = compare(lake.layout, HOURS, DAYS[2:], memory_mb=256)
    next(batches)
    list(compare(lake.layout, HOURS, DAYS[:2], memory_mb=256))
    list(batches)
    assert on_record(lake) == DAYS
