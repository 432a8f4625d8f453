"""Asset keys: readable on their own, valid for Dagster, and parsed back to their series."""

from __future__ import annotations

import re

import dagster as dg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline.defs.keys import (
    asset_key_of,
    coverage_key_of,
    decode_symbol,
    encode_symbol,
    is_series,
    renamed,
    series_of,
)
from market_data_pipeline.model.datasets import WORDS
from market_data_pipeline.model.lineage import profile_of
from market_data_pipeline.model.series import EXCHANGE, DataType, Market, SeriesKey, intervals_of
from market_data_pipeline_tests.support.world import agg_trades, klines

symbols = st.text(min_size=1).filter(lambda s: re.fullmatch(r"[^\s/\\.][^\s/\\]*", s) is not None)


OLD_TYPES = (DataType.KLINES, DataType.AGG_TRADES, DataType.TRADE_PROFILE)


@st.composite
def series(draw: st.DrawFn) -> SeriesKey:
    data_type = draw(st.sampled_from(DataType))
    interval = draw(st.sampled_from(intervals_of(Market.UM))) if data_type.has_interval else None
    return SeriesKey(EXCHANGE, draw(st.sampled_from(Market)), data_type, draw(symbols), interval)


@pytest.mark.parametrize(
    ("key", "name"),
    [
        (klines("BTCUSDT", "1m"), "binance/spot/klines/BTCUSDT_1m"),
        (klines("BTCUSD_PERP", "1d", "cm"), "binance/cm/klines/BTCUSD_PERP_1d"),
        (agg_trades("BTCUSDT_240628", "um"), "binance/um/aggTrades/BTCUSDT_240628_aggTrades"),
        (profile_of(agg_trades("BTCUSDT")), "binance/spot/tradeProfile/BTCUSDT_tradeProfile"),
        (klines("币USDT", "1h"), "binance/spot/klines/u5e01_USDT_1h"),
    ],
)
def test_last_part_names_the_series(key: SeriesKey, name: str) -> None:
    assert asset_key_of(key).to_user_string() == name


@given(series())
def test_every_key_is_valid_and_parsed_back(key: SeriesKey) -> None:
    asset_key = asset_key_of(key)
    assert all(re.fullmatch(r"[A-Za-z0-9_]+", part) for part in asset_key.path)
    assert series_of(asset_key) == key
    assert is_series(asset_key)


@given(series(), series())
def test_last_parts_differ_within_a_market(one: SeriesKey, other: SeriesKey) -> None:
    """Two series share a last part only if they are the same series of another market."""
    same = asset_key_of(one).path[-1] == asset_key_of(other).path[-1]
    assert same == ((one.data_type, one.symbol, one.interval) == (other.data_type, other.symbol, other.interval))


def test_words_cover_every_data_type_and_parse() -> None:
    assert set(WORDS) == set(DataType)
    assert [words.suffix for words in WORDS.values() if "_" in words.suffix] == []


@pytest.mark.parametrize(
    "path",
    [
        ["binance", "options", "klines", "BTCUSDT_1m"],
        ["binance", "spot", "klines", "BTCUSDT", "1m"],
        ["binance", "spot", "aggTrades", "BTCUSDT"],
        ["binance", "spot", "spot_coverage"],
    ],
)
def test_other_keys_are_no_series(path: list[str]) -> None:
    with pytest.raises(ValueError, match=r"options|not the asset of a series|does not end with"):
        series_of(dg.AssetKey(path))


def test_coverage_is_no_series() -> None:
    key = coverage_key_of(Market.UM)
    assert key.to_user_string() == "binance/um/um_coverage"
    assert not is_series(key)


@given(series().filter(lambda key: key.data_type in OLD_TYPES))
def test_keys_of_version_0_1_become_present_keys(key: SeriesKey) -> None:
    old = [key.exchange, key.market.value, key.data_type.value, encode_symbol(key.symbol)]
    old += [key.interval] if key.interval else []
    assert renamed(old) == asset_key_of(key)
    assert renamed(asset_key_of(key).path) is None


@pytest.mark.parametrize(
    "path",
    [
        ["mine"],
        ["binance", "x", "coverage"],
        ["binance", "spot", "spot_coverage"],
        ["binance", "um", "klines", "A", "7m"],
        [],
    ],
)
def test_keys_of_other_assets_do_not_change(path: list[str]) -> None:
    assert renamed(path) is None


def test_coverage_of_version_0_1_is_renamed() -> None:
    assert renamed(["binance", "um", "coverage"]) == coverage_key_of(Market.UM)


@given(st.text(), st.text())
def test_two_symbols_never_share_a_name(one: str, other: str) -> None:
    assert decode_symbol(encode_symbol(one)) == one
    assert (encode_symbol(one) == encode_symbol(other)) == (one == other)


@pytest.mark.parametrize("symbol", ["BTCUSDT", "BTCUSD_PERP", "BTCUSDT_240628", "1000000MOGUSDT", "0GUSDT"])
def test_latin_symbols_stay_as_they_are(symbol: str) -> None:
    assert encode_symbol(symbol) == symbol
