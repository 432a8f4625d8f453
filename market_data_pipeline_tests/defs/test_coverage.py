"""The coverage asset of a market: what it tells, and its standing checks."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import dagster as dg
import pytest

from market_data_pipeline import clock
from market_data_pipeline.defs.coverage import coverage_key
from market_data_pipeline.lake.ledger import FAILED, LedgerRow
from market_data_pipeline.series import Market
from market_data_pipeline_tests.defs.fakes import KLINES, OTHER, TRADES, Project, day, hold, put


@pytest.fixture(autouse=True)
def _noon_of_january_4(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "now", lambda: datetime(2024, 1, 4, 12, tzinfo=UTC))


def run(project: Project) -> tuple[dict[str, Any], dict[str, dg.AssetCheckEvaluation]]:
    """Run the coverage job; the metadata of spot and its checks."""
    result = project.definitions.resolve_job_def("coverage").execute_in_process(instance=project.instance)
    key = coverage_key(Market.SPOT)
    [event] = [e for e in result.get_asset_materialization_events() if e.asset_key == key]
    checks = {e.check_name: e for e in result.get_asset_check_evaluations() if e.asset_key == key}
    return {name: value.value for name, value in event.materialization.metadata.items()}, checks


def test_a_complete_market_passes(project: Project) -> None:
    for key in (KLINES, OTHER, TRADES):
        for number in (1, 2, 3):
            hold(project.layout, key, day(number))

    metadata, checks = run(project)

    assert (metadata["days held"], metadata["days missing"], metadata["series"]) == (9, 0, 3)
    assert checks["missing_days"].passed
    # The made-up trades jump from 19 to 20, as they should.
    assert checks["continuity"].passed


def test_days_that_lack_are_listed_by_series_with_the_way_to_bring_them(project: Project) -> None:
    for key in (KLINES, TRADES):
        for number in (1, 2, 3):
            hold(project.layout, key, day(number), final=number != 3)
    hold(project.layout, OTHER, day(2))
    put(project.layout, OTHER, LedgerRow(day=day(3), outcome=FAILED))

    metadata, checks = run(project)

    first_row = metadata["coverage"].splitlines()[2]
    assert first_row == "| binance/spot/klines/ETHUSDT/1h | 1 | 0 | 1 | 1 | 2024-01-01, 2024-01-03 |"
    assert metadata["days provisional"] == 2
    assert not checks["missing_days"].passed
    assert checks["missing_days"].severity is dg.AssetCheckSeverity.WARN
    assert "2 days of 1 series" in (checks["missing_days"].description or "")
    assert "market-data sync" in (checks["missing_days"].description or "")


@pytest.mark.parametrize(("first_key", "kind", "severity"), [(23, "hole", "WARN"), (19, "overlap", "ERROR")])
def test_a_midnight_that_is_not_crossed_is_shown(project: Project, first_key: int, kind: str, severity: str) -> None:
    before = hold(project.layout, TRADES, day(1))
    put(project.layout, TRADES, LedgerRow(day=day(2), outcome="held", final=True, first_key=first_key, last_key=29))
    assert before.last_key == 19

    _, checks = run(project)

    table = checks["continuity"].metadata["midnights"]
    assert isinstance(table, dg.TableMetadataValue)
    assert [record.data for record in table.records] == [
        {"series": str(TRADES), "day": "2024-01-02", "kind": kind, "expected": "20", "found": str(first_key)}
    ]
    assert checks["continuity"].severity.value == severity
    assert not checks["continuity"].passed
