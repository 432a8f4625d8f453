"""Funding rates as an analyst meets them: the universe, the command, ``MarketData``, SQL and the sweep."""

from __future__ import annotations

from datetime import date

import pytest

from market_data_pipeline import MarketData
from market_data_pipeline.errors import UsageError
from market_data_pipeline.lake import quarantine
from market_data_pipeline.maintenance.archive_sweep import ArchiveChange, sweep
from market_data_pipeline.model.series import EXCHANGE, DataType, Market, SeriesKey
from market_data_pipeline.sandbox import MissingRows, WrongChecksum
from market_data_pipeline.sources.binance.archive import ArchiveClient
from market_data_pipeline.universe import parse_universe
from market_data_pipeline_tests.support.shell import MarketData as Shell
from market_data_pipeline_tests.support.shell import shell
from market_data_pipeline_tests.support.world import World, days, utc

BTC = SeriesKey(EXCHANGE, Market.UM, DataType.FUNDING_RATE, "BTCUSDT")
UNIVERSE = """\
collect:
  - market: um
    symbols: [ETHUSDT]
    fundingRate: {from: 2026-01-01}
"""


@pytest.fixture
def market_data(world: World, monkeypatch: pytest.MonkeyPatch) -> Shell:
    """Run the command in a world of its own."""
    return shell(world, monkeypatch, UNIVERSE)


def test_added_funding_is_served_by_python_and_sql(world: World, market_data: Shell) -> None:
    result = market_data("add", "BTCUSDT", "fundingRate", "--market", "um", "--from", "2026-01-20", "--yes")
    assert result.exit_code == 0, result.output
    market = MarketData(world.layout.root)
    rates = market.funding_rate("BTCUSDT", "2026-01-20", "2026-03-01", on_gap="raise")
    frame = rates.df()
    assert len(frame) == 40 * 3
    assert list(frame.columns) == ["symbol", "calc_time", "funding_interval_hours", "last_funding_rate"]
    assert frame.last_funding_rate.between(-0.0002, 0.0004).all()
    wide = market.funding_rate("BTCUSDT", "2026-02-01", "2026-02-02").wide("last_funding_rate")
    assert wide.shape == (3, 1)
    counted = market.sql("SELECT count(*) AS n FROM binance_um.funding_rate").arrow().to_pylist()
    assert counted[0]["n"] == len(market.funding_rate("BTCUSDT", "2026-01-20").df())


def test_gap_of_funding_has_a_time(world: World) -> None:
    at = utc("2026-01-15T08:00")
    world.sandbox.faults.add(MissingRows(start=at, end=utc("2026-01-15T08:01"), series="fundingRate"))
    world.ingest(BTC, days("2026-01-14", "2026-01-16"))
    market = MarketData(world.root)
    (row,) = market.sql('SELECT verdict, first, last, first_id, "count" FROM quality.gaps').arrow().to_pylist()
    assert row == {"verdict": "outage", "first": at, "last": at, "first_id": None, "count": 1}


def test_spot_has_no_funding_rate(world: World) -> None:
    with pytest.raises(UsageError, match=r"spot has no fundingRate\. Pass market='um' or 'cm'\."):
        MarketData(world.root).funding_rate("BTCUSDT", "2026-01-01", market="spot")
    text = "collect:\n  - {market: [spot, um], symbols: [BTCUSDT], fundingRate: {from: 2024-01-01}}"
    with pytest.raises(UsageError, match=r"line 2: spot has no fundingRate\. Allowed: klines, aggTrades, trades\."):
        parse_universe(text)


def test_command_refuses_funding_of_spot(market_data: Shell) -> None:
    result = market_data("add", "BTCUSDT", "fundingRate")
    assert result.exit_code == 2
    assert "spot has no fundingRate. Allowed: klines, aggTrades, trades." in result.stderr


def test_sweep_finds_the_month_of_provisional_days(world: World) -> None:
    world.at("2026-02-02T12:00")
    world.ingest(BTC, days("2026-01-30", "2026-02-01"))
    archive = ArchiveClient(world.settings)
    assert not sweep(world.settings, [BTC], archive).discoveries
    world.at("2026-02-04T12:00")
    (found,) = sweep(world.settings, [BTC], archive).discoveries
    archive.close()
    assert (found.kind, found.days) == (ArchiveChange.PUBLISHED, (date(2026, 1, 30), date(2026, 1, 31)))


def test_month_with_a_wrong_checksum_can_be_accepted(world: World, market_data: Shell) -> None:
    wrong = WrongChecksum(path="ETHUSDT-fundingRate-2026-01")
    world.sandbox.faults.add(wrong)
    arguments = ("backfill", "--from", "2026-01-30", "--through", "2026-02-01", "--yes")
    assert market_data(*arguments).exit_code == 1
    listed = market_data("quarantine", "list")
    assert "fundingRate" in listed.output
    (entry,) = quarantine.entries(world.layout)
    result = market_data("quarantine", "accept", entry.name, "--yes")
    assert result.exit_code in (0, 3), result.output
    eth = SeriesKey(EXCHANGE, Market.UM, DataType.FUNDING_RATE, "ETHUSDT")
    rows = world.ledger(eth).rows
    assert [(rows[day].final, rows[day].checksum) for day in days("2026-01-30", "2026-01-31")] == [
        (True, "accepted")
    ] * 2
