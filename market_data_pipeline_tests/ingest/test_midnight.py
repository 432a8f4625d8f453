"""Neighbouring days of aggTrades: what lies between them is brought once, and told apart from what lacks inside."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from itertools import count
from typing import Any

import pyarrow as pa
import pytest

from market_data_pipeline import clock
from market_data_pipeline.checks.continuity import open_midnights
from market_data_pipeline.checks.ordering import ints
from market_data_pipeline.errors import NetworkError
from market_data_pipeline.ingest import encode, gap_fill
from market_data_pipeline.ingest.day_rows import DayRows
from market_data_pipeline.ingest.from_archive import MEMORY_PER_BYTE
from market_data_pipeline.ingest.midnight import Midnight
from market_data_pipeline.ingest.run import ingest
from market_data_pipeline.ingest.sources import Sources
from market_data_pipeline.ingest.store import DayStore
from market_data_pipeline.model.datasets import spec_of
from market_data_pipeline.model.outcomes import Action, DayOutcome
from market_data_pipeline.model.series import ListingSpans, SeriesKey
from market_data_pipeline.sandbox import Fault, MissingRows, RepeatedAtMidnight, Status
from market_data_pipeline.sources.binance.rest import RestApi, RestRows
from market_data_pipeline_tests.support.world import World, agg_trades, utc

TRADES = agg_trades("SOLUSDT")
PAIR = [date(2026, 2, 10), date(2026, 2, 11)]
MISSING = MissingRows(
    start=utc("2026-02-10T23:50:00"), end=utc("2026-02-11T00:10:00"), series="aggTrades", where="archive"
)


def leave_unmet(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bring both days as a run that is killed right after writing the second one does."""
    with monkeypatch.context() as patch:
        patch.setattr(Midnight, "_compare", lambda *_: {})
        world.ingest(TRADES, PAIR)
    assert all(row.is_stored_final for row in world.ledger(TRADES).rows.values())
    world.at("2026-03-05T14:00:00")
    assert open_midnights(TRADES, world.ledger(TRADES).rows, clock.now()) == PAIR


def goes_on(world: World) -> bool:
    first, second = (world.ledger(TRADES).rows[day] for day in PAIR)
    return second.first_key == (first.last_key or 0) + 1


