"""What the schedules ask for, at moments where it is easy to ask for the wrong day."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest
from filelock import FileLock

from market_data_pipeline import clock
from market_data_pipeline.clock import DAY, HOUR
from market_data_pipeline.defs.definitions import build_definitions
from market_data_pipeline.defs.keys import asset_key_of
from market_data_pipeline.defs.partitions import PARTITION, RANGE_END, RANGE_START
from market_data_pipeline.defs.platform.home import open_instance
from market_data_pipeline.defs.schedules import MOST_REPAIRS
from market_data_pipeline.lake.ledger import Ledger
from market_data_pipeline.maintenance import backlog, due
from market_data_pipeline.model.day import FAILED, HELD, NOT_LISTED, DayRecord, OtherArchive, after
from market_data_pipeline.model.series import DataType, ListingSpans, Market, SeriesKey
from market_data_pipeline.settings import Settings
from market_data_pipeline_tests.support.fakes import (
    KLINES,
    OTHER,
    PROFILE,
    TRADES,
    UNIVERSE,
    Project,
    day,
    hold,
    put,
    universe_of,
)

CM = SeriesKey("binance", Market.CM, DataType.KLINES, "BTCUSD_PERP", "1m")


@pytest.fixture(autouse=True)
def _end_of_january(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "now", lambda: datetime(2024, 1, 31, 12, tzinfo=UTC))


def tick(project: Project, schedule: str, at: datetime) -> Sequence[dg.RunRequest]:
    """What a schedule asks for at a moment."""
    with dg.build_schedule_context(
        instance=project.instance,
        scheduled_execution_time=at,
        repository_def=project.definitions.get_repository_def(),
    ) as context:
        data = project.definitions.resolve_schedule_def(schedule).evaluate_tick(context)
    assert bool(data.run_requests) is (data.skip_message is None)
    return data.run_requests or []


def asked(requests: Sequence[dg.RunRequest]) -> dict[str | None, set[str]]:
    """Assets by day."""
    return {
        request.tags.get(PARTITION): {key.to_user_string() for key in request.asset_selection or ()}
        for request in requests
    }


def names(*keys: SeriesKey) -> set[str]:
    return {asset_key_of(key).to_user_string() for key in keys}


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        (datetime(2024, 1, 10, 0, 5, tzinfo=UTC), "2024-01-09"),
        (datetime(2024, 1, 10, 1, 5, tzinfo=UTC), "2024-01-10"),
        (datetime(2024, 1, 10, 23, 5, tzinfo=UTC), "2024-01-10"),
    ],
)
def test_hourly_requests_the_day_of_the_last_full_hour(project: Project, at: datetime, expected: str) -> None:
    """At 00:00 sharp it asked for a day without a candle, and the last hour of the day before stayed away."""
    assert asked(tick(project, "hourly", at)) == {expected: names(KLINES, OTHER, TRADES, CM)}


def test_hourly_skips_future_series_and_unlisted_symbols(tmp_path: Path) -> None:
    delisted = ListingSpans(((day(1), day(2)),))
    project = Project(tmp_path, universe_of(listings={(Market.SPOT, "ETHUSDT"): delisted}))
    at = datetime(2024, 1, 4, 12, 5, tzinfo=UTC)
    assert asked(tick(project, "hourly", at)) == {"2024-01-04": names(KLINES, TRADES)}


def test_daily_requests_yesterday_and_recent_days_not_final(tmp_path: Path) -> None:
    project = Project(tmp_path, recent_days=4)
    for number in (6, 7, 8, 9):
        for key in (KLINES, OTHER, TRADES, CM):
            put(project.layout, key, DayRecord(day=day(number), outcome="held", final=True))
    put(project.layout, KLINES, DayRecord(day=day(7), outcome="held", final=False))
    put(project.layout, TRADES, DayRecord(day=day(8), outcome=FAILED))
    put(project.layout, OTHER, DayRecord(day=day(6), outcome=NOT_LISTED, final=True))
    put(project.layout, CM, DayRecord(day=day(5), outcome=FAILED))

    requests = tick(project, "daily", datetime(2024, 1, 10, 10, tzinfo=UTC))

    assert asked(requests) == {
        "2024-01-07": names(KLINES),
        "2024-01-08": names(TRADES),
        "2024-01-09": names(KLINES, OTHER, TRADES, CM),
    }


def test_daily_requests_days_that_the_listing_now_contains(tmp_path: Path) -> None:
    listed = ListingSpans(((day(1), None),))
    project = Project(tmp_path, universe_of(listings={(Market.SPOT, "BTCUSDT"): listed}), recent_days=4)
    for number in (6, 7, 8, 9):
        for key in (KLINES, OTHER, TRADES, CM):
            outcome = NOT_LISTED if number == 7 and key in (KLINES, OTHER) else HELD
            put(project.layout, key, DayRecord(day=day(number), outcome=outcome, final=True))
    requests = tick(project, "daily", datetime(2024, 1, 10, 10, tzinfo=UTC))
    assert asked(requests)["2024-01-07"] == names(KLINES), "of the other, the listing is not known"
    assert list(asked(requests)) == ["2024-01-07", "2024-01-09"]


@pytest.mark.parametrize("schedule", ["daily", "trade_profiles_daily"])
def test_only_relevant_days_of_a_long_ledger_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, schedule: str
) -> None:
    project = Project(tmp_path, recent_days=4)
    held = DayRecord(day=day(1), outcome=HELD, final=True, content_sha256="ab", archive_sha256="ab")
    rows = [replace(held, day=day(10) - DAY * n) for n in range(3000)]
    for key in (TRADES, PROFILE):
        Ledger(rows).write(project.layout.ledger(key))
    changed = day(2)
    put(project.layout, TRADES, replace(held, day=changed, content_sha256="cd"))
    read: list[int] = []

    def counted(*arguments: Any) -> Ledger:
        found = Ledger.read(*arguments)
        read.append(len(found.rows))
        return found

    monkeypatch.setattr(due, "Ledger", SimpleNamespace(read=counted))
    requests = asked(tick(project, schedule, datetime(2024, 1, 10, 11, tzinfo=UTC)))
    assert max(read) <= 6
    assert (str(changed) in requests) is (schedule == "trade_profiles_daily")


def test_daily_reaches_back_to_the_start_of_each_series_only(tmp_path: Path) -> None:
    project = Project(tmp_path, recent_days=14)
    requests = tick(project, "daily", datetime(2024, 1, 6, 10, tzinfo=UTC))
    assert set(asked(requests)) == {f"2024-01-0{number}" for number in range(1, 6)}
    assert asked(requests)["2024-01-04"] == names(KLINES, OTHER, TRADES)
    assert asked(requests)["2024-01-05"] == names(KLINES, OTHER, TRADES, CM)


def test_tick_evaluated_twice_requests_the_same_run_keys(project: Project) -> None:
    at = datetime(2024, 1, 10, 10, tzinfo=UTC)
    first, second, next_day = (
        [request.run_key for request in tick(project, "daily", moment)] for moment in (at, at, at.replace(day=11))
    )
    assert first == second
    assert len(set(first)) == len(first)
    assert not set(first) & set(next_day)


def test_universe_that_starts_later_requests_nothing(project: Project) -> None:
    assert tick(project, "daily", datetime(2024, 1, 1, 10, tzinfo=UTC)) == []


def test_profiles_are_made_for_new_or_changed_trades(tmp_path: Path) -> None:
    project = Project(tmp_path, recent_days=5)
    at = datetime(2024, 1, 10, 11, tzinfo=UTC)
    for number in (5, 6, 7):
        hold(project.layout, TRADES, day(number), final=number != 7)
    with project.instance:
        project.run(5, 7, PROFILE)
        assert tick(project, "trade_profiles_daily", at) == []

        newer = replace(hold(project.layout, TRADES, day(6)), content_sha256="cd" * 32)
        put(project.layout, TRADES, newer)
        hold(project.layout, TRADES, day(7))
        hold(project.layout, TRADES, day(8))

        assert asked(tick(project, "trade_profiles_daily", at)) == {
            f"2024-01-0{number}": names(PROFILE) for number in (6, 7, 8)
        }


def test_profiles_before_a_moved_start_are_not_requested(tmp_path: Path) -> None:
    """Trades of earlier days stay in the lake. Their days are no partitions any more."""
    moved = UNIVERSE.replace("aggTrades: {from: 2024-01-01}", "aggTrades: {from: 2024-01-08}")
    assert moved != UNIVERSE
    project = Project(tmp_path, universe_of(moved), recent_days=5)
    for number in (6, 7, 8, 9):
        hold(project.layout, TRADES, day(number))
    requests = tick(project, "trade_profiles_daily", datetime(2024, 1, 10, 11, tzinfo=UTC))
    assert asked(requests) == {"2024-01-08": names(PROFILE), "2024-01-09": names(PROFILE)}


@pytest.mark.parametrize(("hour", "at"), [(10, datetime(2024, 1, 10, 11)), (23, datetime(2024, 1, 11, 0))])  # noqa: DTZ001
def test_profiles_follow_the_daily_schedule_across_midnight_too(tmp_path: Path, hour: int, at: datetime) -> None:
    project = Project(tmp_path, daily_hour=hour, recent_days=1)
    hold(project.layout, TRADES, day(9))
    assert project.definitions.resolve_schedule_def("trade_profiles_daily").cron_schedule == f"0 {at.hour} * * *"
    assert set(asked(tick(project, "trade_profiles_daily", at.replace(tzinfo=UTC)))) == {"2024-01-09"}


def test_nothing_downloads_before_somebody_turns_it_on(project: Project) -> None:
    defined = {schedule.name: schedule.default_status.value for schedule in project.schedules()}
    assert defined == {
        "daily": "STOPPED",
        "hourly": "STOPPED",
        "trade_profiles_daily": "STOPPED",
        "coverage_daily": "RUNNING",
        "repair": "STOPPED",
        "verify": "STOPPED",
        "exchange_info_daily": "STOPPED",
        "iceberg_hourly": "STOPPED",
        "compact": "STOPPED",
        "prune": "RUNNING",
    }
    assert project.definitions.resolve_sensor_def("archive_published").default_status.value == "STOPPED"


def test_hours_are_utc_and_come_from_settings(project: Project) -> None:
    assert {schedule.execution_timezone for schedule in project.schedules()} == {"UTC"}
    settings = Settings(dir=project.settings.dir, daily_hour=7, hourly_minute=20, _env_file=None)  # type: ignore[call-arg]
    definitions = build_definitions(settings, project.universe)
    crons = {
        name: definitions.resolve_schedule_def(name).cron_schedule for name in ("daily", "hourly", "coverage_daily")
    }
    assert crons == {"daily": "0 7 * * *", "hourly": "20 * * * *", "coverage_daily": "30 8 * * *"}


@pytest.mark.parametrize("number", [8, 9])
def test_daily_skips_days_that_the_same_bytes_would_fail_again(tmp_path: Path, number: int) -> None:
    project = Project(tmp_path, recent_days=3)
    at = datetime(2024, 1, 10, 10, tzinfo=UTC)
    for key, failure in ((KLINES, "checksum"), (OTHER, "absent"), (TRADES, "unpublished")):
        row = DayRecord(
            day=day(number), outcome=FAILED, failure=failure, attempts=1, asked_at=clock.naive_utc(at) - HOUR
        )
        put(project.layout, key, row)
    asked_for = asked(tick(project, "daily", at))[f"2024-01-0{number}"]
    assert asked_for & names(KLINES, OTHER, TRADES) == names(OTHER, TRADES)


# --- repair --------------------------------------------------------------------------------------------------------


@pytest.fixture
def kept(project: Project, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """With records on disk, as the daemon has them: only there a schedule can look for its earlier runs.

    Days that were never fetched are left out of what ``repair`` requests; ``test_backlog`` is about them.
    """
    monkeypatch.setattr(backlog, "portion", lambda *_: {})
    with open_instance(project.layout) as instance:
        project.instance = instance
        yield project


def failed(number: int, failure: str = "network", attempts: int = 1, hour: int = 10) -> DayRecord:
    """A day of January 2024 that failed on the 10th."""
    asked_at = datetime(2024, 1, 10, hour)  # noqa: DTZ001  # ledgers have no zone
    return DayRecord(day=day(number), outcome=FAILED, failure=failure, attempts=attempts, asked_at=asked_at)


def ranges(requests: Sequence[dg.RunRequest]) -> dict[tuple[str, str], set[str]]:
    """Assets by first and last day."""
    return {
        (
            request.tags.get(PARTITION) or request.tags[RANGE_START],
            request.tags.get(PARTITION) or request.tags[RANGE_END],
        ): {key.to_user_string() for key in request.asset_selection or ()}
        for request in requests
    }


def at(hour: int, number: int = 10) -> datetime:
    """A tick of repair in January 2024."""
    return datetime(2024, 1, number, hour, 45, tzinfo=UTC)


def test_repair_requests_transient_failures_in_few_runs(kept: Project) -> None:
    """It needs as few runs as possible."""
    for number in (2, 3, 4, 7):
        put(kept.layout, KLINES, failed(number))
    for number in (2, 3, 4):
        put(kept.layout, OTHER, failed(number, "host_off"))
    put(kept.layout, OTHER, failed(8, "checksum"))
    put(kept.layout, TRADES, failed(8, "absent"))

    assert ranges(tick(kept, "repair", at(11))) == {
        ("2024-01-07", "2024-01-07"): names(KLINES),
        ("2024-01-02", "2024-01-04"): names(KLINES, OTHER),
    }


def test_repair_rests_longer_after_each_attempt(kept: Project) -> None:
    put(kept.layout, KLINES, failed(7, attempts=3))
    assert [hour for hour in range(10, 16) if tick(kept, "repair", at(hour))] == [14, 15]


def test_repair_requests_open_gaps_and_replaced_archives(kept: Project) -> None:
    rested = clock.naive_utc(at(9))
    held = DayRecord(day=day(5), outcome="held", final=True, attempts=1, asked_at=rested)
    put(kept.layout, KLINES, replace(held, verdicts="outage+archive_defect", retry=True))
    put(kept.layout, KLINES, replace(held, day=day(6), verdicts="outage"))
    put(kept.layout, OTHER, after(held, held.day, OtherArchive("etag")))
    assert ranges(tick(kept, "repair", at(11))) == {("2024-01-05", "2024-01-05"): names(KLINES, OTHER)}


def test_repair_requests_both_days_of_a_broken_midnight(kept: Project) -> None:
    """Trade ids do not continue over this midnight."""
    for number, first in ((5, 100), (6, 120), (7, 130)):
        row = hold(kept.layout, TRADES, day(number))
        put(kept.layout, TRADES, replace(row, first_key=first, last_key=first + 9, asked_at=clock.naive_utc(at(9))))
    assert ranges(tick(kept, "repair", at(11))) == {("2024-01-05", "2024-01-06"): names(TRADES)}


def test_repair_waits_for_the_runs_it_requested(kept: Project) -> None:
    put(kept.layout, KLINES, failed(7))
    [request] = tick(kept, "repair", at(11))
    run = kept.instance.create_run_for_job(kept.definitions.resolve_job_def("ingest_all"), tags=request.tags)
    assert tick(kept, "repair", at(12)) == []
    kept.instance.report_run_canceled(run)
    assert len(tick(kept, "repair", at(12))) == 1


def test_repair_does_not_wait_for_a_run_whose_process_was_killed(kept: Project) -> None:
    put(kept.layout, KLINES, failed(7))
    [request] = tick(kept, "repair", at(11))
    job, started = kept.definitions.resolve_job_def("ingest_all"), dg.DagsterRunStatus.STARTED
    run = kept.instance.create_run_for_job(job, tags=request.tags, status=started)
    life = kept.layout.dagster_home / "alive" / f"{run.run_id}.lock"
    life.parent.mkdir()

    with FileLock(life):
        assert tick(kept, "repair", at(12)) == []
    life.touch()  # a killed process leaves its file, and no lock on it

    assert len(tick(kept, "repair", at(13))) == 1
    [closed] = kept.instance.get_runs()
    assert closed.status is dg.DagsterRunStatus.FAILURE


def test_repair_requests_few_runs_with_newest_days_first(kept: Project) -> None:
    for number in range(1, 31, 2):
        put(kept.layout, KLINES, failed(number))
        put(kept.layout, OTHER, failed(number + 1))
    requests = tick(kept, "repair", datetime(2024, 1, 31, 11, 45, tzinfo=UTC))
    assert len(requests) == MOST_REPAIRS
    assert max(ranges(requests))[0] == "2024-01-30"
    assert min(ranges(requests))[0] == "2024-01-11"


def test_range_requested_by_repair_is_one_run(kept: Project) -> None:
    for number in (2, 3, 4):
        put(kept.layout, KLINES, failed(number))
    [request] = tick(kept, "repair", at(11))
    result = kept.definitions.resolve_job_def("ingest_all").execute_in_process(
        instance=kept.instance, asset_selection=[asset_key_of(KLINES)], tags=request.tags
    )
    assert result.success
    assert kept.status() == {"MATERIALIZED": {2, 3, 4}}
    assert tick(kept, "repair", at(12)) == []


def test_profiles_follow_trades_of_a_replaced_archive(tmp_path: Path) -> None:
    project = Project(tmp_path, recent_days=2)
    hold(project.layout, TRADES, day(3))
    hold(project.layout, TRADES, day(4))
    with project.instance:
        project.run(3, 3, PROFILE)
        newer = replace(hold(project.layout, TRADES, day(3)), content_sha256="cd" * 32)
        put(project.layout, TRADES, newer)
        requests = tick(project, "trade_profiles_daily", datetime(2024, 1, 10, 11, tzinfo=UTC))
    assert asked(requests) == {"2024-01-03": names(PROFILE), "2024-01-04": names(PROFILE)}


@pytest.mark.parametrize(("every", "cron"), [("day", "0 12 * * *"), ("week", "0 12 * * 0"), ("month", "0 12 1 * *")])
def test_verify_runs_as_often_as_the_setting(tmp_path: Path, every: str, cron: str) -> None:
    project = Project(tmp_path, verify_every=every)
    assert project.definitions.resolve_schedule_def("verify").cron_schedule == cron


def test_request_runs_the_named_assets_with_their_checks(project: Project) -> None:
    [request] = tick(project, "hourly", datetime(2024, 1, 10, 12, 5, tzinfo=UTC))
    job = project.definitions.resolve_job_def("ingest_all")

    result = job.execute_in_process(
        instance=project.instance,
        partition_key=request.partition_key,
        asset_selection=[asset_key_of(KLINES)],
        tags=request.tags,
    )

    assert result.success
    assert project.status() == {"MATERIALIZED": {10}}
    assert project.checks("integrity") == {"SUCCEEDED": {10}}
    assert project.status(OTHER) == {}
