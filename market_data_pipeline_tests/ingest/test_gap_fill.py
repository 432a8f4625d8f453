"""Whatever an archive lacks, repeats or shuffles: healed, the lake is what the exchange had, or the day failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from market_data_pipeline import clock
from market_data_pipeline.checks.ordering import ints
from market_data_pipeline.ingest.run import ingest
from market_data_pipeline.ingest.sources import Sources
from market_data_pipeline.lake import parquet
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.model.datasets import SPECS, spec_of
from market_data_pipeline.model.outcomes import DayFailure, DayOutcome
from market_data_pipeline.model.series import DataType, Market, SeriesKey
from market_data_pipeline.sandbox import Fault, GeneratedSymbol, MissingRows, Sandbox, ScrambledArchive, Status
from market_data_pipeline.sandbox.damage import scrambled
from market_data_pipeline.sandbox.rest import AGG_TRADES_DAYS
from market_data_pipeline.sources.rate_limit import WeightBudget
from market_data_pipeline_tests.support.full_size import sized
from market_data_pipeline_tests.support.world import World, agg_trades, days, klines

DAYS = days("2026-02-01", "2026-02-10")
KEYS = [klines("SMALLUSDT", "5m"), agg_trades("SMALLUSDT"), agg_trades("SMALLUSDT", "um")]

Span = tuple[int, int]
"""Minutes of a day, the last one excluded."""

# Inside a day: of trades, nothing in the day itself tells of what lacks at its ends.
SPANS = st.tuples(st.integers(60, 1200), st.integers(5, 180)).map(lambda drawn: (drawn[0], drawn[0] + drawn[1]))
CONFLICTS = st.sets(st.sampled_from(DAYS), max_size=2)
SEEDS = st.integers(0, 2**31)


class Exchange:
    """A world whose archives can be scrambled, and what the exchange had."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._runs = 0
        self.had = {key: self.brought(key)[1] for key in KEYS}

    def brought(
        self, key: SeriesKey, faults: Sequence[Fault] = ()
    ) -> tuple[list[DayOutcome | DayFailure], dict[date, pa.Table]]:
        """Bring all days into a new lake while faults are in force."""
        self._runs += 1
        layout = Layout(self._world.root / str(self._runs))
        for fault in faults:
            self._world.sandbox.faults.add(fault)
        try:
            with Sources(self._world.settings) as sources:
                results = list(ingest(key, DAYS, layout=layout, sources=sources, settings=self._world.settings))
        finally:
            self._world.sandbox.faults.clear()
        held = [result.day for result in results if isinstance(result, DayOutcome)]
        return results, {day: parquet.read_table(layout.file(key, day)) for day in held}


@pytest.fixture(scope="module")
def exchange(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exchange]:
    symbols = [
        GeneratedSymbol(market, "SMALLUSDT", DAYS[0] - timedelta(days=30), trades_per_day=300)
        for market in (Market.SPOT, Market.UM)
    ]
    root: Path = tmp_path_factory.mktemp("scrambled")
    with Sandbox(symbols=symbols) as sandbox, pytest.MonkeyPatch.context() as monkeypatch:
        world = World(root, sandbox, monkeypatch)
        world.at("2026-03-05T12:00:30")
        world.set(rest_trades_weight=10**9)
        # Waiting for the next minute's weight would show nothing.
        monkeypatch.setattr(WeightBudget, "acquire", lambda *_: None)
        sandbox.weights.budgets.update(dict.fromkeys(Market, 10**9))
        # Ids are filled in alike in both markets; how far back REST goes in which is shown elsewhere.
        um = SPECS[Market.UM, DataType.AGG_TRADES]
        monkeypatch.setitem(SPECS, (um.market, um.data_type), replace(um, rest=replace(um.rest, reach=None)))
        monkeypatch.setitem(AGG_TRADES_DAYS, Market.UM, 365)
        yield Exchange(world)


def scramble(key: SeriesKey, seed: int, conflicts: set[date]) -> dict[date, ScrambledArchive]:
    """A fault of each day's archive; what lacks at the end of a day of trades is told by a neighbour that is held."""
    beside_a_failed_day = {day + step * timedelta(days=1) for day in conflicts for step in (-1, 1)}
    ends = {DAYS[0], DAYS[-1], *beside_a_failed_day}
    return {
        day: ScrambledArchive(
            days=[day],
            seed=seed + n,
            conflict=day in conflicts,
            drop_ends=key.interval is not None or day not in ends,
        )
        for n, day in enumerate(DAYS)
    }


