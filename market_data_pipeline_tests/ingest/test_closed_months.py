"""A day of a closed month that is brought again, through the public door of ``ingest``."""

from __future__ import annotations

from dataclasses import replace
from datetime import date

from market_data_pipeline.lake import storage
from market_data_pipeline.lake.checksums import verify_days
from market_data_pipeline.lake.closed_months import close_months
from market_data_pipeline.lake.day_records import corrected
from market_data_pipeline.lake.months import encode_month, read_month
from market_data_pipeline.lake.partitions import day_files, day_files_between, read_record
from market_data_pipeline.model.datasets import spec_of
from market_data_pipeline.model.outcomes import Action, DayOutcome
from market_data_pipeline.model.schema import lake_schema
from market_data_pipeline_tests.support.world import Result, World, days, klines

HOURS = klines("BTCUSDT", "1h")
JANUARY = days("2026-01-01", "2026-01-31")


def closed(world: World) -> None:
    world.ingest(HOURS, JANUARY)
    assert close_months(world.layout, HOURS) == [JANUARY[0]]
    for day in JANUARY:
        world.layout.file(HOURS, day).unlink()
    world.forget()


def actions(results: list[Result]) -> dict[date, Action]:
    found = {result.day: result.action for result in results if isinstance(result, DayOutcome)}
    assert len(found) == len(results)
    return found


def test_days_of_a_closed_month_need_no_request(world: World) -> None:
    closed(world)
    assert set(actions(world.ingest(HOURS, JANUARY)).values()) == {Action.HELD}
    assert world.asked() == []


def test_replaced_days_are_written_into_their_month(world: World) -> None:
    closed(world)
    again = [date(2026, 1, 8), date(2026, 1, 9), date(2026, 1, 20)]
    ledger = world.ledger(HOURS)
    for day in again:
        ledger.put(replace(ledger.rows[day], replaced_by="another", attempts=0))
    ledger.write(world.layout.ledger(HOURS))
    world.at("2026-03-05T13:00:00")
    assert [day for day, action in actions(world.ingest(HOURS, JANUARY)).items() if action is not Action.HELD] == again
    held = day_files(world.layout, HOURS)
    assert {one.path for one in held.values()} == {world.layout.month(HOURS, JANUARY[0])}
    fetched = {day: read_record(one).fetched_at for day, one in held.items()}
    assert min(fetched[day] for day in again) > max(at for day, at in fetched.items() if day not in again)
    assert {row.replaced_by for row in world.ledger(HOURS).rows.values()} == {None}
    assert not corrected(world.layout, [HOURS]).to_pylist()


def test_damaged_month_is_fetched_again_by_day(world: World) -> None:
    closed(world)
    month = world.layout.month(HOURS, JANUARY[0])
    month.write_bytes(b"PAR1")
    assert set(actions(world.ingest(HOURS, JANUARY)).values()) == {Action.FETCHED}
    assert not month.exists()
    held = day_files_between(world.layout, HOURS, JANUARY[0], JANUARY[-1])
    assert [one.path for one in held] == [world.layout.file(HOURS, day) for day in JANUARY]
    assert not corrected(world.layout, [HOURS]).to_pylist()
    assert close_months(world.layout, HOURS) == [JANUARY[0]]


def test_closed_month_is_verified_by_day(world: World) -> None:
    closed(world)
    proofs = verify_days(world.layout, HOURS, JANUARY)
    assert [(proof.fault, proof.rows) for proof in proofs] == [(None, 24)] * 31
    month = world.layout.month(HOURS, JANUARY[0])
    held = read_month(month, lake_schema(HOURS.market, HOURS.data_type))
    swapped = held[JANUARY[7]]._replace(table=held[JANUARY[8]].table)
    storage.put(month, encode_month([*(held | {JANUARY[7]: swapped}).values()], spec_of(HOURS)))
    faults = {proof.day: proof.fault for proof in verify_days(world.layout, HOURS, JANUARY) if proof.fault}
    assert list(faults) == [JANUARY[7]]
    assert f"{month} does not match its footer (the first or last open_time differs)" in faults[JANUARY[7]]


def test_a_damaged_month_is_named_for_each_of_its_days(world: World) -> None:
    closed(world)
    month = world.layout.month(HOURS, JANUARY[0])
    month.write_bytes(month.read_bytes()[:-50])
    faults = [proof.fault or "" for proof in verify_days(world.layout, HOURS, JANUARY)]
    assert [str(month) in fault for fault in faults] == [True] * 31
