"""The record of what was reconciled: written, read, lost, and asked in SQL."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import duckdb
import pytest

from market_data_pipeline import clock
from market_data_pipeline.lake.ledger import Ledger
from market_data_pipeline.model.day import FAILED
from market_data_pipeline.model.lineage import source_of
from market_data_pipeline.model.reconciliation import DayReconciled, Difference, Reason
from market_data_pipeline.reconciliation.plan import plan
from market_data_pipeline.reconciliation.record import read_reconciled, write_reconciled
from market_data_pipeline.sql.publish import publish_catalog
from market_data_pipeline_tests.support.small_lake import SmallLake, days_from, series

BTC = series("BTCUSDT", "1h", "um")
DAY = date(2024, 1, 2)
VIEWS = ("quality.reconciliation", "quality.reconciliation_differences")


def day_found(day: date = DAY, *differences: Difference) -> DayReconciled:
    return DayReconciled(
        day=day,
        source=str(source_of(BTC)),
        klines_sha256="ab",
        source_sha256="cd",
        compared_at=datetime(2024, 2, 1),  # noqa: DTZ001 - the lake's times have no zone
        bars=24,
        differing=len(differences),
        explained=sum(bool(one.reason) for one in differences),
        differences=differences,
    )


def difference(hour: int, reason: str = "", ids: str = "") -> Difference:
    return Difference(datetime(2024, 1, 2, hour), "high", 2.5, None, reason, ids)  # noqa: DTZ001


@pytest.fixture
def lake(tmp_path: Path) -> SmallLake:
    return SmallLake(tmp_path / "o'[data] {x} *?")


def ask(lake: SmallLake, query: str) -> list[tuple[Any, ...]]:
    with duckdb.connect(str(publish_catalog(lake.layout)), read_only=True) as connection:
        rows: list[tuple[Any, ...]] = connection.execute(query).fetchall()
        return rows


def test_record_round_trips_and_a_lost_one_is_empty(lake: SmallLake) -> None:
    path = lake.layout.reconciled(BTC)
    found = [day_found(DAY, difference(5), difference(7, Reason.SKIPPED_TRADES, "17")), day_found(date(2024, 1, 1))]
    assert read_reconciled(path) == {}
    write_reconciled(path, found)
    assert read_reconciled(path) == {one.day: one for one in found}
    path.write_bytes(b"PAR1")
    assert read_reconciled(path) == {}


def test_sql_shows_days_and_values_with_types_even_if_empty(lake: SmallLake) -> None:
    types = [ask(lake, f"SELECT column_name, column_type FROM (DESCRIBE {view})") for view in VIEWS]
    assert [ask(lake, f"FROM {view}") for view in VIEWS] == [[], []]

    write_reconciled(
        lake.layout.reconciled(BTC), [day_found(DAY, difference(5), difference(7, Reason.SKIPPED_TRADES, "17"))]
    )

    assert [ask(lake, f"SELECT column_name, column_type FROM (DESCRIBE {view})") for view in VIEWS] == types
    labels = 'exchange, market, data_type, symbol, "interval", day'
    named = ("binance", "um", "klines", "BTCUSDT", "1h", DAY)
    assert ask(lake, f"SELECT {labels}, bars, differing, explained, unexplained FROM quality.reconciliation") == [
        (*named, 24, 2, 1, 1)
    ]
    values = "open_time, column_name, klines, rebuilt, reason, ids"
    assert ask(lake, f"SELECT {labels}, {values} FROM quality.reconciliation_differences ORDER BY open_time") == [
        (*named, datetime(2024, 1, 2, 5), "high", 2.5, None, None, None),  # noqa: DTZ001
        (*named, datetime(2024, 1, 2, 7), "high", 2.5, None, "skipped_trades", "17"),  # noqa: DTZ001
    ]


def test_day_excused_by_missing_trades_is_compared_again(lake: SmallLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is due when the neighbouring day arrives."""
    monkeypatch.setattr(clock, "now", lambda: datetime(2024, 3, 1, tzinfo=UTC))
    minutes = source_of(BTC)
    for key in (BTC, minutes):
        lake.put(key, days_from("2024-01-02", 1), fetched_at=datetime(2024, 1, 3, tzinfo=UTC))
    klines, source = (Ledger.read(lake.layout.ledger(key)).rows[DAY] for key in (BTC, minutes))
    path = lake.layout.reconciled(BTC)
    assert plan(lake.layout, BTC).days == (DAY,)

    for reason, again in ((Reason.MISSING_TRADES, (DAY,)), (Reason.SKIPPED_TRADES, ())):
        found = day_found(DAY, difference(5, reason))
        found = replace(found, klines_sha256=klines.content_sha256, source_sha256=source.content_sha256)
        write_reconciled(path, [found])
        assert plan(lake.layout, BTC).days == ()
        lake.put(minutes, days_from("2024-01-03", 1), fetched_at=datetime(2024, 2, 2, tzinfo=UTC))
        assert plan(lake.layout, BTC).days == again
        ledger = Ledger.read(lake.layout.ledger(minutes))
        del ledger.rows[date(2024, 1, 3)]
        ledger.write(lake.layout.ledger(minutes))


def test_sql_shows_days_unchanged_since_their_comparison(lake: SmallLake) -> None:
    minutes = source_of(BTC)
    days = days_from("2024-01-02", 5)
    same, klines_changed, source_changed, failed, lost = days
    for key in (BTC, minutes):
        lake.put(key, days[:4])
    klines, source = (Ledger.read(lake.layout.ledger(key)).rows for key in (BTC, minutes))
    write_reconciled(
        lake.layout.reconciled(BTC),
        [
            replace(day_found(day), klines_sha256=klines[day].content_sha256, source_sha256=source[day].content_sha256)
            for day in days[:4]
        ]
        + [day_found(lost)],
    )
    lake.put(BTC, [klines_changed], version=2)
    lake.put(minutes, [source_changed], version=2)
    lake.note(BTC, replace(klines[failed], outcome=FAILED))
    assert ask(lake, 'SELECT day, "current" FROM quality.reconciliation ORDER BY day') == [
        (same, True),
        (klines_changed, False),
        (source_changed, False),
        (failed, False),
        (lost, False),
    ]
    assert ask(lake, "SELECT count(*) FROM quality.reconciliation") == [(5,)]
