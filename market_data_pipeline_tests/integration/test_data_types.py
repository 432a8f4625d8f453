"""Every data type of the table goes the whole way: ``market-data backfill``, checks, SQL and ``MarketData``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from market_data_pipeline import MarketData
from market_data_pipeline.clock import DAY
from market_data_pipeline.defs.definitions import build_definitions
from market_data_pipeline.defs.in_process import materialize_days
from market_data_pipeline.defs.keys import series_of
from market_data_pipeline.defs.platform.home import open_instance
from market_data_pipeline.model.datasets import SPECS, Spec
from market_data_pipeline.model.series import EXCHANGE, DataType, Market, SeriesKey
from market_data_pipeline.sandbox import DEFAULT_SYMBOLS, Sandbox
from market_data_pipeline.universe import load_universe
from market_data_pipeline_tests.support.shell import shell
from market_data_pipeline_tests.support.world import World

pytestmark = pytest.mark.slow

METRICS, FUNDING_RATE = DataType.METRICS, DataType.FUNDING_RATE
SYMBOLS = {Market.SPOT: "BTCUSDT", Market.UM: "BTCUSDT", Market.CM: "BTCUSD_PERP", Market.OPTION: "BTCUSDT"}
Span = tuple[date, date]


def key_of(spec: Spec) -> SeriesKey:
    symbol = "BTCBVOLUSDT" if spec.data_type is DataType.BVOL_INDEX else SYMBOLS[spec.market]
    return SeriesKey(EXCHANGE, spec.market, spec.data_type, symbol, "1h" if spec.data_type.has_interval else None)


def span_of(spec: Spec) -> Span:
    """Two days: those of the world, or the last ones of a type that ended."""
    last = spec.ended or date(2026, 2, 11)
    return last - DAY, last


LASTING = span_of(SPECS[Market.SPOT, DataType.KLINES])
SPANS: dict[Span, list[SeriesKey]] = {}
for one in SPECS.values():
    SPANS.setdefault(span_of(one), []).append(key_of(one))


@pytest.fixture
def few_trades(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A world with one symbol of each kind and few trades."""
    names = {(key.market, key.symbol) for keys in SPANS.values() for key in keys}
    symbols = [replace(one, trades_per_day=500) for one in DEFAULT_SYMBOLS if (one.market, one.symbol) in names]
    with Sandbox(symbols=symbols) as sandbox:
        world = World(tmp_path, sandbox, monkeypatch)
        world.at("2026-03-05T12:00:30")
        yield world


def universe_text() -> str:
    """Every row of the table, each from its first day on."""
    entries = []
    for (first, _), keys in SPANS.items():
        for key in keys:
            intervals = "intervals: [1h], " if key.interval else ""
            entries.append(f"  - market: {key.market}\n    symbols: [{key.symbol}]\n")
            entries.append(f"    {key.data_type}: {{{intervals}from: {first}}}\n")
    return "collect:\n" + "".join(entries)


def of_commands() -> dict[Span, list[SeriesKey]]:
    """The spans, with types of a market that ended on other days in one: what is before or after theirs is left out."""
    ended: dict[Market, list[tuple[Span, SeriesKey]]] = {}
    for span, keys in SPANS.items():
        for key in keys if span != LASTING else ():
            ended.setdefault(key.market, []).append((span, key))
    together = {
        (min(first for (first, _), _ in found), max(last for (_, last), _ in found)): [key for _, key in found]
        for found in ended.values()
    }
    return {LASTING: SPANS[LASTING], **together}


def assert_complete(world: World) -> None:
    """Each day of each type is final, passes its checks, and is served by SQL and Python."""
    client = MarketData(world.layout.root)
    for (first, last), keys in SPANS.items():
        for key in keys:
            rows = world.ledger(key).rows
            # Binance writes each forced order of um twice.
            twice = (key.market, key.data_type) == (Market.UM, DataType.LIQUIDATION_SNAPSHOT)
            assert {day: (row.final, row.integrity, row.gaps) for day, row in rows.items()} == dict.fromkeys(
                (first, last), (True, "warn" if twice else "info", "info")
            ), key
            method = getattr(client, key.data_type.sql_name)
            interval = (key.interval,) if key.interval else ()
            found = method(
                key.symbol, *interval, first.isoformat(), (last + DAY).isoformat(), market=key.market, on_gap="raise"
            )
            assert len(found) == sum(row.rows for row in rows.values()) > 0, key


def test_every_row_of_the_table_loads_by_command(few_trades: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world = few_trades
    run = shell(world, monkeypatch, universe_text())
    for (first, last), keys in of_commands().items():
        chosen = [f"--data-type={data_type}" for data_type in dict.fromkeys(key.data_type for key in keys)]
        markets = [f"--market={market}" for market in dict.fromkeys(key.market for key in keys)]
        result = run("backfill", *chosen, *markets, "--from", str(first), "--through", str(last), "--yes")
        assert result.exit_code == 0, result.output
    assert_complete(world)
    assert run("compact").exit_code == 0
    assert run("verify", "--local").exit_code == 0


def test_every_row_of_the_table_loads_day_by_day_in_dagster(few_trades: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world = few_trades
    run = shell(world, monkeypatch, universe_text())
    assert run("universe", "refresh").exit_code == 0
    settings = world.settings.model_copy(update={"universe": world.root / "universe.yaml"})
    definitions = build_definitions(settings, load_universe(settings.universe))
    with open_instance(world.layout) as instance:
        for span, keys in SPANS.items():
            # Day by day where there are most types, and both days at once of those that ended.
            for first, last in zip(span, span, strict=True) if span == LASTING else [span]:
                done = materialize_days(instance, definitions, keys, first, last)
                assert done.success
                checks = {(series_of(one.asset_key), one.check_name) for one in done.get_asset_check_evaluations()}
                assert checks >= {(key, name) for key in keys for name in ("integrity", "gaps")}
    assert_complete(world)


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
