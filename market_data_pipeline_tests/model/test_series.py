"""The names of a series in lake, archive and SQL are derived from its fields."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from market_data_pipeline.errors import UsageError
from market_data_pipeline.model.datasets import SPECS, Spec, expected_rows
from market_data_pipeline.model.schema import lake_schema
from market_data_pipeline.model.series import (
    EXCHANGE,
    DataType,
    ListingSpans,
    Market,
    SeriesKey,
)
from market_data_pipeline.sql.file_lists import stored_series
from market_data_pipeline.sql.views import statements
from market_data_pipeline.universe import parse_universe
from market_data_pipeline_tests.support.world import World, agg_trades, klines

DAY = date(2024, 1, 1)


def test_klines_have_the_faces_of_the_design() -> None:
    key = klines("BTCUSDT", "1m")
    assert key.file(DAY) == "lake/binance/spot/klines/daily/BTCUSDT/1m/2024-01-01.parquet"
    assert key.ledger == "ledger/binance/spot/klines/BTCUSDT/1m.parquet"
    assert key.archive_daily(DAY) == "data/spot/daily/klines/BTCUSDT/1m/BTCUSDT-1m-2024-01-01.zip"
    assert key.archive_monthly(DAY) == "data/spot/monthly/klines/BTCUSDT/1m/BTCUSDT-1m-2024-01.zip"
    assert (key.sql_schema, key.data_type.sql_name) == ("binance_spot", "klines")


def test_agg_trades_have_the_faces_of_the_design() -> None:
    key = agg_trades("BTCUSD_PERP", "cm")
    assert key.file(DAY) == "lake/binance/cm/aggTrades/daily/BTCUSD_PERP/2024-01-01.parquet"
    assert key.archive_daily(DAY) == "data/futures/cm/daily/aggTrades/BTCUSD_PERP/BTCUSD_PERP-aggTrades-2024-01-01.zip"
    assert (key.sql_schema, key.data_type.sql_name) == ("binance_cm", "agg_trades")


@pytest.mark.parametrize("symbol", ["", "..", "a/b", "BTC USDT", ".hidden", "a\\b"])
def test_invalid_path_is_no_symbol(symbol: str) -> None:
    with pytest.raises(UsageError, match="cannot be a symbol"):
        agg_trades(symbol)


def test_an_unknown_interval_is_refused_with_those_that_exist() -> None:
    with pytest.raises(UsageError, match=r"'7m'.*1s, 1m, 3m"):
        klines("BTCUSDT", "7m")
    with pytest.raises(UsageError, match=r"'1s' in um.*There are: 1m"):
        klines("BTCUSDT", "1s", "um")


def test_a_relisted_symbol_is_not_listed_in_between() -> None:
    listing = ListingSpans(((date(2021, 1, 5), date(2022, 9, 27)), (date(2023, 3, 10), None)))
    tried = ("2021-01-04", "2021-01-05", "2022-09-27", "2022-12-01")
    assert [listing.covers(date.fromisoformat(day)) for day in tried] == [False, True, True, False]
    assert listing.covers(date(2030, 1, 1))
    assert ListingSpans().covers(date(2010, 1, 1))


def test_the_short_name_goes_without_the_exchange() -> None:
    key = SeriesKey("binance", Market.UM, DataType.KLINES, "BTCUSDT", "1m")
    assert (str(key), key.short) == ("binance/um/klines/BTCUSDT/1m", "um/klines/BTCUSDT/1m")


@pytest.mark.parametrize("spec", SPECS.values(), ids=lambda spec: f"{spec.market}-{spec.data_type}")
def test_name_labels_and_paths_follow_from_the_table(spec: Spec) -> None:
    """Series of candles have an interval, and no others."""
    of_candles = spec.data_type.has_interval
    right, wrong = ("1h", None) if of_candles else (None, "1h")
    key = SeriesKey(EXCHANGE, spec.market, spec.data_type, "BTCUSDT", right)
    with pytest.raises(UsageError, match="interval"):
        SeriesKey(EXCHANGE, spec.market, spec.data_type, "BTCUSDT", wrong)
    assert ("interval" in lake_schema(spec.market, spec.data_type).names) == of_candles
    assert (expected_rows(key) == 24) if of_candles else (expected_rows(key) is None)
    assert len(Path(key.folder).parts) == (7 if of_candles else 6)
    text = f"collect:\n  - {{market: {spec.market}, symbols: [BTCUSDT], {spec.data_type}: {{%sfrom: 2024-01-01}}}}"
    (entry,) = parse_universe(text % ("intervals: [1h], " if of_candles else ""))
    assert [wanted.intervals for wanted in entry.wanted] == [(right,)]


def test_market_may_have_no_such_data_type(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """As spot lacks the mark price: the universe refuses it with its line, and the catalog does without the view."""
    with monkeypatch.context() as patch:
        patch.delitem(SPECS, (Market.SPOT, DataType.AGG_TRADES))
        text = "collect:\n  - {market: [spot, um], symbols: [BTCUSDT], aggTrades: {from: 2024-01-01}}"
        with pytest.raises(UsageError, match=r"line 2: spot has no aggTrades\. Allowed: klines, trades\."):
            parse_universe(text)
        views = [
            sql for sql in statements(stored_series(world.layout)) if sql.startswith("CREATE OR REPLACE VIEW binance_")
        ]
    assert not any("binance_spot.agg_trades" in sql or "binance_spot.trade_profile" in sql for sql in views)
    assert any("binance_um.agg_trades" in sql for sql in views)
