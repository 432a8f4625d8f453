"""Every data type of the table goes the whole way: ``market-data backfill``, checks, SQL and ``MarketData``."""

from __future__ import annotations

import pytest

from market_data_pipeline import MarketData
from market_data_pipeline.model.datasets import SPECS, Spec
from market_data_pipeline.model.series import EXCHANGE, DataType, Market, SeriesKey
from market_data_pipeline_tests.support.shell import shell
from market_data_pipeline_tests.support.world import World, days

pytestmark = pytest.mark.slow

PUBLISHED = [spec for spec in SPECS.values() if spec.ended is None]
"""Ended types have tests of their own, on days that they have."""
METRICS, FUNDING_RATE = DataType.METRICS, DataType.FUNDING_RATE
SYMBOLS = {Market.SPOT: "BTCUSDT", Market.UM: "BTCUSDT", Market.CM: "BTCUSD_PERP"}


def key_of(spec: Spec) -> SeriesKey:
    interval = "1h" if spec.data_type.has_interval else None
    return SeriesKey(EXCHANGE, spec.market, spec.data_type, SYMBOLS[spec.market], interval)


def test_every_type_is_backfilled_checked_and_served(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = []
    for market, symbol in SYMBOLS.items():
        entries.append(f"  - market: {market}\n    symbols: [{symbol}]\n")
        for spec in PUBLISHED:
            if spec.market is market:
                intervals = "intervals: [1h], " if spec.data_type.has_interval else ""
                entries.append(f"    {spec.data_type}: {{{intervals}from: 2026-02-10}}\n")
    run = shell(world, monkeypatch, "collect:\n" + "".join(entries))
    result = run("backfill", "--from", "2026-02-10", "--through", "2026-02-11", "--yes")
    assert result.exit_code == 0, result.output
    client = MarketData(world.layout.root)
    for spec in PUBLISHED:
        key = key_of(spec)
        rows = world.ledger(key).rows
        assert [(rows[day].final, rows[day].integrity, rows[day].gaps) for day in days("2026-02-10", "2026-02-11")] == [
            (True, "info", "info")
        ] * 2, key
        method = getattr(client, key.data_type.sql_name)
        interval = (key.interval,) if key.interval else ()
        found = method(key.symbol, *interval, "2026-02-10", "2026-02-12", market=str(key.market), on_gap="raise")
        assert len(found) == sum(row.rows for row in rows.values())
    assert run("compact").exit_code == 0
    assert run("verify", "--local").exit_code == 0


def test_closed_month_has_the_same_rows_and_nulls(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    types = "    metrics: {from: 2026-01-01}\n    fundingRate: {from: 2026-01-01}\n"
    run = shell(world, monkeypatch, f"collect:\n  - market: cm\n    symbols: [BTCUSD_PERP]\n{types}")
    assert run("backfill", "--from", "2026-01-01", "--through", "2026-01-31", "--yes").exit_code == 0
    client = MarketData(world.layout.root)
    span = ("BTCUSD_PERP", "2026-01-01", "2026-02-01")
    before = [client.metrics(*span, market="cm").arrow(), client.funding_rate(*span, market="cm").arrow()]
    assert [table.num_rows for table in before] == [31 * 288, 31 * 3]
    assert before[0].column("count_long_short_ratio").null_count == 31 * 6
    assert run("compact").exit_code == 0
    keys = [SeriesKey(EXCHANGE, Market.CM, data_type, "BTCUSD_PERP") for data_type in (METRICS, FUNDING_RATE)]
    assert [len(list(world.layout.months(key).iterdir())) for key in keys] == [1, 1]
    after = [client.metrics(*span, market="cm").arrow(), client.funding_rate(*span, market="cm").arrow()]
    assert after == before
    assert run("verify", "--local").exit_code == 0
