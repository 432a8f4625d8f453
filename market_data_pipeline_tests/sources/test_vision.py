"""The archive: listing over pages, and what a wrong address says."""

from __future__ import annotations

from datetime import date

import pytest

from market_data_pipeline.sources.errors import NetworkError
from market_data_pipeline.sources.vision import Archive
from market_data_pipeline_tests.world import World, klines


def test_a_long_folder_is_listed_over_pages(world: World) -> None:
    prefix = klines("BTCUSDT", "1d").archive_folder()
    world.forget()
    zips = [file.key for file in Archive(world.settings).list_files(prefix) if file.key.endswith(".zip")]
    days = (date(2026, 3, 4) - date(2017, 8, 17)).days + 1
    assert len(zips) == len(set(zips)) == days
    assert zips[-1].endswith("BTCUSDT-1d-2026-03-04.zip")
    assert len(world.sandbox.requests) == -(-2 * days // 1000)


def test_folders_are_the_symbols_of_a_market(world: World) -> None:
    symbols = Archive(world.settings).list_folders("data/spot/daily/klines/")
    assert {"BTCUSDT", "ETHUSDT", "LUNAUSDT", "币安人生USDT"} <= set(symbols)


def test_an_address_that_lists_nothing_is_named(world: World) -> None:
    world.set(vision_listing_url=f"{world.sandbox.url}/api/v3/time")
    with pytest.raises(NetworkError, match="MARKET_DATA_VISION_LISTING_URL"):
        Archive(world.settings).list_folders("data/")
