"""Whatever an archive lacks, repeats or shuffles: healed, the lake is what the exchange had, or the day failed."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from market_data_pipeline.ingest import DayFailure, DayOutcome, Sources, ingest
from market_data_pipeline.lake import files
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.sandbox import GeneratedSymbol, Sandbox, ScrambledArchive
from market_data_pipeline.series import Market, SeriesKey
from market_data_pipeline.sources.budget import WeightBudget
from market_data_pipeline_tests.world import World, agg_trades, days, klines

DAYS = days("2026-02-01", "2026-02-10")
KEYS = [klines("SMALLUSDT", "5m"), agg_trades("SMALLUSDT"), agg_trades("SMALLUSDT", "um")]


class Exchange:
    """A world whose archives can be scrambled, and what the exchange had."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._runs = 0
        self.had = {key: self.brought(key)[1] for key in KEYS}

    def brought(
        self, key: SeriesKey, faults: tuple[ScrambledArchive, ...] = ()
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
        return results, {day: files.read_table(layout.file(key, day)) for day in held}


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
        yield Exchange(world)


# 18 examples of 10 days of 3 series are 540 scrambled days.
@settings(max_examples=18, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**31), conflicts=st.sets(st.sampled_from(DAYS), max_size=2))
@pytest.mark.parametrize("key", KEYS, ids=str)
def test_the_lake_is_what_the_exchange_had_or_the_day_failed(
    exchange: Exchange, key: SeriesKey, seed: int, conflicts: set[date]
) -> None:
    beside_a_failed_day = {day + step * timedelta(days=1) for day in conflicts for step in (-1, 1)}
    ends = {DAYS[0], DAYS[-1], *beside_a_failed_day}
    scrambled = tuple(
        ScrambledArchive(
            days=[day],
            seed=seed + n,
            conflict=day in conflicts,
            # What lacks at the end of a day of trades is told by its neighbour, which has to be there.
            drop_ends=key.interval is not None or day not in ends,
        )
        for n, day in enumerate(DAYS)
    )
    results, held = exchange.brought(key, scrambled)
    for result in results:
        if result.day in conflicts:
            assert isinstance(result, DayFailure), result.day
            assert result.failure == "conflict"
        else:
            assert isinstance(result, DayOutcome), result
            assert held[result.day].equals(exchange.had[key][result.day]), (result.day, seed)
            assert {f.rule for f in result.row.findings_list() if f.check == "gaps"} <= {"healed", "quiet"}
