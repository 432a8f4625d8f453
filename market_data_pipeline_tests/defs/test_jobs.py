"""Jobs, schedules and backfill selections over series that start on different days."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest

from market_data_pipeline import clock
from market_data_pipeline.defs.keys import asset_key_of
from market_data_pipeline.defs.requests import request_of
from market_data_pipeline.model.series import ListingSpans, Market, SeriesKey
from market_data_pipeline_tests.support.fakes import KLINES, OTHER, PROFILE, TRADES, Project, day, universe_of

TWO_STARTS = """
collect:
  - market: spot
    symbols: [BTCUSDT]
    klines: {intervals: [1h], from: 2024-01-01}
    aggTrades: {from: 2024-01-04}
  - market: spot
    symbols: [ETHUSDT]
    klines: {intervals: [1h], from: 2024-01-03}
"""
LISTED = ListingSpans(((day(1), day(6)),))
FIRST = {KLINES: 1, OTHER: 3, TRADES: 4, PROFILE: 4}


@pytest.fixture
def two_starts(tmp_path: Path) -> Project:
    listings = {(Market.SPOT, "BTCUSDT"): LISTED, (Market.SPOT, "ETHUSDT"): LISTED}
    return Project(tmp_path, universe_of(TWO_STARTS, listings))


def execute(project: Project, job: str, request: dg.RunRequest) -> dg.ExecuteInProcessResult:
    """Run a request as the daemon does."""
    return project.definitions.resolve_job_def(job).execute_in_process(
        instance=project.instance,
        asset_selection=list(request.asset_selection or ()),
        tags=dict(request.tags),
        raise_on_error=False,
    )


def test_partitions_begin_at_each_series_own_start(two_starts: Project) -> None:
    for key, first in FIRST.items():
        partitions = two_starts.definitions.resolve_assets_def(asset_key_of(key)).partitions_def
        assert partitions is not None
        assert partitions.get_partition_keys() == [str(day(number)) for number in range(first, 7)]


def test_complete_series_have_no_missing_partition(two_starts: Project) -> None:
    with two_starts.instance:
        for key, first in FIRST.items():
            assert two_starts.run(first, 6, key).success
        assert {key: two_starts.missing(key) for key in FIRST} == {key: [] for key in FIRST}
        assert two_starts.status(OTHER) == {"MATERIALIZED": {3, 4, 5, 6}}


@pytest.mark.parametrize(("first", "last"), [(4, 4), (4, 6)])
def test_job_runs_days_of_series_with_different_starts(two_starts: Project, first: int, last: int) -> None:
    keys = [KLINES, OTHER, TRADES]
    with two_starts.instance:
        assert execute(two_starts, "ingest_all", request_of("run", keys, day(first), day(last))).success
        days = set(range(first, last + 1))
        assert {key: two_starts.status(key)["MATERIALIZED"] for key in keys} == dict.fromkeys(keys, days)
        assert two_starts.checks("integrity", OTHER) == {"SUCCEEDED": days}


def test_schedule_requests_series_with_different_starts_together(
    two_starts: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dagster validates a request with a partition key against one definition, and refuses it."""
    at = datetime(2024, 1, 5, 12, 5, tzinfo=UTC)
    monkeypatch.setattr(clock, "now", lambda: at)
    with dg.build_schedule_context(
        instance=two_starts.instance,
        scheduled_execution_time=at,
        repository_def=two_starts.definitions.get_repository_def(),
    ) as context:
        (request,) = two_starts.definitions.resolve_schedule_def("hourly").evaluate_tick(context).run_requests or []
    expected: set[SeriesKey] = {KLINES, OTHER, TRADES}
    assert set(request.asset_selection or ()) == {asset_key_of(key) for key in expected}
    with two_starts.instance:
        assert execute(two_starts, "ingest_all", request).success
        assert two_starts.status(TRADES) == {"MATERIALIZED": {5}}


def test_descriptions_begin_with_one_plain_line(two_starts: Project) -> None:
    for assets in two_starts.definitions.resolve_asset_graph().assets_defs:
        for key in assets.keys:
            first = (assets.descriptions_by_key[key] or "").split("\n\n")[0]
            assert first.endswith(".")
            assert not set("*`|\n") & set(first), first
            assert len(first) <= 100, first
