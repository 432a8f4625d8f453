"""Days that are missing are requested by the schedules, in portions: after weeks off, or when something was lost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from market_data_pipeline import clock
from market_data_pipeline.clock import DAY, days_between
from market_data_pipeline.defs.keys import asset_key_of, series_of
from market_data_pipeline.defs.partitions import PARTITION, RANGE_END, RANGE_START
from market_data_pipeline.defs.platform.home import open_instance
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.ledger import Ledger
from market_data_pipeline.maintenance import backlog
from market_data_pipeline.maintenance.backlog import portion
from market_data_pipeline.model.day import EMPTY, FAILED, HELD, NOT_LISTED, DayRecord
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.universe import load_universe
from market_data_pipeline_tests.support.fakes import KLINES, OTHER, PROFILE, TRADES, Project, day, put

NOW = datetime(2024, 3, 1, 11, 45, tzinfo=UTC)
YESTERDAY = date(2024, 2, 29)
ONE = """
collect:
  - market: spot
    symbols: [BTCUSDT]
    klines: {intervals: [1h], from: 2024-01-01}
"""
BOTH = ONE.replace("[BTCUSDT]", "[BTCUSDT, ETHUSDT]")
WITH_TRADES = """
collect:
  - market: spot
    symbols: [BTCUSDT]
    aggTrades: {from: 2024-01-01}
"""

Asked = dict[SeriesKey, list[date]]


@pytest.fixture(autouse=True)
def _first_of_march(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "now", lambda: NOW)


def project_of(tmp_path: Path, text: str, **settings: Any) -> Project:
    path = tmp_path / "universe.yaml"
    path.write_text(text)
    return Project(tmp_path, load_universe(path), **settings)


def record(layout: Layout, key: SeriesKey, days: Sequence[date], outcome: str = HELD) -> None:
    """Put days on record, with a file each if they are stored."""
    ledger = Ledger.read(layout.ledger(key))
    for one in days:
        ledger.put(DayRecord(day=one, outcome=outcome, final=True, content_sha256="ab", archive_sha256="ab"))
        if outcome == HELD:
            path = layout.file(key, one)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    ledger.write(layout.ledger(key))


def tick(project: Project, schedule: str, at: datetime = NOW) -> tuple[list[dg.RunRequest], str]:
    with dg.build_schedule_context(
        instance=project.instance,
        scheduled_execution_time=at,
        repository_def=project.definitions.get_repository_def(),
    ) as context:
        data = project.definitions.resolve_schedule_def(schedule).evaluate_tick(context)
    return list(data.run_requests or []), data.skip_message or ""


def asked(requests: Sequence[dg.RunRequest]) -> Asked:
    """Days by series, each as often as it is requested."""
    found: Asked = {}
    for request in requests:
        first = request.tags.get(PARTITION) or request.tags[RANGE_START]
        last = request.tags.get(PARTITION) or request.tags[RANGE_END]
        for asset in request.asset_selection or ():
            days = days_between(date.fromisoformat(first), date.fromisoformat(last))
            found.setdefault(series_of(asset), []).extend(days)
    return {key: sorted(days) for key, days in found.items()}


@pytest.fixture
def off(tmp_path: Path) -> Iterator[Project]:
    """A machine that was switched off on 2024-01-10 and is on again on 2024-03-01: 50 days are missing."""
    project = project_of(tmp_path, BOTH)
    for key in (KLINES, OTHER):
        record(project.layout, key, days_between(day(1), day(10)))
    with open_instance(project.layout) as instance:
        project.instance = instance
        yield project


MISSED = days_between(day(11), YESTERDAY)


def test_weeks_off_are_caught_up_in_one_run(off: Project) -> None:
    requests, _ = tick(off, "repair")
    assert asked(requests) == {KLINES: MISSED, OTHER: MISSED}
    assert len(requests) == 1


def test_rest_of_a_portion_is_requested_by_later_ticks(off: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each day once, the newest first; the last tick requests nothing."""
    monkeypatch.setattr(backlog, "PORTION", 30)
    seen: list[Asked] = []
    for hour in range(5):
        requests, skipped = tick(off, "repair", NOW + timedelta(hours=hour))
        seen.append(asked(requests))
        for key, days in seen[-1].items():
            record(off.layout, key, days)
    assert [len(one.get(KLINES, [])) for one in seen] == [15, 15, 15, 5, 0]
    assert seen[0][KLINES] == MISSED[-15:]
    assert sorted(one for some in seen for one in some.get(OTHER, [])) == MISSED
    assert "no day is missing" in skipped


