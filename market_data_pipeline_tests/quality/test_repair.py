"""When days are asked for again: which, how soon, and never in a loop."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline import clock
from market_data_pipeline.lake.ledger import EMPTY, FAILED, HELD, NOT_LISTED, LedgerRow, failed_row
from market_data_pipeline.quality.repair import LONGEST_PAUSE, is_due, is_known, marked, pause_after, waits_for_archive
from market_data_pipeline_tests.world import utc

DAY = date(2026, 3, 1)
ASKED = clock.naive_utc(utc("2026-03-02T10:00:00"))


def row(outcome: str = FAILED, failure: str | None = "network", **fields: object) -> LedgerRow:
    """A day that was asked for once, at 10:00 of the day after."""
    given_fields: dict[str, object] = {"attempts": 1, "asked_at": ASKED, **fields}
    return LedgerRow(day=DAY, outcome=outcome, failure=failure, **given_fields)  # type: ignore[arg-type]


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
def test_days_whose_fault_may_pass_are_due(what: LedgerRow, due: bool) -> None:
    assert is_due(what, utc("2026-03-09T10:00:00")) is due


def test_pauses_double_up_to_a_week() -> None:
    hours = [pause_after(attempts) / timedelta(hours=1) for attempts in range(1, 12)]
    assert hours == [1, 2, 4, 8, 16, 32, 64, 128, 168, 168, 168]
    assert pause_after(100_000) == LONGEST_PAUSE


@given(st.integers(1, 40), st.integers(-60, 60))
def test_a_day_rests_for_its_pause(attempts: int, minutes: int) -> None:
    tried = row(attempts=attempts)
    moment = ASKED + pause_after(attempts) + timedelta(minutes=minutes)
    assert is_due(tried, utc(moment.isoformat())) is (minutes >= 0)


def test_a_day_that_is_not_over_is_left_to_the_hourly_schedule() -> None:
    growing = replace(row(), day=date(2026, 3, 2), asked_at=None)
    assert not is_due(growing, utc("2026-03-02T23:59:59"))
    assert is_due(growing, utc("2026-03-03T00:00:00"))


def test_other_bytes_make_a_lasting_failure_due_once() -> None:
    bad = row(failure="checksum", etag="a", attempts=9)
    now = utc("2026-03-02T10:00:01")
    assert is_known(bad, "a")
    assert not is_known(bad, "b")
    again = marked(bad, "b")
    assert is_due(again, now), "at once, however often it failed before"
    assert not is_known(again, "b"), "it was not fetched yet"
    assert again.reason == bad.reason
    tried = failed_row(again, DAY, "checksum", "b does not match either", now)
    assert not is_due(tried, now + timedelta(days=365))
    assert is_known(tried, "b"), "the same listing does not mark it a second time"
    offline = failed_row(again, DAY, "network", "no answer", now)
    assert not is_due(offline, now)
    assert is_due(offline, now + timedelta(hours=1)), "pauses begin anew"
    assert not is_known(offline, "b")


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
def test_days_without_archive_wait_for_it_once_they_are_over(what: LedgerRow, waits: bool) -> None:
    assert waits_for_archive(what, utc("2026-03-02T00:00:00")) is waits
    assert not waits_for_archive(what, utc("2026-03-01T23:59:59"))
