"""Catalogs: SQL and REST by a setting, and what people read if one cannot be used."""

from __future__ import annotations

import pytest

from market_data_pipeline.errors import EnvironmentFaultError, UsageError
from market_data_pipeline.iceberg.catalog import opened_catalog
from market_data_pipeline.iceberg.comparison import compare_tables
from market_data_pipeline.model.places import place_of
from market_data_pipeline_tests.iceberg.conftest import BTC, ETH, JANUARY, Lakehouse
from market_data_pipeline_tests.support.rest_catalog import serve_catalog


def with_catalog(house: Lakehouse, uri: str) -> Lakehouse:
    house.settings = house.settings.model_copy(update={"iceberg_catalog": uri})
    return house


def test_a_rest_catalog_has_the_same_tables(house: Lakehouse) -> None:
    with serve_catalog(house.root.parent) as uri:
        with_catalog(house, uri)
        house.put(BTC, JANUARY[:2])
        assert house.publish().commits == 1
        house.put(BTC, JANUARY[:1], version=1)
        house.put(ETH, JANUARY[:1])
        assert house.publish().commits == 1
        assert house.versions(BTC, JANUARY[0]) == [1]
        assert list(compare_tables(house.settings, [BTC, ETH])) == []
        with opened_catalog(house.settings) as catalog:
            assert catalog.list_tables("binance_spot") == [("binance_spot", "klines")]
    assert not (house.layout.iceberg / "catalog.db").exists()


def test_a_lake_in_a_bucket_is_refused_in_words(house: Lakehouse) -> None:
    house.settings = house.settings.model_copy(update={"dir": place_of("s3://lake/data")})
    with pytest.raises(UsageError, match=r"s3://lake/data is a bucket, and Iceberg tables are made of"):
        house.publish()


def test_two_data_folders_do_not_write_one_table(house: Lakehouse) -> None:
    uri = f"sqlite:///{house.root.parent}/shared.db"
    with_catalog(house, uri).put(BTC, JANUARY[:1])
    house.publish()
    other = with_catalog(Lakehouse(house.root.with_name("other")), uri)
    other.put(BTC, JANUARY[:1])
    with pytest.raises(UsageError, match=r"table binance_spot.klines belongs to file://.*/data/iceberg/"):
        other.publish()


@pytest.mark.parametrize(
    ("uri", "error", "text"),
    [
        ("http://127.0.0.1:9/", EnvironmentFaultError, "cannot be used: .*refused"),
        ("nonsense", UsageError, "is nonsense, which is no address of a catalog"),
        ("postgresql+nothing://me:secret@host/db", UsageError, r"me:\*\*\*@host/db"),
        ("mysql+mysqldb://me@host/db", UsageError, "needs the package MySQLdb"),
        ("sqlite:////proc/no/catalog.db", EnvironmentFaultError, "unable to open database file"),
    ],
)
def test_a_catalog_that_cannot_be_used_is_named(house: Lakehouse, uri: str, error: type[Exception], text: str) -> None:
    house.put(BTC, JANUARY[:1])
    with pytest.raises(error, match=text) as caught:
        with_catalog(house, uri).publish()
    assert "secret" not in str(caught.value)


def test_a_catalog_that_names_lost_metadata_is_named(house: Lakehouse) -> None:
    with_catalog(house, f"sqlite:///{house.root.parent}/shared.db").put(BTC, JANUARY[:1])
    house.publish()
    for path in (house.layout.iceberg_table("binance_spot", "klines") / "metadata").iterdir():
        path.unlink()
    with pytest.raises(EnvironmentFaultError, match="names a file that is gone"):
        house.publish()


def test_lost_tables_are_published_anew(house: Lakehouse) -> None:
    house.put(BTC, JANUARY[:1])
    house.publish()
    for path in (house.layout.iceberg_table("binance_spot", "klines") / "metadata").iterdir():
        path.unlink()
    assert house.publish().added == 1
    assert house.rows(BTC).num_rows == 24


def test_a_folder_that_is_no_address_is_refused(house: Lakehouse) -> None:
    odd = Lakehouse(house.root.with_name("50% #1"))
    odd.put(BTC, JANUARY[:1])
    with pytest.raises(UsageError, match="without #, "):
        odd.publish()
