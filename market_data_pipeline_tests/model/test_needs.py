"""When days are asked for again: which, how soon, and never in a loop."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline import clock
from market_data_pipeline.checks.continuity import open_midnights
from market_data_pipeline.checks.verdicts import AnsweredIds, classify_trades
from market_data_pipeline.model.day import EMPTY, FAILED, HELD, NOT_LISTED, DayRecord, Failed, OtherArchive, after
from market_data_pipeline.model.findings import OPEN, Finding, Range, RestAnswer, Severity, to_json
from market_data_pipeline.model.needs import LONGEST_PAUSE, is_current, knows_archive, needs, pause_after, pause_ended
from market_data_pipeline_tests.support.world import agg_trades, days, klines, utc

DAY = date(2026, 3, 1)
ASKED = clock.naive_utc(utc("2026-03-02T10:00:00"))


def row(outcome: str = FAILED, failure: str | None = "network", **fields: object) -> DayRecord:
    """A day that was asked for once, at 10:00 of the day after."""
    verdicts = str(fields.get("verdicts", ""))
    retry = not OPEN.isdisjoint(verdicts.split("+"))
    given_fields: dict[str, object] = {"attempts": 1, "asked_at": ASKED, "retry": retry, **fields}
    return DayRecord(day=DAY, outcome=outcome, failure=failure, **given_fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("what", "due"),
    [
        (row(failure="network"), True),
        (row(failure="host_off"), True),
        (row(failure="unpublished"), True),
        (row(failure="storage"), True),
        (row(failure="damaged"), True),
        (row(failure="checksum"), False),
        (row(failure="malformed"), False),
        (row(failure="conflict"), False),
        (row(failure="absent"), False),
        (row(EMPTY, None), True),
        (row(NOT_LISTED, None, final=True), False),
        (row(HELD, None, final=True), False),
        (row(HELD, None, final=True, verdicts="outage+quiet"), False),
        (row(HELD, None, final=True, verdicts="outage+archive_defect"), True),
        (row(HELD, None, final=False), False),
        (row(HELD, None, final=False, verdicts="unpublished"), True),
        (row(HELD, "host_off", final=False), True),
        (row(HELD, "network", final=True), False),
        (row(HELD, "network", final=True, replaced_by="b"), True),
        (row(HELD, "checksum", final=True, replaced_by="b"), False),
        (row(HELD, "checksum", final=True, replaced_by="c", attempts=0), True),
    ],
)
def test_days_whose_fault_may_pass_are_due(what: DayRecord, due: bool) -> None:
    assert needs(what, utc("2026-03-09T10:00:00")).is_due is due


def test_pauses_double_up_to_a_week() -> None:
    hours = [pause_after(attempts) / timedelta(hours=1) for attempts in range(1, 12)]
    assert hours == [1, 2, 4, 8, 16, 32, 64, 128, 168, 168, 168]
    assert pause_after(100_000) == LONGEST_PAUSE


def test_hourly_reader_sees_the_same_backoff_end() -> None:
    hours = [ASKED + timedelta(hours=n) for n in range(1, 200)]
    ended = [n for n, at in enumerate(hours, 1) if pause_ended(ASKED, at - timedelta(hours=1), at)]
    assert ended == [1, 3, 7, 15, 31, 63, 127]
    assert pause_ended(ASKED, hours[3], hours[9]), "who looks less often finds one that ended meanwhile"
    assert not pause_ended(hours[9], hours[3], hours[9])


@given(st.integers(1, 40), st.integers(-60, 60))
def test_a_day_rests_for_its_pause(attempts: int, minutes: int) -> None:
    tried = row(attempts=attempts)
    moment = ASKED + pause_after(attempts) + timedelta(minutes=minutes)
    assert needs(tried, utc(moment.isoformat())).is_due is (minutes >= 0)


def test_a_day_that_is_not_over_is_left_to_the_hourly_schedule() -> None:
    growing = replace(row(), day=date(2026, 3, 2), asked_at=None)
    assert not needs(growing, utc("2026-03-02T23:59:59")).is_due
    assert needs(growing, utc("2026-03-03T00:00:00")).is_due


def test_other_bytes_make_a_lasting_failure_due_once() -> None:
    bad = row(failure="checksum", etag="a", attempts=9)
    now = utc("2026-03-02T10:00:01")
    assert knows_archive(bad, "a")
    assert not knows_archive(bad, "b")
    again = after(bad, DAY, OtherArchive("b"))
    assert needs(again, now).is_due, "at once, however often it failed before"
    assert not knows_archive(again, "b"), "it was not fetched yet"
    assert again.reason == bad.reason
    tried = after(again, DAY, Failed("checksum", "b does not match either", now))
    assert not needs(tried, now + timedelta(days=365)).is_due
    assert knows_archive(tried, "b"), "the same listing does not mark it a second time"
    offline = after(again, DAY, Failed("network", "no answer", now))
    assert not needs(offline, now).is_due
    assert needs(offline, now + timedelta(hours=1)).is_due, "pauses begin anew"
    assert not knows_archive(offline, "b")


@pytest.mark.parametrize(
    ("what", "waits"),
    [
        (row(HELD, None, final=False), True),
        (row(HELD, None, final=True), False),
        (row(EMPTY, None), True),
        (row(NOT_LISTED, None, final=True), False),
        (row(failure="absent"), True),
        (row(failure="host_off"), True),
        (row(failure="checksum"), False),
        (row(failure="network"), False),
    ],
)
def test_days_without_archive_wait_for_it_once_they_are_over(what: DayRecord, waits: bool) -> None:
    assert needs(what, utc("2026-03-02T00:00:00")).awaits_archive is waits
    assert not needs(what, utc("2026-03-01T23:59:59")).awaits_archive


@pytest.mark.parametrize(
    ("what", "worth"),
    [
        (row(HELD, None), True),
        (row(HELD, "checksum"), False),
        (row(failure="absent"), True),
        (row(failure="checksum"), False),
        (row(failure="network"), True),
        (row(failure="network", attempts=9), False),
        (row(HELD, None, final=True), False),
        (row(NOT_LISTED, None, final=True), False),
    ],
)
def test_days_are_worth_a_request_unless_the_answer_is_known(what: DayRecord, worth: bool) -> None:
    assert needs(what, utc("2026-03-03T10:00:00")).is_worth_asking is worth


def trades_of(day: date, first: int, last: int, **fields: object) -> DayRecord:
    """A final day of aggTrades."""
    return replace(row(HELD, None, final=True, **fields), day=day, first_key=first, last_key=last)


THREE = days("2026-02-26", "2026-02-28")
WHOLE = trades_of(THREE[0], 1, 10), trades_of(THREE[1], 11, 20), trades_of(THREE[2], 21, 30)


def told(first: int, last: int) -> str:
    """Findings of a day that lacks ids before its first."""
    ranges = (Range(first=first, last=last, count=last - first + 1),)
    return to_json(
        [Finding(check="gaps", rule="unexplained", severity=Severity.ERROR, count=1, message="", ranges=ranges)]
    )


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (None, []),
        (replace(WHOLE[1], first_key=14), THREE[:2]),
        (replace(WHOLE[1], first_key=10), THREE[:2]),
        (replace(WHOLE[1], first_key=14, last_key=18), THREE),
        (replace(WHOLE[1], first_key=14, findings=told(11, 13)), []),
        (replace(WHOLE[1], first_key=14, findings=told(12, 13)), THREE[:2]),
        (replace(WHOLE[1], first_key=14, final=False), []),
        (replace(WHOLE[1], first_key=14, attempts=12), []),
    ],
)
def test_broken_midnight_is_requested_unless_explained(changed: DayRecord | None, expected: list[date]) -> None:
    rows = {one.day: one for one in (*WHOLE, *([changed] if changed else []))}
    assert open_midnights(agg_trades("BTCUSDT"), rows, utc("2026-03-03T10:00:00")) == expected


def test_midnight_with_missing_and_moved_ids_has_two_parts() -> None:
    """REST has some ids on another day, and others not at all."""
    asked = [
        AnsweredIds(11, 13, RestAnswer(answered=True)),
        AnsweredIds(14, 14, RestAnswer(answered=True, elsewhere=True)),
        AnsweredIds(15, 15, RestAnswer(answered=True)),
    ]
    for answers, expected in ((asked, []), (asked[:2], THREE[:2])):
        findings = classify_trades([(11, 15)], np.zeros(0, dtype=np.int64), archived=True, asked=answers)
        later = replace(WHOLE[1], first_key=16, findings=to_json(findings))
        rows = {one.day: one for one in (*WHOLE, later)}
        assert open_midnights(agg_trades("BTCUSDT"), rows, utc("2026-03-03T10:00:00")) == expected


def test_candles_missing_at_midnight_are_gaps_of_their_day() -> None:
    rows = {one.day: one for one in (WHOLE[0], replace(WHOLE[1], first_key=14))}
    assert open_midnights(klines("BTCUSDT", "1h"), rows, utc("2026-03-03T10:00:00")) == []


# --- what a user asks for -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "at", "current"),
    [
        (row(HELD, None, final=True), "2026-03-02T12:00", True),
        (row(HELD, None, final=True, verdicts="archive_defect"), "2026-03-02T10:59", True),
        (row(HELD, None, final=True, verdicts="archive_defect"), "2026-03-02T11:00", False),
        (row(HELD, None, final=True, replaced_by="e2", attempts=0), "2026-03-02T10:01", False),
        (row(NOT_LISTED, None, final=True), "2026-03-02T12:00", True),
        (row(FAILED, "checksum"), "2026-03-02T10:01", False),
        (row(HELD, None), "2026-03-02T10:59", True),
        (row(HELD, None), "2026-03-02T11:00", False),
        (row(HELD, None, asked_at=ASKED.replace(hour=1)), "2026-03-02T02:59", True),
        (row(HELD, None, asked_at=ASKED.replace(hour=1)), "2026-03-02T03:00", False),
        (row(HELD, None, asked_at=ASKED.replace(day=1)), "2026-03-01T10:59", True),
        (row(HELD, None, asked_at=ASKED.replace(day=1)), "2026-03-01T11:00", False),
        (row(HELD, None, asked_at=ASKED.replace(day=1)), "2026-03-02T00:00", False),
    ],
)
def test_a_request_fetches_only_what_a_source_may_have(record: DayRecord, at: str, current: bool) -> None:
    assert is_current(klines("BTCUSDT", "1h"), record, utc(at)) is current


def test_a_request_for_trades_of_today_always_fetches() -> None:
    today = row(HELD, None, asked_at=ASKED.replace(day=1))
    assert not is_current(agg_trades("BTCUSDT"), today, utc("2026-03-01T10:00:01"))
