"""Flat candles against the rest of the market: suspended, quiet, or quiet and unconfirmed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import date

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline import clock
from market_data_pipeline.checks.halts import MarketDay, Stillness, stillness
from market_data_pipeline.model.findings import VERDICT_SEVERITY, Finding, Range, Verdict
from market_data_pipeline_tests.support.small_lake import series

DAY = date(2024, 1, 1)
MIDNIGHT = clock.day_start_us(DAY)
MINUTE = 60_000_000
LAST = MIDNIGHT + 1439 * MINUTE
NEAR = series("NEARUSDT", "1m", "um")


def minutes(*numbers: int) -> np.ndarray:
    return MIDNIGHT + MINUTE * np.array(numbers, dtype=np.int64)


def gap(verdict: str, *bounds: tuple[int, int], beyond: int = 0) -> Finding:
    """A finding about minutes of the day, both ends included; ``beyond`` rows are not among its ranges."""
    ranges = tuple(Range(first=MIDNIGHT + a * MINUTE, last=MIDNIGHT + b * MINUTE, count=b - a + 1) for a, b in bounds)
    return Finding(
        check="gaps",
        rule=verdict,
        severity=VERDICT_SEVERITY[Verdict(verdict)],
        count=sum(r.count for r in ranges) + beyond,
        message="",
        ranges=ranges,
    )


def symbol(*findings: Finding, last: int = LAST) -> Stillness:
    return stillness(findings, MIDNIGHT, last)


def judged(flat: np.ndarray, others: Mapping[str, Stillness]) -> list[Finding]:
    return MarketDay("1m", DAY, others).classify(NEAR, flat)


def told(findings: list[Finding]) -> list[tuple[str, list[tuple[int, int]], str]]:
    """Verdict, minutes and evidence."""
    return [
        (f.rule, [((r.first - MIDNIGHT) // MINUTE, (r.last - MIDNIGHT) // MINUTE) for r in f.ranges], f.evidence)
        for f in findings
    ]


def test_a_range_is_split_where_others_begin_to_trade() -> None:
    others = {"AVAXUSDT": symbol(gap("quiet", (10, 19))), "BTCUSDT": symbol(gap("outage", (12, 30)))}
    assert told(judged(minutes(*range(10, 25), 700), others)) == [
        (
            "suspended",
            [(12, 19)],
            "every other stored symbol was flat or missing, too (2: AVAXUSDT, BTCUSDT)",
        ),
        (
            "quiet",
            [(10, 11), (20, 24), (700, 700)],
            "at least 1 of 2 other stored symbols traded meanwhile, most often AVAXUSDT",
        ),
    ]


def test_with_no_other_symbol_it_is_quiet_and_unconfirmed() -> None:
    assert told(judged(minutes(5, 6), {})) == [
        ("quiet", [(5, 6)], "unconfirmed: no other series of um is stored for this time")
    ]


@pytest.mark.parametrize("verdict", ["archive_defect", "unpublished", "unexplained", "not_listed"])
def test_rows_missing_for_other_reasons_are_no_evidence(verdict: str) -> None:
    """They neither confirm nor deny a halt."""
    lacking = symbol(gap(verdict, (0, 100)))
    assert [one[0:1] + one[2:] for one in told(judged(minutes(5), {"AVAXUSDT": lacking}))] == [
        ("quiet", "unconfirmed: no other series of um is stored for this time")
    ]
    others = {"AVAXUSDT": lacking, "BTCUSDT": symbol(gap("quiet", (5, 5)))}
    [(rule, _, evidence)] = told(judged(minutes(5), others))
    assert (rule, evidence) == (
        "suspended",
        "every other stored symbol was flat or missing, too (1: BTCUSDT)",
    )


def test_minutes_beyond_the_ranges_of_a_finding_are_unknown() -> None:
    others = {"AVAXUSDT": symbol(gap("quiet", (5, 5), beyond=3))}
    found = told(judged(minutes(4, 5, 6), others))
    assert [(rule, bounds) for rule, bounds, _ in found] == [
        ("suspended", [(5, 5)]),
        ("quiet", [(4, 4)]),
        ("quiet", [(6, 6)]),
    ]
    assert found[-1][2].startswith("unconfirmed")


def test_symbol_is_no_evidence_after_its_last_candle() -> None:
    others = {"AVAXUSDT": symbol(last=MIDNIGHT + 10 * MINUTE)}
    found = told(judged(minutes(10, 11), others))
    assert [(rule, bounds) for rule, bounds, _ in found] == [("quiet", [(10, 10)]), ("quiet", [(11, 11)])]
    assert [evidence.startswith("unconfirmed") for *_, evidence in found] == [False, True]


def test_evidence_names_three_symbols_and_counts_the_others() -> None:
    others = {f"S{n}USDT": symbol(gap("suspended", (5, 5))) for n in range(9)}
    [(_, _, evidence)] = told(judged(minutes(5), others))
    assert evidence == ("every other stored symbol was flat or missing, too (9: S0USDT, S1USDT, S2USDT and 6 more)")


def test_day_without_flat_candles_has_no_finding() -> None:
    assert judged(minutes(), {"AVAXUSDT": symbol()}) == []


flat_minutes = st.sets(st.integers(0, 30), max_size=20)


@given(flats=st.dictionaries(st.sampled_from("ABCDE"), flat_minutes, min_size=1))
def test_flat_candle_is_suspended_when_all_others_are_flat(
    flats: dict[str, set[int]],
) -> None:
    """It needs other symbols, and all of them must be flat."""
    day = MarketDay(
        "1m",
        DAY,
        {name: Stillness(MIDNIGHT, LAST, flat=minutes(*sorted(flat))) for name, flat in flats.items()},
    )
    for name, flat in flats.items():
        found = day.classify(series(name, "1m", "um"), minutes(*sorted(flat)))
        suspended = {
            minute
            for rule, bounds, _ in told(found)
            if rule == "suspended"
            for a, b in bounds
            for minute in range(a, b + 1)
        }
        others = [other for key, other in flats.items() if key != name]
        assert suspended == {minute for minute in flat if others and all(minute in other for other in others)}
        assert sum(finding.count for finding in found) == len(flat)


def test_day_of_400_symbols_is_classified_in_seconds() -> None:
    generator = np.random.default_rng(1)
    flats = {f"S{n:03}USDT": minutes(*np.unique(generator.integers(0, 1440, 40))) for n in range(400)}
    began = time.process_time()
    day = MarketDay("1m", DAY, {name: Stillness(MIDNIGHT, LAST, flat=flat) for name, flat in flats.items()})
    found = [day.classify(series(name, "1m", "um"), flat) for name, flat in flats.items()]
    seconds = time.process_time() - began
    assert {finding.rule for findings in found for finding in findings} == {"quiet"}
    assert seconds < 60, "a comparison of each symbol with each other takes minutes"