def test_metrics_that_rest_will_drop_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """REST has 30 days of metrics. They come before everything else, also if a tick cannot take it all."""
    monkeypatch.setattr(backlog, "PORTION", 40)
    text = """
collect:
  - {market: um, symbols: [BTCUSDT], klines: {intervals: [1h], from: 2024-01-01}, metrics: {from: 2024-01-01}}
"""
    project = project_of(tmp_path, text)
    candles, metrics = sorted(project.universe.series(), key=lambda key: key.data_type)
    with open_instance(project.layout) as instance:
        project.instance = instance
        requests, _ = tick(project, "repair")
    assert asked(requests[:1]) == {metrics: days_between(date(2024, 1, 31), YESTERDAY)}
    assert [request.tags.get("dagster/priority") for request in requests] == ["1", None, None]
    assert asked(requests[1:]) == {
        candles: days_between(date(2024, 2, 25), YESTERDAY),
        metrics: days_between(date(2024, 1, 26), date(2024, 1, 30)),
    }


def test_days_of_runs_that_are_queued_are_not_requested_again(off: Project) -> None:
    job = off.definitions.resolve_job_def("ingest_all")
    assets = frozenset({asset_key_of(KLINES)})
    off.instance.create_run_for_job(
        job, tags={RANGE_START: "2024-01-20", RANGE_END: "2024-02-29"}, asset_selection=assets
    )
    run = off.instance.create_run_for_job(job, tags={PARTITION: "2024-01-11"}, asset_selection=assets)
    for schedule, first in (("repair", 11), ("daily", None)):
        found = asked(tick(off, schedule)[0])
        assert found.get(KLINES, []) == (days_between(day(12), day(19)) if first else [])
        assert YESTERDAY in found[OTHER]
    off.instance.report_run_canceled(run)
    assert asked(tick(off, "repair")[0])[KLINES] == days_between(day(11), day(19))


def test_missed_ticks_of_daily_request_each_day_once(off: Project) -> None:
    """The daemon evaluates the ticks of several days one after another when it is back."""
    job, found = off.definitions.resolve_job_def("ingest_all"), []
    for number in range(3, -1, -1):
        requests, _ = tick(off, "daily", NOW - number * DAY)
        for request in requests:
            off.instance.create_run_for_job(
                job,
                tags=request.tags,
                asset_selection=frozenset(request.asset_selection or ()),
            )
        found += asked(requests).get(KLINES, [])
    assert sorted(found) == days_between(YESTERDAY - 16 * DAY, YESTERDAY)


@pytest.mark.parametrize("schedule", ["verify", "compact", "coverage_daily"])
def test_missed_ticks_of_sweeps_make_one_run(off: Project, schedule: str) -> None:
    [request], _ = tick(off, schedule, NOW - DAY)
    name = {"coverage_daily": "coverage"}.get(schedule, schedule)
    run = off.instance.create_run_for_job(
        off.definitions.resolve_job_def(name), tags={**request.tags, "dagster/schedule_name": schedule}
    )
    requests, skipped = tick(off, schedule)
    assert (requests, "earlier tick" in skipped) == ([], True)
    off.instance.report_run_canceled(run)
    assert len(tick(off, schedule)[0]) == 1


@pytest.mark.parametrize("lost", ["ledger", "row", "file"])
def test_lost_days_are_requested(off: Project, lost: str) -> None:
    record(off.layout, KLINES, MISSED)
    record(off.layout, OTHER, MISSED)
    assert tick(off, "repair")[0] == []
    gone = date(2024, 1, 5)
    if lost == "ledger":
        off.layout.ledger(KLINES).unlink()
    elif lost == "row":
        ledger = Ledger.read(off.layout.ledger(KLINES))
        del ledger.rows[gone]
        ledger.write(off.layout.ledger(KLINES))
    else:
        off.layout.file(KLINES, gone).unlink()
    days = days_between(day(1), YESTERDAY) if lost == "ledger" else [gone]
    assert asked(tick(off, "repair")[0]) == {KLINES: days}


def test_file_of_a_closed_month_has_its_days(off: Project) -> None:
    days = days_between(day(1), day(31))
    record(off.layout, KLINES, [*days, *MISSED])
    record(off.layout, OTHER, MISSED)
    month = off.layout.month(KLINES, day(1))
    month.parent.mkdir(parents=True)
    month.touch()
    for one in days:
        off.layout.file(KLINES, one).unlink()
    assert tick(off, "repair")[0] == []


def test_failed_and_settled_days_are_left_to_their_own_rules(off: Project) -> None:
    record(off.layout, OTHER, MISSED)
    record(off.layout, KLINES, MISSED[:10], EMPTY)
    record(off.layout, KLINES, MISSED[10:20], NOT_LISTED)
    later = DayRecord(day=MISSED[20], outcome=FAILED, failure="checksum", attempts=3, asked_at=clock.naive_utc(NOW))
    put(off.layout, KLINES, later)
    put(off.layout, KLINES, replace(later, day=MISSED[21], failure="network"))
    assert asked(tick(off, "repair")[0]) == {KLINES: MISSED[22:]}


def test_days_outside_of_the_listing_are_not_missing(tmp_path: Path) -> None:
    lock = "spot:\n  BTCUSDT: [{from: 2024-01-01, until: 2024-01-08}, {from: 2024-02-20, until: 2024-02-24}]\n"
    (tmp_path / "universe.lock.yaml").write_text(lock)
    project = project_of(tmp_path, ONE)
    with open_instance(project.layout) as project.instance:
        record(project.layout, KLINES, [day(3)], NOT_LISTED)  # the listing is known better by now
        expected = [*days_between(day(1), day(8)), *days_between(date(2024, 2, 20), date(2024, 2, 24))]
        assert asked(tick(project, "repair")[0]) == {KLINES: expected}


