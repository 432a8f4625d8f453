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


def test_a_page_can_begin_in_the_middle_of_a_folder(world: World) -> None:
    key = klines("BTCUSDT", "1d")
    archive = Archive(world.settings)
    world.forget()
    after = key.archive_daily(date(2026, 3, 2)).removesuffix(".zip")
    files, more = archive.list_page(key.archive_folder(), after)
    expected = [key.archive_daily(date(2026, 3, number)) for number in (2, 3, 4)]
    assert [file.key for file in files] == [name for zip_ in expected for name in (zip_, f"{zip_}.CHECKSUM")]
    assert not more
    assert len(world.sandbox.requests) == 1
    assert archive.list_page(key.archive_folder(), key.archive_daily(date(2018, 1, 1)))[1]