def test_ids_missing_between_days_are_filled_at_a_later_request(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.sandbox.faults.add(MISSING)
    leave_unmet(world, monkeypatch)
    world.forget()

    results = world.ingest(TRADES, PAIR)

    # The earlier day was seen to be cut short by itself.
    actions = [result.action for result in results if isinstance(result, DayOutcome)]
    assert actions == [Action.HELD, Action.EXTENDED]
    assert goes_on(world)
    assert world.ledger(TRADES).rows[PAIR[1]].gaps == "info"
    assert world.asked(".zip") == []
    world.forget()
    world.at("2026-03-06T14:00:00")
    assert open_midnights(TRADES, world.ledger(TRADES).rows, clock.now()) == []
    world.ingest(TRADES, PAIR)
    assert world.asked() == []


@pytest.mark.parametrize("fault", [MISSING, RepeatedAtMidnight(days=[PAIR[1]])], ids=["ids lack", "ids stand twice"])
def test_days_read_again_stay_within_the_memory_limit(
    world: World, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    world.sandbox.faults.add(fault)
    leave_unmet(world, monkeypatch)
    sizes = {day: row.bytes * MEMORY_PER_BYTE for day, row in world.ledger(TRADES).rows.items()}
    read = DayStore.rows
    taken: dict[date, int] = {}

    with Sources(world.settings) as sources:

        def watched(day_store: DayStore, day: date) -> DayRows | None:
            taken[day] = sources.memory._used
            return read(day_store, day)

        monkeypatch.setattr(DayStore, "rows", watched)
        list(ingest(TRADES, PAIR, layout=world.layout, sources=sources, settings=world.settings))

        assert goes_on(world)
        assert taken
        assert all(taken[day] >= sizes[day] for day in taken)
        if isinstance(fault, RepeatedAtMidnight):  # one day is compared with the other
            assert taken[PAIR[0]] >= sum(sizes.values())
        assert sources.memory._used == 0


def test_jump_too_large_for_memory_is_reported_like_others(world: World) -> None:
    world.ingest(TRADES, PAIR)
    day_store = DayStore(TRADES, world.layout, ListingSpans())
    rows = day_store.rows(PAIR[1])
    assert rows is not None
    place = rows.table.schema.get_field_index("agg_trade_id")
    ids = pa.array(ints(rows.table, "agg_trade_id") + 10**13)
    far = replace(rows, table=rows.table.set_column(place, rows.table.schema.field(place), ids))
    day_store.put(PAIR[1], None, encode.encode(TRADES, far, encode.describe(TRADES, PAIR[1], far, ListingSpans())), 0.0)
    world.sandbox.faults.add(Status(path="/api/v3/", status=451))
    world.at("2026-03-05T14:00:00")

    world.ingest(TRADES, PAIR)

    row = world.ledger(TRADES).rows[PAIR[1]]
    assert (row.verdicts, row.first_key) == ("unpublished", int(ids[0].as_py()))
    assert row.missing >= 10**12


def test_later_day_reports_that_rest_refuses_and_waits(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.sandbox.faults.add(MISSING)
    leave_unmet(world, monkeypatch)
    refusal = world.sandbox.faults.add(Status(path="/api/v3/", status=451))
    world.ingest(TRADES, PAIR)
    assert world.ledger(TRADES).rows[PAIR[1]].verdicts == "unpublished"
    # What lacks belongs into both of them.
    assert open_midnights(TRADES, world.ledger(TRADES).rows, clock.now()) == []
    assert open_midnights(TRADES, world.ledger(TRADES).rows, utc("2026-03-20T14:00:00")) == PAIR
    world.sandbox.faults.remove(refusal)
    world.at("2026-03-05T16:00:00")
    world.ingest(TRADES, PAIR)
    assert goes_on(world)


def test_a_trade_on_both_sides_stays_on_one(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.sandbox.faults.add(RepeatedAtMidnight(days=[PAIR[1]]))
    leave_unmet(world, monkeypatch)
    world.ingest(TRADES, PAIR)
    assert goes_on(world)


def test_duplicate_day_is_reported_and_left_alone(world: World) -> None:
    """Of a symbol that hardly trades: its one trade of the day is that of the day before."""
    world.sandbox.faults.add(
        MissingRows(start=utc("2026-02-11T00:00"), end=utc("2026-02-12T00:00"), series="aggTrades")
    )
    world.sandbox.faults.add(RepeatedAtMidnight(days=[PAIR[1]], series="aggTrades"))
    world.ingest(TRADES, PAIR)
    first, second = (world.ledger(TRADES).rows[day] for day in PAIR)
    [found] = [found for found in second.findings_list() if found.check == "integrity"]
    assert (second.rows, second.first_key, second.integrity) == (1, first.last_key, "error")
    assert found.message.startswith("All 1 trades of this day also appear in the previous day")
    assert [(r.first, r.last) for r in found.ranges] == [(first.last_key, first.last_key)]
    world.at("2026-03-06T14:00:00")
    world.forget()
    assert open_midnights(TRADES, world.ledger(TRADES).rows, clock.now()) == []
    world.ingest(TRADES, PAIR)
    assert world.asked() == []
    assert world.ledger(TRADES).rows[PAIR[1]] == second


def test_finding_with_an_older_text_is_not_repeated(world: World) -> None:
    """Texts of findings change between versions. A stored day must not get the same finding twice."""
    world.ingest(TRADES, PAIR[:1])
    rows = DayStore(TRADES, world.layout, ListingSpans()).rows(PAIR[0])
    assert rows is not None
    once = gap_fill.without_duplicates(TRADES, rows.table, rows)
    [finding] = once.findings
    older = replace(once, findings=(finding.model_copy(update={"message": "An older text."}),))
    assert gap_fill.without_duplicates(TRADES, rows.table, older) is older


def test_ids_missing_between_two_days_are_requested_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.sandbox.faults.add(MISSING)
    for module in (encode, gap_fill):
        monkeypatch.setattr(module, "seems_cut", lambda *_: False)
    world.ingest(TRADES, PAIR)
    assert goes_on(world)
    asked = [str(request.query) for request in world.sandbox.requests if request.path.endswith("/aggTrades")]
    assert len(asked) == len(set(asked))


def test_unrequested_hole_differs_from_one_at_midnight(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hole inside the day could not be requested."""
    world.sandbox.faults.add(
        MissingRows(start=utc("2026-02-10T23:58:00"), end=utc("2026-02-11T00:02:00"), series="aggTrades", where="both")
    )
    inside = MissingRows(
        start=utc("2026-02-11T10:00"), end=utc("2026-02-11T10:20"), series="aggTrades", where="archive"
    )
    world.sandbox.faults.add(inside)
    real, calls = RestApi.agg_trades_of_ids, count()

    def first_one_fails(*args: Any) -> RestRows:
        if next(calls) == 0:
            raise NetworkError("503 in every attempt")
        return real(*args)

    monkeypatch.setattr(RestApi, "agg_trades_of_ids", first_one_fails)
    world.ingest(TRADES, PAIR)
    verdicts = {f.rule: f.evidence for f in world.ledger(TRADES).rows[PAIR[1]].findings_list() if f.check == "gaps"}
    assert set(verdicts) == {"unexplained", "unpublished"}
    assert "503 in every attempt" in verdicts["unpublished"]

    world.at("2026-03-05T16:00:00")
    world.ingest(TRADES, PAIR)
    row = world.ledger(TRADES).rows[PAIR[1]]
    assert row.verdicts.split("+") == ["healed", "unexplained"]  # what nobody has is still told of


def test_trade_on_both_sides_does_not_change_an_inner_hole(world: World) -> None:
    world.sandbox.faults.add(
        MissingRows(start=utc("2026-02-11T10:00"), end=utc("2026-02-11T10:20"), series="aggTrades", where="both")
    )
    world.sandbox.faults.add(RepeatedAtMidnight(days=[PAIR[1]]))
    world.ingest(TRADES, PAIR)
    row = world.ledger(TRADES).rows[PAIR[1]]
    assert (row.verdicts, row.gaps) == ("unexplained", "error")
    world.at("2026-03-20T14:00:00")
    world.forget()
    world.ingest(TRADES, PAIR)
    assert world.asked() == []


def test_later_day_alone_reports_trades_from_before_it(world: World) -> None:
    world.sandbox.faults.add(MISSING)
    refusal = world.sandbox.faults.add(Status(path="/api/v3/", status=451))
    world.ingest(TRADES, PAIR)
    world.sandbox.faults.remove(refusal)
    world.at("2026-03-05T14:00:00")
    world.ingest(TRADES, PAIR[1:])
    row = world.ledger(TRADES).rows[PAIR[1]]
    assert not goes_on(world)
    assert row.verdicts.split("+") == ["healed", "unpublished"]
    assert "belong to the previous day" in row.findings
    world.at("2026-03-06T14:00:00")
    assert open_midnights(TRADES, world.ledger(TRADES).rows, clock.now()) == PAIR
    world.ingest(TRADES, PAIR)
    assert goes_on(world)
    assert [world.ledger(TRADES).rows[day].verdicts for day in PAIR] == ["healed", "healed"]


def test_a_day_that_rest_completed_in_part_is_gone_on_with(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weight of a run was used up minutes before midnight: the day does not look cut short any more."""
    [day] = PAIR[:1]
    truth = World(world.root / "truth", world.sandbox, monkeypatch).one(TRADES, str(day)).row
    world.sandbox.faults.add(
        MissingRows(start=utc("2026-02-10T10:00"), end=utc("2026-02-11T00:00"), series="aggTrades", where="archive")
    )
    page = RestApi.agg_trades

    def all_but_the_last_ten(*args: Any) -> RestRows:
        answer = page(*args)
        return replace(answer, table=answer.table.slice(0, answer.table.num_rows - 10), cut=True)

    with monkeypatch.context() as patch:
        patch.setattr(RestApi, "agg_trades", all_but_the_last_ten)
        row = world.one(TRADES, str(day)).row
    assert (row.rows, row.verdicts.split("+")) == (truth.rows - 10, ["healed", "unpublished"])
    world.at("2026-03-05T16:00:00")
    row = world.one(TRADES, str(day)).row
    assert (row.rows, row.verdicts, row.last_key) == (truth.rows, "healed", truth.last_key)


def test_trades_with_times_beyond_midnight_stay_in_their_day(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids that lie between each other on two days: none is put into both, and nobody asks again and again."""
    world.ingest(TRADES, PAIR)
    day_store = DayStore(TRADES, world.layout, ListingSpans())
    spec, midnight = spec_of(TRADES), clock.day_start_us(PAIR[1])
    before, after = (day_store.rows(day) for day in PAIR)
    assert before is not None
    assert after is not None

    def at(table: pa.Table, us: int) -> pa.Table:
        time = table.schema.get_field_index("transact_time")
        return table.set_column(time, table.schema.field(time), pa.array([us]).cast(pa.timestamp("us")))

    late = at(before.table.slice(before.table.num_rows - 1), midnight + 500)
    early = at(after.table.slice(0, 1), midnight - 500)
    exchanged = {
        PAIR[0]: before.without(ints(late, "agg_trade_id"), spec).with_more(early, before.parts[0], spec),
        PAIR[1]: after.without(ints(early, "agg_trade_id"), spec).with_more(late, after.parts[0], spec),
    }
    for day, rows in exchanged.items():
        day_store.put(day, None, encode.encode(TRADES, rows, encode.describe(TRADES, day, rows, ListingSpans())), 0.0)
    real = RestApi.agg_trades_of_ids

    def as_stored(api: RestApi, key: SeriesKey, first: int, last: int, *args: Any) -> RestRows:
        both = pa.concat_tables([late, early])
        ids = ints(both, "agg_trade_id")
        answer = real(api, key, first, last, *args)
        return replace(answer, table=both.filter(pa.array((ids >= first) & (ids <= last))))

    monkeypatch.setattr(RestApi, "agg_trades_of_ids", as_stored)
    for hours in ("2026-03-06T12:00:00", "2026-03-06T14:00:00"):
        world.at(hours)
        world.ingest(TRADES, PAIR)
    times = [ints(world.table(TRADES, str(day)), "transact_time") // clock.US_PER_DAY for day in PAIR]
    assert [set(found) for found in times] == [{midnight // clock.US_PER_DAY - 1}, {midnight // clock.US_PER_DAY}]
    assert [world.ledger(TRADES).rows[day].verdicts for day in PAIR] == ["outage", "outage"]
    world.at("2026-04-20T12:00:00")
    assert open_midnights(TRADES, world.ledger(TRADES).rows, clock.now()) == []
    world.forget()
    world.ingest(TRADES, PAIR)
    assert world.asked() == []