def moment(day: date, minute: int) -> datetime:
    return datetime.combine(day, time(), UTC) + timedelta(minutes=minute)


def without(key: SeriesKey, rows: pa.Table, day: date, span: Span | None) -> pa.Table:
    """The rows of a day that lie outside of a span."""
    if span is None:
        return rows
    first, end = (clock.to_us(moment(day, minute)) for minute in span)
    times = ints(rows, spec_of(key).time)
    return rows.filter(pa.array((times < first) | (times >= end)))


def verdicts(outcome: DayOutcome) -> Counter[str]:
    """Rows of a day by their verdict; those of flat candles, which are there, are left out."""
    found: Counter[str] = Counter()
    for finding in outcome.row.findings_list():
        if finding.check == "gaps" and finding.rule != "quiet":
            found[finding.rule] += finding.count
    return found


def sound(results: Sequence[DayOutcome | DayFailure], conflicts: set[date]) -> Iterator[DayOutcome]:
    """The days whose archive does not contradict itself; those that do have failed, as that."""
    for result in results:
        if result.day in conflicts:
            assert isinstance(result, DayFailure), result.day
            assert result.failure == "conflict"
        else:
            assert isinstance(result, DayOutcome), result
            yield result


def missing_of(had: Mapping[date, pa.Table], outcomes: Sequence[DayOutcome], held: Mapping[date, pa.Table]) -> int:
    return sum(had[one.day].num_rows - held[one.day].num_rows for one in outcomes)


@settings(max_examples=sized(4, 20), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=SEEDS, conflicts=CONFLICTS, lacking=st.dictionaries(st.sampled_from(DAYS), SPANS, max_size=4))
@example(seed=1, conflicts=set(), lacking={DAYS[4]: (600, 700)})
# What REST lacks lies where the archive is cut short, so that what it has of the rest is brought from the next day.
@example(seed=450458759, conflicts=set(), lacking={DAYS[0]: (60, 65), DAYS[4]: (241, 366)})
@pytest.mark.parametrize("key", KEYS, ids=str)
def test_the_lake_is_what_the_exchange_had_or_the_day_failed(
    exchange: Exchange, key: SeriesKey, seed: int, conflicts: set[date], lacking: dict[date, Span]
) -> None:
    """A case is one day of one series, brought from its scrambled archive and compared: 6 x 10 x 3 = 180 cases.

    Rows are dropped, repeated and put out of order in every one. Of up to 2 days of 10 the archive contradicts itself,
    and those fail. Of up to 4 REST lacks a span of rows as well, within which nothing is invented: such candles are an
    outage, such trades unexplained, and all around them is filled in.
    """
    absent = [MissingRows(start=moment(day, first), end=moment(day, end)) for day, (first, end) in lacking.items()]
    results, held = exchange.brought(key, [*scramble(key, seed, conflicts).values(), *absent])
    verdict = "unexplained" if key.interval is None else "outage"
    for outcome in sound(results, conflicts):
        day, had = outcome.day, exchange.had[key][outcome.day]
        there = without(key, had, day, lacking.get(day))
        assert held[day].equals(there), (day, seed)
        found = verdicts(outcome)
        assert found.keys() <= {"healed", verdict}
        assert found[verdict] == had.num_rows - there.num_rows, (day, seed)


@settings(max_examples=sized(2, 6), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=SEEDS, conflicts=CONFLICTS, status=st.sampled_from([403, 503]))
@example(seed=1, conflicts=set(), status=503)
@pytest.mark.parametrize("key", KEYS, ids=str)
def test_without_rest_the_lake_has_the_archive_only(
    exchange: Exchange, key: SeriesKey, seed: int, conflicts: set[date], status: int
) -> None:
    """A case is one day of one series, as above: 3 x 10 x 3 = 90 cases. The rows that lack are all told of."""
    faults = scramble(key, seed, conflicts)
    results, held = exchange.brought(key, [*faults.values(), Status(path="^/f?api/", status=status)])
    outcomes = list(sound(results, conflicts))
    told: Counter[str] = Counter()
    for outcome in outcomes:
        day, had = outcome.day, exchange.had[key][outcome.day]
        numbered = [[str(n)] for n in range(had.num_rows)]
        left = sorted({int(row[0]) for row in scrambled(key.data_type, numbered, faults[day])})
        assert held[day].equals(had.take(pa.array(np.array(left)))), (day, seed)
        told += verdicts(outcome)
    # Across midnight, ids that lack may be told of on either day.
    assert told == Counter(unpublished=missing_of(exchange.had[key], outcomes, held))
