"""Days from the live feed: stored without asking REST again, replaced by the archive, and evicted by proof."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path

import pytest

from market_data_pipeline import clock
from market_data_pipeline.lake import parquet
from market_data_pipeline.lake.live_eviction import evict_final_days, read_comparisons
from market_data_pipeline.lake.live_rows import CloseState, LiveRow, LiveWriter, live_days
from market_data_pipeline.model.provenance import Source
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.sandbox import LateArchive, Sandbox
from market_data_pipeline_tests.support.world import World, agg_trades, klines, utc

DAY = date(2024, 3, 1)
CANDLES, TRADES = klines("BTCUSDT", "1h"), agg_trades("BTCUSDT")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with Sandbox(now=utc("2024-03-02T00:30:00")) as sandbox:
        found = World(tmp_path, sandbox, monkeypatch)
        found.at("2024-03-02T00:30:00")
        yield found


def follow(world: World, key: SeriesKey, first: int = 0, last: int | None = None, changed: int | None = None) -> int:
    """Store rows of the day as the feed does, and the first rows of the next one. Return their number."""
    exchange = world.sandbox.site.exchange
    rows = []
    days = (DAY - timedelta(days=1), DAY, DAY + timedelta(days=1)) if key.interval is None else (DAY,)
    for day in days:
        found = exchange.rows(key, day, "rest")
        low, high = (first, last or len(found.times)) if day == DAY else (0, len(found.times))
        for number, r in enumerate(found.fields(low, high)):
            if key.interval is None:
                values = (int(r[0]), float(r[1]), float(r[2]), int(r[3]), int(r[4]), int(r[5]), r[6] == "True", True)
            else:
                numbers = [float(text) for text in r[1:6]]
                numbers[3] += 1.0 if number == changed else 0.0
                values = (int(r[0]), *numbers, int(r[6]), float(r[7]), int(r[8]), float(r[9]), float(r[10]))  # type: ignore[assignment]
            rows.append(LiveRow(values, CloseState.CLOSED))
    with LiveWriter(world.layout) as writer:
        return writer.append(key, rows)


def requests_for_rows(world: World) -> list[str]:
    return [r.path for r in world.sandbox.requests if r.path.endswith(("/klines", "/aggTrades"))]


def test_a_whole_live_day_needs_no_candles_of_rest(world: World) -> None:
    follow(world, CANDLES)
    (result,) = world.ingest(CANDLES, [DAY])
    assert requests_for_rows(world) == []
    assert (result.row.outcome, result.row.final, result.row.rows) == ("held", False, 24)
    record = parquet.read_provenance(world.layout.file(CANDLES, DAY))
    assert [(part.source, part.rows) for part in record.parts] == [(Source.LIVE, 24)]


def test_rest_completes_a_live_day(world: World) -> None:
    follow(world, CANDLES, last=10)
    (result,) = world.ingest(CANDLES, [DAY])
    assert result.row.rows == 24
    record = parquet.read_provenance(world.layout.file(CANDLES, DAY))
    assert [(part.source, part.rows) for part in record.parts] == [(Source.LIVE, 10), (Source.REST, 14)]


def test_live_rows_after_a_gap_are_left_to_rest(world: World) -> None:
    follow(world, CANDLES, first=3)
    (result,) = world.ingest(CANDLES, [DAY])
    assert result.row.source == "rest"
    assert result.row.rows == 24


def test_live_trades_continue_those_of_the_day_before(world: World) -> None:
    follow(world, TRADES)
    (result,) = world.ingest(TRADES, [DAY])
    assert requests_for_rows(world) == []
    true = len(world.sandbox.site.exchange.rows(TRADES, DAY, "rest").times)
    assert (result.row.source, result.row.rows) == ("live", true)


def test_the_archive_replaces_live_rows_and_evicts_them(world: World) -> None:
    world.sandbox.faults.add(LateArchive(days=[DAY], days_late=2))
    follow(world, CANDLES, changed=5)
    world.ingest(CANDLES, [DAY])
    assert list(evict_final_days(world.layout, CANDLES, clock.today())) == []
    world.at("2024-03-05T12:00:00")
    (result,) = world.ingest(CANDLES, [DAY])
    assert result.row.final
    (found,) = evict_final_days(world.layout, CANDLES, clock.today())
    assert (found.rows, found.changed, found.missing, found.evicted) == (24, 1, 0, True)
    assert live_days(world.layout, CANDLES) == []
    assert read_comparisons(world.layout) == [found]


def test_live_rows_that_the_archive_lacks_stay(world: World) -> None:
    follow(world, CANDLES)
    odd = clock.day_start_us(DAY) + 1_800_000_000
    with LiveWriter(world.layout) as writer:
        writer.append(CANDLES, [LiveRow((odd, 1, 1, 1, 1, 0, odd, 0, 0, 0, 0), CloseState.CLOSED)])
    world.at("2024-03-05T12:00:00")
    world.ingest(CANDLES, [DAY])
    (found,) = evict_final_days(world.layout, CANDLES, clock.today())
    assert (found.missing, found.evicted) == (1, False)
    assert live_days(world.layout, CANDLES) == [DAY]
