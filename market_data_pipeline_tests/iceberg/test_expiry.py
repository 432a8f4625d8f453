"""Old snapshots and the files that nothing needs any more."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from market_data_pipeline import clock
from market_data_pipeline.iceberg.catalog import LOST_RACE
from market_data_pipeline.iceberg.hints import hint_files
from market_data_pipeline_tests.iceberg.conftest import BTC, JANUARY, Lakehouse

FIRST, SECOND = JANUARY[:2]


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let time pass, for snapshots and for files."""

    def pass_hours(hours: float) -> None:
        moment = datetime.now(UTC) + timedelta(hours=hours)
        monkeypatch.setattr(clock, "now", lambda: moment)
        monkeypatch.setattr(time, "time", moment.timestamp)

    return pass_hours


def snapshots(house: Lakehouse) -> int:
    return len(house.table().metadata.snapshots)


def test_old_snapshots_go_and_their_files_with_them(house: Lakehouse, later: Any) -> None:
    for version in range(3):
        house.put(BTC, [FIRST], version=version)
        house.publish()
    house.put(BTC, [SECOND])
    later(71)
    house.publish()
    assert (snapshots(house), len(house.data_files())) == (4, 4)
    later(100)
    report = house.publish()
    assert (report.expired, snapshots(house)) == (3, 1)
    assert [path.name[:10] for path in house.data_files()] == ["2024-01-01", "2024-01-02"]
    assert (house.versions(BTC, FIRST), house.rows(BTC).num_rows) == ([2], 48)


def test_expiry_waits_until_it_is_worth_it(house: Lakehouse, later: Any) -> None:
    """It looks at all files of a table, so one old snapshot is no reason."""
    for version in range(2):
        house.put(BTC, [FIRST], version=version)
        house.publish()
    later(80)
    assert house.publish().expired == 0
    assert house.publish(expire_now=True).expired == 1


def test_a_snapshot_with_a_tag_stays(house: Lakehouse, later: Any) -> None:
    house.put(BTC, [FIRST])
    house.publish()
    table = house.table()
    kept = table.metadata.snapshots[0].snapshot_id
    table.manage_snapshots().create_tag(kept, "paper").commit()
    for version in range(1, 3):
        house.put(BTC, [FIRST], version=version)
        house.publish()
    later(1000)
    assert house.publish().expired == 1
    assert house.rows(BTC, kept)["volume"].to_pylist() == [0] * 24
    assert house.versions(BTC, FIRST) == [2]


def test_files_of_a_stopped_publish_go_after_a_grace(
    house: Lakehouse, later: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.put(BTC, [FIRST])
    house.publish()
    folder = house.data_files()[0].parent
    orphan = folder / "2024-01-01-0123456789ab-01234567.parquet"
    os.link(house.layout.file(BTC, FIRST), orphan)
    assert house.publish(expire_now=True).deleted == 0
    later(25)
    assert house.publish(expire_now=True).deleted == 1
    assert not orphan.exists()
    assert house.rows(BTC).num_rows == 24


def test_expiry_leaves_what_readers_without_a_catalog_need(house: Lakehouse, later: Any) -> None:
    for version in range(4):
        house.put(BTC, [FIRST], version=version)
        house.publish()
    later(1000)
    house.publish()
    newest, hint = hint_files(house.table().metadata_location)
    metadata = house.layout.iceberg_table("binance_spot", "klines") / "metadata"
    assert {newest, hint} <= {f"file://{path}" for path in metadata.iterdir()}
    assert f"v{(metadata / 'version-hint.text').read_text()}." in newest


def test_a_lost_race_leaves_expiry_to_the_next_publish(
    house: Lakehouse, later: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in range(2):
        house.put(BTC, [FIRST], version=version)
        house.publish()
    later(1000)

    def lose(*given: object, **named: object) -> None:
        raise LOST_RACE

    with monkeypatch.context() as patched:
        patched.setattr("pyiceberg.catalog.sql.SqlCatalog.commit_table", lose)
        assert house.publish().expired == 0
    assert house.publish().expired == 1
