"""Runs over days, as the UI and the command line start them: what stands on record afterwards."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any, cast

import dagster as dg
import duckdb
import pytest
from dagster._serdes import serialize_value

from market_data_pipeline.defs.definitions import build_definitions
from market_data_pipeline.defs.in_process import reasons
from market_data_pipeline.defs.ingestion.definitions import column_schema
from market_data_pipeline.defs.keys import asset_key_of
from market_data_pipeline.errors import SeriesBusyError, StorageError
from market_data_pipeline.model.datasets import data_types_of
from market_data_pipeline.model.findings import Finding, Range, Severity
from market_data_pipeline.model.outcomes import DayResult
from market_data_pipeline.model.schema import lake_schema
from market_data_pipeline.model.series import DataType, ListingSpans, Market, SeriesKey
from market_data_pipeline.sql import publish
from market_data_pipeline_tests.support.fakes import KLINES, OTHER, PROFILE, TRADES, UNIVERSE, Project, day, universe_of

CHECKSUM = ("checksum", "BTCUSDT-1h-2024-01-03.zip does not match its published checksum.")
HOUR_US = 3_600_000_000
MARCH_12 = 1_552_356_000_000_000


def test_good_days_are_one_materialization_and_two_checks_a_day(project: Project) -> None:
    """Dagster stores one event per run of days, and two passed checks per day."""
    result = project.run(1, 12)

    assert result.success
    assert project.status() == {"MATERIALIZED": set(range(1, 13))}
    assert all(len(found) == 1 for found in project.materializations().values())
    assert project.checks("integrity") == {"SUCCEEDED": set(range(1, 13))}
    assert project.checks("gaps") == {"SUCCEEDED": set(range(1, 13))}
    assert [outcome.day for outcome in project.seen] == [day(n) for n in range(1, 13)]


def test_some_days_failed_and_the_others_are_on_record(project: Project) -> None:
    project.ingest.bad = {(KLINES, day(3)): CHECKSUM, (KLINES, day(9)): ("network", "timed out")}

    result = project.run(1, 12)

    assert not result.success
    good = set(range(1, 13)) - {3, 9}
    assert project.status() == {"MATERIALIZED": good, "FAILED": {3, 9}}
    assert all(len(found) == 1 for found in project.materializations().values())
    assert project.checks("integrity") == {"SUCCEEDED": good, "FAILED": {3, 9}}
    # Nothing is known of the gaps of days that never came: Dagster shows what was planned and not done.
    assert project.checks("gaps") == {"SUCCEEDED": good, "EXECUTION_FAILED": {3, 9}}


def test_failed_run_names_the_days_and_reasons(project: Project) -> None:
    project.ingest.bad = {(KLINES, day(3)): CHECKSUM, (KLINES, day(4)): CHECKSUM, (KLINES, day(9)): ("absent", "404")}

    result = project.run(1, 10)

    [failure] = [event for event in result.all_events if event.is_step_failure]
    data = failure.step_failure_data.user_failure_data
    assert data is not None
    assert data.description is not None
    assert "3 of 10 days failed (2024-01-03 to 2024-01-04, 2024-01-09)" in data.description
    assert CHECKSUM[1] in data.description
    table = data.metadata["failed days"]
    assert isinstance(table, dg.TableMetadataValue)
    assert [record.data["day"] for record in table.records] == ["2024-01-03", "2024-01-04", "2024-01-09"]
    assert table.records[2].data["kind"] == "absent"


def test_a_failed_series_leaves_other_series_of_the_run_alone(project: Project) -> None:
    project.ingest.bad = {(KLINES, day(3)): CHECKSUM}

    result = project.run(1, 5, KLINES, OTHER)

    assert not result.success
    assert project.status(OTHER) == {"MATERIALIZED": {1, 2, 3, 4, 5}}
    assert project.checks("integrity", OTHER) == {"SUCCEEDED": {1, 2, 3, 4, 5}}


def test_second_run_fetches_only_the_failed_days(project: Project) -> None:
    project.ingest.bad = {(KLINES, day(3)): CHECKSUM}
    project.run(1, 5)
    project.ingest.bad, project.ingest.fetched = {}, []

    project.run(3, 3)

    assert project.ingest.fetched == [(KLINES, day(3))]
    assert project.status() == {"MATERIALIZED": {1, 2, 3, 4, 5}}
    assert project.checks("integrity") == {"SUCCEEDED": {1, 2, 3, 4, 5}}


def test_stored_days_are_recorded_again_in_a_new_home(project: Project) -> None:
    project.run(1, 5)
    project.ingest.fetched = []

    with dg.DagsterInstance.ephemeral() as new:
        project.instance = new
        assert project.run(1, 5).success
        assert project.status() == {"MATERIALIZED": {1, 2, 3, 4, 5}}
        assert project.checks("gaps") == {"SUCCEEDED": {1, 2, 3, 4, 5}}
        assert project.materializations()[2][0].metadata["action"].value == "held"

    assert project.ingest.fetched == []


def test_stored_day_that_fails_later_names_the_file_that_stays(project: Project) -> None:
    project.ingest.provisional = {day(2)}
    project.run(1, 3)
    project.ingest.bad = {(KLINES, day(2)): CHECKSUM}

    assert not project.run(1, 3).success

    evaluation = project.evaluation("integrity", 2)
    assert evaluation.metadata["older file"].value == "stays"
    [older] = project.materializations()[2]
    records = project.instance.fetch_materializations(asset_key_of(KLINES), limit=100).records
    [storage_id] = [record.storage_id for record in records if record.asset_materialization == older]
    assert evaluation.target_materialization_data.storage_id == storage_id


@pytest.mark.parametrize("kind", ["checksum", "unproven"])
def test_refused_newer_archive_is_reported_with_the_stored_day(project: Project, kind: str) -> None:
    """Every report of the older day repeats it."""
    project.run(1, 3)
    project.ingest.bad = {(KLINES, day(2)): (kind, "the newer one cannot be trusted")}
    project.run(1, 3)
    project.ingest.bad = {}

    assert project.run(1, 3).success

    assert project.materializations()[2][0].metadata["action"].value == "held"
    assert project.checks("integrity") == {"SUCCEEDED": {1, 3}, "FAILED": {2}}
    evaluation = project.evaluation("integrity", 2)
    assert evaluation.description == "the newer one cannot be trusted"
    assert {name: one.value for name, one in evaluation.metadata.items()} == {"failure": kind, "older file": "stays"}
    assert evaluation.target_materialization_data is not None


@pytest.mark.parametrize("bad", [False, True])
def test_a_run_of_a_single_partition(project: Project, bad: bool) -> None:
    project.ingest.bad = {(KLINES, day(2)): CHECKSUM} if bad else {}

    assert project.run_one_partition(2).success is not bad

    assert project.status() == ({"FAILED": {2}} if bad else {"MATERIALIZED": {2}})
    assert project.checks("integrity") == ({"FAILED": {2}} if bad else {"SUCCEEDED": {2}})
    assert project.checks("gaps") == ({"EXECUTION_FAILED": {2}} if bad else {"SUCCEEDED": {2}})


def test_severities_of_findings_are_those_of_the_checks(project: Project) -> None:
    def finding(severity: Severity) -> Finding:
        return Finding(check="gaps", rule="unpublished", severity=severity, count=6, message="6 are missing.")

    project.ingest.findings = {
        (KLINES, day(number)): (finding(severity),)
        for number, severity in enumerate((Severity.INFO, Severity.WARN, Severity.ERROR), start=1)
    }

    assert project.run(1, 4).success

    assert project.checks("gaps") == {"SUCCEEDED": {1, 4}, "FAILED": {2, 3}}
    assert project.evaluation("gaps", 2).severity is dg.AssetCheckSeverity.WARN
    assert project.evaluation("gaps", 3).severity is dg.AssetCheckSeverity.ERROR
    assert project.evaluation("gaps", 2).description == "6 are missing."
    assert project.checks("integrity") == {"SUCCEEDED": {1, 2, 3, 4}}


def test_gaps_are_shown_as_exact_ranges_with_their_verdicts(project: Project) -> None:
    project.ingest.findings[KLINES, day(1)] = (
        Finding(
            check="gaps",
            rule="unpublished",
            severity=Severity.WARN,
            count=6,
            message="6 candles of 24 are missing.",
            ranges=(Range(first=MARCH_12, last=MARCH_12 + 5 * HOUR_US, count=6),),
        ),
        Finding(
            check="gaps",
            rule="quiet",
            severity=Severity.INFO,
            count=1,
            message="1 candle is flat.",
            ranges=(Range(first=MARCH_12 + 9 * HOUR_US, last=MARCH_12 + 9 * HOUR_US, count=1),),
        ),
    )

    project.run(1, 1)

    metadata = project.evaluation("gaps", 1).metadata
    assert [record.data for record in metadata["ranges"].records] == [
        {"rule": "unpublished", "first": "2019-03-12T02:00:00Z", "last": "2019-03-12T07:00:00Z", "count": 6},
        {"rule": "quiet", "first": "2019-03-12T11:00:00Z", "last": "2019-03-12T11:00:00Z", "count": 1},
    ]
    assert metadata["unpublished"].value == "warn: 6 candles of 24 are missing."
    assert metadata["quiet"].value == "info: 1 candle is flat."


def test_evidence_is_listed_with_its_range(project: Project) -> None:
    def quiet(n: int, evidence: str) -> Finding:
        at = MARCH_12 + n * HOUR_US
        ranges = (Range(first=at, last=at, count=1),)
        return Finding(
            check="gaps", rule="quiet", severity=Severity.INFO, count=1, message="!", ranges=ranges, evidence=evidence
        )

    project.ingest.findings[KLINES, day(1)] = (quiet(1, "e.g. BTCUSDT traded"), quiet(2, "word " * 20))
    project.run(1, 1)
    shown = [record.data["evidence"] for record in project.evaluation("gaps", 1).metadata["ranges"].records]
    assert shown == ["e.g. BTCUSDT traded", "word word word word word word word …"]


def test_gaps_of_trades_are_ranges_of_ids(project: Project) -> None:
    ranges = tuple(Range(first=n * 10, last=n * 10 + 4, count=5) for n in range(30))
    project.ingest.findings[TRADES, day(1)] = (
        Finding(check="gaps", rule="unpublished", severity=Severity.WARN, count=150, message="!", ranges=ranges),
    )

    project.run(1, 1, TRADES)

    metadata = project.evaluation("gaps", 1, TRADES).metadata
    assert metadata["ranges"].records[1].data == {"rule": "unpublished", "first": 10, "last": 14, "count": 5}
    assert "of 30" in metadata["more ranges"].value


def test_replaced_day_reports_its_changes(project: Project) -> None:
    project.ingest.findings[KLINES, day(1)] = (
        Finding(check="integrity", rule="became_final", severity=Severity.INFO, count=1, message="1 changed."),
        Finding(check="gaps", rule="outage", severity=Severity.INFO, count=6, message="6 are missing."),
    )
    project.run(1, 2)
    first, second = (project.materializations()[number][0] for number in (1, 2))
    assert first.metadata["changes"].value == "1 changed."
    assert "changes" not in second.metadata


def test_metadata_names_the_sources_of_a_day_in_under_4_kb(project: Project) -> None:
    project.ingest.provisional = {day(2)}
    many = tuple(Range(first=MARCH_12 + n, last=MARCH_12 + n, count=1) for n in range(100))
    project.ingest.findings[KLINES, day(1)] = (
        Finding(
            check="gaps",
            rule="quiet",
            severity=Severity.INFO,
            count=100,
            message="x" * 5000,
            ranges=many,
            evidence="at least 3 of 400 other stored symbols traded meanwhile, most often BTCUSDT",
        ),
        *(
            Finding(
                check="integrity",
                rule=rule,
                severity=Severity.WARN,
                count=100,
                message="x" * 5000,
                ranges=many,
                evidence="2024-03-12 00:00:00 volume 1.0 → 2.0; " * 100,
            )
            for rule in ("disagreement", "became_final")
        ),
    )
    project.run(1, 3)

    first, second, third = (project.materializations()[number][0] for number in (1, 2, 3))

    metadata = {name: value.value for name, value in first.metadata.items()}
    assert metadata["dagster/partition_row_count"] == 24
    assert metadata["source"] == "archive_daily"
    assert metadata["checksum"] == "verified"
    assert metadata["archive sha256"] == "ab" * 32
    assert metadata["state"] == "final"
    assert metadata["path"] == str(project.layout.file(KLINES, day(1)))
    assert metadata["bytes"] == project.layout.file(KLINES, day(1)).stat().st_size
    assert str(second.metadata["state"].value).startswith("provisional")
    # The picture is on the newest day only, since every event keeps its own copy.
    assert "candles" not in first.metadata
    assert "candles" not in second.metadata
    assert str(third.metadata["candles"].value).startswith("![candles](data:image/svg+xml,")
    for event in (first, third, project.evaluation("gaps", 1), project.evaluation("integrity", 1)):
        stored = serialize_value(cast("dict[str, Any]", event.metadata))
        assert 0 < len(stored) < 4096


def test_days_outside_the_listing_are_no_partitions(tmp_path: Path) -> None:
    """A series that was relisted and delisted is complete with the days on which it was listed."""
    listing = ListingSpans(((day(3), day(4)), (day(7), day(8))))
    project = Project(tmp_path, universe_of(listings={(Market.SPOT, "BTCUSDT"): listing}))

    with project.instance:
        assert project.run(3, 8).success
        assert project.status() == {"MATERIALIZED": {3, 4, 7, 8}}
        assert project.missing() == []
        assert project.checks("integrity") == {"SUCCEEDED": {3, 4, 7, 8}}

    assert project.ingest.fetched == [(KLINES, day(number)) for number in (3, 4, 7, 8)]


def test_run_of_days_before_the_start_fails_in_words(tmp_path: Path) -> None:
    """A run may wait in the queue while its start moves on."""
    result = Project(tmp_path, universe_of(UNIVERSE.replace("from: 2024-01-01", "from: 2024-01-03"))).run(1, 4)
    assert not result.success
    (reason,) = reasons(result)
    assert reason.startswith(f"{KLINES} is collected from 2024-01-03 on, so this run cannot fetch 2024-01-01.")


def test_a_run_logs_one_line_for_a_series(project: Project, caplog: pytest.LogCaptureFixture) -> None:
    project.run(1, 2)
    project.ingest.bad = {(KLINES, day(4)): CHECKSUM}

    with caplog.at_level(logging.INFO):
        project.run(1, 4)

    [entry] = [
        entry
        for entry in project.instance.all_logs(project.instance.get_runs(limit=1)[0].run_id)
        if entry.level == logging.INFO and not entry.is_dagster_event
    ]
    assert "binance/spot/klines/BTCUSDT/1h: 4 days (2024-01-01 to 2024-01-04): 1 fetched, 2 held, 1 failed" in (
        entry.user_message
    )


def test_a_busy_series_fails_with_its_own_words(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(*args: object, **kwargs: object) -> None:
        raise SeriesBusyError("binance/spot/klines/BTCUSDT/1h is being written by another run.")

    monkeypatch.setattr(type(project.ingest), "__call__", busy)

    result = project.run(1, 2)

    [failure] = [event for event in result.all_events if event.is_step_failure]
    assert failure.step_failure_data.user_failure_data is not None
    assert "being written by another run" in (failure.step_failure_data.user_failure_data.description or "")


def test_the_trade_profile_is_made_of_the_days_of_a_range(project: Project) -> None:
    project.run(1, 3, TRADES)

    assert project.run(1, 3, PROFILE).success

    assert project.status(PROFILE) == {"MATERIALIZED": {1, 2, 3}}
    metadata = project.materializations(PROFILE)[2][0].metadata
    assert metadata["trades"].value == 10
    assert metadata["cumulative_delta"].value == 0.0


def test_trade_profile_names_days_with_missing_trades(project: Project) -> None:
    project.run(1, 1, TRADES)

    result = project.run(1, 3, PROFILE)

    assert not result.success
    [failure] = [event for event in result.all_events if event.is_step_failure]
    assert "2024-01-02, 2024-01-03" in str(failure.step_failure_data.error)


def test_sql_answers_after_a_run(project: Project) -> None:
    project.run(1, 2)
    project.run(1, 2, TRADES)
    project.run(1, 2, PROFILE)
    with duckdb.connect(str(project.layout.catalog), read_only=True) as sql:
        assert sql.sql("SELECT count(*) FROM binance_spot.klines WHERE symbol = 'BTCUSDT'").fetchall() == [(48,)]
        assert sql.sql("SELECT count(*) FROM binance_spot.trade_profile").fetchall() == [(2,)]


def test_a_run_does_not_fail_where_the_views_cannot_be_published(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(layout: object) -> None:
        raise StorageError("The disk is full.")

    monkeypatch.setattr(publish, "publish_catalog", full)
    assert project.run(1, 1).success


@pytest.mark.parametrize(
    ("market", "data_type"), [(market, kind) for market in Market for kind in data_types_of(market)]
)
def test_every_column_of_the_lake_is_described(market: Market, data_type: DataType) -> None:
    columns = column_schema(market, data_type).columns
    assert [column.name for column in columns] == lake_schema(market, data_type).names
    assert all(column.description for column in columns)


def test_series_and_derived_assets_never_share_a_backfill_run(project: Project) -> None:
    """Where both had the same policy, one bad day of the trades skipped all days of the profile."""
    policies = {
        key: project.definitions.resolve_assets_def(asset_key_of(key)).backfill_policy for key in (TRADES, PROFILE)
    }
    assert policies[TRADES] != policies[PROFILE]


def test_run_of_several_series_overlaps_their_work(tmp_path: Path) -> None:
    project, begun = Project(tmp_path), {KLINES: threading.Event(), OTHER: threading.Event()}
    plain = project.ingest

    def ingest_days(key: SeriesKey, days: Sequence[date], **more: Any) -> Iterator[DayResult]:
        begun[key].set()
        assert begun[OTHER].wait(120)  # which comes after, and would never begin if series went one after another
        yield from plain(key, days, **more)

    project.definitions = build_definitions(project.settings, project.universe, ingest_days=ingest_days)
    with project.instance:
        assert project.run(5, 6, KLINES, OTHER).success
        assert plain.fetched.count((KLINES, day(5))) == 1
        assert project.status(KLINES) == project.status(OTHER) == {"MATERIALIZED": {5, 6}}