def test_yesterday_is_left_to_daily_until_that_has_ticked(off: Project) -> None:
    requests, _ = tick(off, "repair", NOW.replace(hour=4))
    assert asked(requests)[KLINES][-1] == YESTERDAY - DAY


def test_earlier_from_is_noticed_while_the_daemon_runs(tmp_path: Path) -> None:
    """Earlier days are no partitions yet, so the tick says to reload the code location. A reload requests them."""
    other_from = BOTH.replace("[BTCUSDT, ETHUSDT]", "[BTCUSDT]") + BOTH.partition("collect:\n")[2].replace(
        "[BTCUSDT, ETHUSDT]", "[ETHUSDT]"
    ).replace("2024-01-01", "2024-02-20")
    project = project_of(tmp_path, other_from)
    record(project.layout, KLINES, days_between(day(1), YESTERDAY))
    record(project.layout, OTHER, days_between(date(2024, 2, 20), YESTERDAY))
    with open_instance(project.layout) as project.instance:
        assert tick(project, "repair")[0] == []
        path = tmp_path / "universe.yaml"
        path.write_text(other_from.replace("2024-02-20", "2024-02-01"))
        requests, skipped = tick(project, "repair")
        assert requests == []
        assert f"days before 2024-02-20 of {OTHER}. To fetch them, reload the code location" in skipped
    again = project_of(tmp_path, path.read_text())
    with open_instance(again.layout) as again.instance:
        assert asked(tick(again, "repair")[0]) == {OTHER: days_between(date(2024, 2, 1), date(2024, 2, 19))}


def test_new_series_is_noticed_while_the_daemon_runs(tmp_path: Path) -> None:
    project = project_of(tmp_path, ONE)
    record(project.layout, KLINES, days_between(day(1), YESTERDAY))
    with open_instance(project.layout) as project.instance:
        path = tmp_path / "universe.yaml"
        path.write_text(BOTH)
        requests, skipped = tick(project, "repair")
        assert requests == []
        assert "1 new series, e.g. binance/spot/klines/ETHUSDT/1h. To fetch them, reload the code location" in skipped
        path.write_text("collect: [")  # an editor at work
        assert "no day is missing" in tick(project, "repair")[1]
    again = project_of(tmp_path, BOTH)
    with open_instance(again.layout) as again.instance:
        assert asked(tick(again, "repair")[0]) == {OTHER: days_between(day(1), YESTERDAY)}


def test_profiles_that_were_never_made_are_caught_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog, "PORTION", 20)
    project = project_of(tmp_path, WITH_TRADES, recent_days=2)
    days = days_between(day(1), YESTERDAY)
    record(project.layout, TRADES, days)
    record(project.layout, PROFILE, days[:10])
    with open_instance(project.layout) as project.instance:
        seen: list[date] = []
        for number in range(3):
            requests, _ = tick(
                project, "trade_profiles_daily", NOW.replace(hour=11, minute=0) + number * timedelta(hours=1)
            )
            found = asked(requests)[PROFILE]
            assert len(found) == len(set(found)) <= 22
            seen += found
            record(project.layout, PROFILE, found)
        assert sorted(seen) == days[10:]
        assert tick(project, "trade_profiles_daily")[0] == []
        project.layout.file(PROFILE, day(7)).unlink()
        assert asked(tick(project, "trade_profiles_daily")[0]) == {PROFILE: [day(7)]}


def test_every_series_has_its_share_of_a_portion() -> None:
    days = days_between(day(1), day(31))
    keys = [replace(KLINES, symbol=f"S{number}USDT") for number in range(4)]
    lacking: Mapping[SeriesKey, Sequence[date]] = dict(zip(keys, (days, days[:2], days, []), strict=True))
    found = portion({key: some for key, some in lacking.items() if some}, 30)
    assert {key: len(some) for key, some in found.items()} == {keys[0]: 18, keys[1]: 2, keys[2]: 10}
    assert found[keys[0]] == days[-18:]
    assert portion({}, 30) == {}
    assert len(portion(dict.fromkeys(keys, days), 2)) == 2


def test_series_that_a_tick_does_not_reach_come_first_in_another(tmp_path: Path) -> None:
    symbols = ", ".join(f"S{number}USDT" for number in range(50))
    (tmp_path / "universe.yaml").write_text(ONE.replace("BTCUSDT", symbols))
    universe = load_universe(tmp_path / "universe.yaml")
    what = backlog.requestable(universe)
    layout = Layout(tmp_path)
    seen: set[SeriesKey] = set()
    for hour in range(50):
        seen |= backlog.backlog(NOW + timedelta(hours=hour), YESTERDAY, what, layout, {}, seconds=-1).keys()
    assert seen == set(universe.series())
