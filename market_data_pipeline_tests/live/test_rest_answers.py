"""Requests of the feed to REST: the symbols that trade now."""

from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path

import pytest

from market_data_pipeline.live.rest_answers import RestAnswers
from market_data_pipeline.model.series import Market
from market_data_pipeline.model.waits import Stop
from market_data_pipeline.sandbox import Sandbox
from market_data_pipeline.sandbox.symbols import GeneratedSymbol
from market_data_pipeline_tests.support.world import World

TODAY = date(2026, 3, 5)


@pytest.mark.parametrize(
    ("market", "listed", "gone", "trading"),
    [
        (Market.SPOT, "BTCUSDT", "LUNAUSDT", {"BTCUSDT"}),
        (Market.UM, "BTCUSDT", "LUNAUSDT", {"BTCUSDT"}),
        (Market.CM, "BTCUSD_PERP", "LUNAUSD_PERP", {"BTCUSD_PERP", "BTCUSD"}),
    ],
)
def test_delisted_symbols_do_not_trade(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, market: Market, listed: str, gone: str, trading: set[str]
) -> None:
    first, last = TODAY - timedelta(days=30), TODAY - timedelta(days=1)
    decimals = 0 if market is Market.CM else 3
    symbols = [
        GeneratedSymbol(market, listed, first, quantity_decimals=decimals),
        GeneratedSymbol(market, gone, first, last, quantity_decimals=decimals),
    ]
    with Sandbox(symbols=symbols) as sandbox:
        world = World(tmp_path, sandbox, monkeypatch)
        world.at(f"{TODAY}T12:00:00")
        answers = RestAnswers(market, world.settings, Stop())
        assert answers.trading_symbols() == trading
        assert answers.requests == 1
        answers.close()
