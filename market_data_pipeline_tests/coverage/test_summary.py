"""Coverage and continuity of whole series, from rows of a ledger."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline.checks.continuity import Break, continuity
from market_data_pipeline.checks.verdicts import Ground, verdict_finding
from market_data_pipeline.coverage.calendar import calendar_of
from market_data_pipeline.coverage.summary import GapSum, SeriesCoverage, cover, states_of, sum_of_gaps
from market_data_pipeline.model.day import EMPTY, FAILED, HELD, NOT_LISTED, DayRecord
from market_data_pipeline.model.findings import ACROSS_MIDNIGHT, Finding, Range, Severity, Verdict, to_json
from market_data_pipeline.model.series import DataType, Market, SeriesKey
from market_data_pipeline.model.states import DayState

HOURS = SeriesKey("binance", Market.SPOT, DataType.KLINES, "BTCUSDT", "1h")
TRADES = SeriesKey("binance", Market.SPOT, DataType.AGG_TRADES, "BTCUSDT")
FIRST, TODAY = date(2024, 1, 1), date(2024, 1, 8)
WEEK = [FIRST + timedelta(days=n) for n in range(7)]
HOUR = 3_600_000_000


def held(day: date, first_key: int, last_key: int, *, final: bool = True) -> DayRecord:
    return DayRecord(day=day, outcome=HELD, final=final, first_key=first_key, last_key=last_key)


def by_day(*rows: DayRecord) -> dict[date, DayRecord]:
    return {row.day: row for row in rows}


def covered(rows: dict[date, DayRecord], last: date, provisional_days: int = 10) -> SeriesCoverage:
    """The coverage of a series that is collected from the first of the week on."""
    wanted = [(FIRST, last)]
    return cover(TRADES, rows, states_of(rows, wanted, TODAY), wanted, TODAY, provisional_days)


def test_days_are_counted_by_their_stored_state() -> None:
    rows = by_day(
        held(WEEK[0], 0, 9),
        held(WEEK[1], 10, 19, final=False),
        DayRecord(day=WEEK[2], outcome=FAILED),
        DayRecord(day=WEEK[3], outcome=NOT_LISTED, final=True),
        DayRecord(day=WEEK[4], outcome=EMPTY),
    )

    found = covered(rows, TODAY)

    assert (found.final, found.provisional, found.overdue) == (1, 1, ())
    assert found.failed == (rows[WEEK[2]],)
    assert found.missing == (WEEK[4], WEEK[5], WEEK[6])  # a past day that is still empty was never finished
    assert found.days_missing == 4


def test_today_is_neither_missing_nor_compared() -> None:
    rows = by_day(*(held(day, 0, 9) for day in WEEK[6:]), held(TODAY, 50, 59))
    found = cover(TRADES, rows, states_of(rows, [(WEEK[6], TODAY)], TODAY), [(WEEK[6], TODAY)], TODAY, 10)
    assert (found.final, found.days_missing, found.breaks) == (1, 0, ())
    assert covered({}, TODAY).missing == tuple(WEEK)


def test_wanted_unknown_days_are_missing_unless_between_listings() -> None:
    rows = by_day(
        held(WEEK[0], 0, 9),
        DayRecord(day=WEEK[1], outcome=FAILED),
        DayRecord(day=WEEK[5], outcome=EMPTY),
        DayRecord(day=WEEK[6], outcome=EMPTY, final=True),
        DayRecord(day=TODAY, outcome=EMPTY),
    )
    assert states_of(rows, [(WEEK[0], WEEK[2]), (WEEK[5], TODAY)], TODAY) == {
        WEEK[0]: DayState.FINAL,
        WEEK[1]: DayState.FAILED,
        WEEK[2]: DayState.MISSING,
        WEEK[3]: DayState.NOT_LISTED,
        WEEK[4]: DayState.NOT_LISTED,
        WEEK[5]: DayState.MISSING,
        WEEK[6]: DayState.EMPTY,
    }


@pytest.mark.parametrize(
    ("outcome", "final", "lacking"),
    [(HELD, True, 0), (HELD, False, 0), (FAILED, False, 1), (EMPTY, False, 1), (EMPTY, True, 0), (NOT_LISTED, True, 0)],
)
def test_sums_and_calendar_agree_on_every_day(outcome: str, final: bool, lacking: int) -> None:
    rows = by_day(DayRecord(day=FIRST, outcome=outcome, final=final))
    states = states_of(rows, [(FIRST, FIRST)], TODAY)
    assert cover(TRADES, rows, states, [(FIRST, FIRST)], TODAY, 10).days_missing == lacking
    assert calendar_of(TRADES, states).days_incomplete == lacking


@pytest.mark.parametrize(("after", "overdue"), [(7, 0), (6, 1), (5, 2), (1, 2)])
def test_day_is_overdue_after_too_long_as_provisional(after: int, overdue: int) -> None:
    rows = by_day(*(held(WEEK[n], 10 * n, 10 * n + 9, final=n > 1) for n in range(7)))
    found = covered(rows, WEEK[6], after)
    assert found.overdue == tuple(WEEK[:overdue])
    assert (found.final, found.provisional) == (5, 2)


def gap(day: date, *verdicts: tuple[Verdict, int, str]) -> DayRecord:
    findings = [
        verdict_finding(Ground(verdict, evidence), "candles", count, ()) for verdict, count, evidence in verdicts
    ]
    joined = "+".join(dict.fromkeys(verdict.value for verdict, _, _ in verdicts))
    return replace(held(day, 0, 9), verdicts=joined, findings=to_json(findings))


def test_gaps_are_summed_by_verdict_with_the_newest_evidence() -> None:
    rows = (
        gap(WEEK[4], (Verdict.QUIET, 2, "BTC traded"), (Verdict.QUIET, 3, "ETH traded"), (Verdict.OUTAGE, 9, "REST")),
        gap(WEEK[1], (Verdict.QUIET, 5, "unconfirmed"), (Verdict.ARCHIVE_DEFECT, 1, "trades")),
        held(WEEK[0], 0, 9),
        DayRecord(day=WEEK[5], outcome=FAILED),
    )
    assert sum_of_gaps(rows) == (
        GapSum(Verdict.OUTAGE, 9, 1, WEEK[4], "REST"),
        GapSum(Verdict.ARCHIVE_DEFECT, 1, 1, WEEK[1], "trades"),
        GapSum(Verdict.QUIET, 10, 2, WEEK[4], "BTC traded"),
    )


@pytest.mark.parametrize(
    ("first_key", "expected"),
    [(10, ()), (13, (Break(WEEK[1], 10, 13),)), (9, (Break(WEEK[1], 10, 9),))],
)
def test_trades_go_on_with_the_next_id(first_key: int, expected: tuple[Break, ...]) -> None:
    found = continuity(TRADES, by_day(held(WEEK[0], 0, 9), held(WEEK[1], first_key, 19)), TODAY)
    assert found == expected
    assert [one.overlap for one in found] == [first_key < 10] * len(found)


def test_candles_go_on_one_interval_later() -> None:
    rows = by_day(held(WEEK[0], 0, 23 * HOUR), held(WEEK[1], 24 * HOUR, 46 * HOUR), held(WEEK[2], 48 * HOUR, 71 * HOUR))
    assert continuity(HOURS, rows, TODAY) == (Break(WEEK[2], 47 * HOUR, 48 * HOUR),)


def test_provisional_and_separated_days_are_not_compared() -> None:
    """A missing day separates two days."""
    rows = by_day(held(WEEK[0], 0, 9), held(WEEK[1], 50, 59, final=False), held(WEEK[2], 90, 99), held(WEEK[4], 5, 6))
    assert continuity(TRADES, rows, TODAY) == ()


@given(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=7), cut=st.integers(0, 6), lost=st.integers(1, 5))
def test_ids_that_are_lost_at_one_midnight_break_there_only(sizes: list[int], cut: int, lost: int) -> None:
    rows, next_id = {}, 0
    for number, size in enumerate(sizes):
        next_id += lost if number == cut and number > 0 else 0
        rows[WEEK[number]] = held(WEEK[number], next_id, next_id + size - 1)
        next_id += size
    expected = [WEEK[cut]] if 0 < cut < len(sizes) else []
    assert [one.day for one in continuity(TRADES, rows, TODAY)] == expected


def lacks(first: int, last: int, verdict: Verdict, step: int = 1) -> str:
    """Findings of a day that lacks rows from one key to another."""
    found = Range(first=first, last=last, count=(last - first) // step + 1)
    return to_json([verdict_finding(Ground(verdict, "REST was asked"), "rows", found.count, [found])])


@pytest.mark.parametrize(
    ("before", "after", "explained"),
    [
        (lacks(22 * HOUR, 23 * HOUR, Verdict.OUTAGE, HOUR), lacks(24 * HOUR, 26 * HOUR, Verdict.OUTAGE, HOUR), True),
        (lacks(22 * HOUR, 23 * HOUR, Verdict.OUTAGE, HOUR), lacks(24 * HOUR, 25 * HOUR, Verdict.OUTAGE, HOUR), False),
        (
            lacks(22 * HOUR, 23 * HOUR, Verdict.UNPUBLISHED, HOUR),
            lacks(24 * HOUR, 26 * HOUR, Verdict.OUTAGE, HOUR),
            False,
        ),
        ("[]", lacks(24 * HOUR, 26 * HOUR, Verdict.OUTAGE, HOUR), False),
    ],
)
def test_midnight_is_explained_by_verdicts_on_all_missing_ids(before: str, after: str, explained: bool) -> None:
    rows = by_day(
        replace(held(WEEK[0], 0, 21 * HOUR), findings=before),
        replace(held(WEEK[1], 27 * HOUR, 47 * HOUR), findings=after),
    )
    wanted = [(FIRST, WEEK[1])]
    found = cover(HOURS, rows, states_of(rows, wanted, TODAY), wanted, TODAY, 10)
    expected = () if explained else (Break(WEEK[1], 22 * HOUR, 27 * HOUR),)
    assert (found.breaks, found.explained) == (expected, int(explained))


@pytest.mark.parametrize(("severity", "explained"), [(Severity.INFO, True), (Severity.ERROR, False)])
@pytest.mark.parametrize("teller", [0, 1])
def test_overlap_is_explained_if_the_later_day_has_no_duplicates(
    severity: Severity, explained: bool, teller: int
) -> None:
    told = Finding(check="integrity", rule=ACROSS_MIDNIGHT, severity=severity, count=0, message="")
    rows = by_day(held(WEEK[0], 0, 9), held(WEEK[1], 9, 19))
    rows[WEEK[teller]] = replace(rows[WEEK[teller]], findings=to_json([told]))
    assert covered(rows, WEEK[1]).explained == int(explained and teller == 1)
