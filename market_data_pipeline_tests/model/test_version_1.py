"""Findings of version 0.1 get the fields that their sentences stand for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import date
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from market_data_pipeline.checks.gaps import Missing
from market_data_pipeline.checks.halts import Answers, MarketDay
from market_data_pipeline.checks.ordering import Ints
from market_data_pipeline.checks.verdicts import (
    CUT,
    MARKET_NOT_COMPARED,
    PROVISIONAL,
    AnsweredIds,
    TradeRecord,
    classify_candles,
    classify_trades,
)
from market_data_pipeline.clock import day_start_us
from market_data_pipeline.model.findings import Basis, Finding, Range, RestAnswer, Severity
from market_data_pipeline.model.version_1 import published_sha256, with_fields
from market_data_pipeline_tests.support.world import klines

RECORDED = json.loads((Path(__file__).parents[1] / "releases" / "0.1.0.findings.json").read_text())
"""One finding of each sentence in the data folder of release 0.1.0, with the fields that today's checks set for it."""

SENTENCES_THEN = {
    MARKET_NOT_COMPARED: "unconfirmed: whether other symbols of the market traded meanwhile was not looked at",
    PROVISIONAL: "the day is provisional: its archive is not there yet",
    CUT: "the run's REST weight for aggTrades was used up",
    "unconfirmed: no other series of spot is stored for this time": "unconfirmed: no other series held of spot tells",
    "the aggTrade ids before and after are consecutive, ": "the ids of aggTrades run on across it, ",
    ", but 2 stored aggTrades took place": ", yet 2 aggTrades held took place",
    "stored aggTrades took place": "aggTrades held took place",
    "only another archive can have them": "only another archive can bring them",
}
"""Sentences of today, as version 0.1 wrote them."""

KEY = klines("BTCUSDT", "1m")
DAY = date(2026, 2, 10)
MINUTE = 60_000_000
NONE = np.zeros(0, dtype=np.int64)

NO_ANSWER = RestAnswer(answered=False, reason="its firewall refuses this address")
ANSWERED = RestAnswer(answered=True)
REFUSED = RestAnswer(answered=True, reason="REST of spot does not know the symbol, or no longer (error -1121)")
ELSEWHERE = RestAnswer(answered=True, elsewhere=True)
BEYOND = RestAnswer(answered=False, reason="REST of um serves aggTrades of the last 48 h only", beyond_reach=True)
SPENT = RestAnswer(answered=False, reason="the run's REST weight for aggTrades was used up")


def minutes(*numbers: int) -> Ints:
    return day_start_us(DAY) + np.array(numbers, dtype=np.int64) * MINUTE


def trades_at(*numbers: float) -> TradeRecord:
    return TradeRecord(100 + np.arange(len(numbers)), day_start_us(DAY) + (np.array(numbers) * MINUTE).astype(np.int64))


def fields_of(finding: Finding) -> dict[str, Any]:
    return {"basis": finding.basis, "rest": finding.rest, "faults": finding.faults}


def as_version_1(finding: Finding) -> Finding:
    """The finding as version 0.1 wrote it: the sentences, and no fields."""
    evidence = finding.evidence
    for today, then in SENTENCES_THEN.items():
        evidence = evidence.replace(today, then)
    return finding.model_copy(update={"basis": None, "rest": None, "faults": None, "evidence": evidence})


def assert_comes_back(findings: Sequence[Finding]) -> None:
    assert findings
    read = with_fields(map(as_version_1, findings))
    assert list(map(fields_of, read)) == list(map(fields_of, findings))


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda one: one["finding"]["rule"])
def test_recorded_finding(recorded: dict[str, Any]) -> None:
    (read,) = with_fields([Finding.model_validate(recorded["finding"])])
    assert read == Finding.model_validate({**recorded["finding"], **recorded["fields"]})


def test_recorded_findings_have_every_basis_of_the_release() -> None:
    """The rule that was replaced is of an earlier commit of version 0.1, which the release cannot write."""
    bases = {recorded["fields"].get("basis") for recorded in RECORDED}
    assert bases == {None, *set(Basis) - {Basis.RULE_REPLACED}}


JUDGED = [
    (archived, rest, place)
    for archived, rest, place in product(
        [True, False], [None, ANSWERED, NO_ANSWER, REFUSED], ["inside", "before", "after"]
    )
    # At the ends of a listing, the sentence of a provisional day is the same for a refusal and for no answer.
    if archived or rest is not NO_ANSWER or place == "inside"
]


@pytest.mark.parametrize("trades", [None, trades_at(0.5, 4.2, 5.9, 9.5), trades_at(0.5, 3.9, 6.1, 9.5)])
@pytest.mark.parametrize(("archived", "rest", "place"), JUDGED)
def test_verdict_on_candles(archived: bool, rest: RestAnswer | None, place: str, trades: TradeRecord | None) -> None:
    missing = Missing(**{"inside": NONE, place: minutes(4, 5)})
    found = classify_candles(
        KEY,
        missing,
        minutes(11, 12),
        minutes(15),
        filled=minutes(12),
        archived=archived,
        rest=rest,
        trades=trades,
    )
    assert len(found) == 4
    assert_comes_back(found)


@pytest.mark.parametrize("cut", [True, False])
@pytest.mark.parametrize("answer", [None, ANSWERED, NO_ANSWER, REFUSED, ELSEWHERE, BEYOND, SPENT])
@pytest.mark.parametrize("archived", [True, False])
def test_verdict_on_ids(archived: bool, answer: RestAnswer | None, cut: bool) -> None:
    asked = [AnsweredIds(5, 7, answer)] if answer else []
    assert_comes_back(classify_trades([(5, 7), (10, 10)], np.array([12]), archived=archived, asked=asked, cut=cut))


@pytest.mark.parametrize("answered", [None, "nothing", "confirmed", "refused"])
@pytest.mark.parametrize("traded", [None, minutes(3)])
@pytest.mark.parametrize("others", [{}, {"ETHUSDT": Answers(filled=(Range(first=0, last=1 << 60, count=1),))}])
def test_verdict_on_flat_candles(others: dict[str, Answers], traded: Ints | None, answered: str | None) -> None:
    span = (Range(first=0, last=1 << 60, count=20),)
    own = {"confirmed": Answers(confirmed=span), "refused": Answers(refused=span)}.get(answered or "", Answers())
    answers = None if answered is None else {KEY.symbol: own, **others}
    assert_comes_back(MarketDay("1m", DAY, {}, answers=answers).classify(KEY, minutes(*range(20), 30), traded))


@pytest.mark.parametrize(
    ("check", "rule", "evidence", "fields"),
    [
        ("integrity", "grid", "", {"basis": Basis.RULE_REPLACED}),
        ("integrity", "off_grid", "", {}),  # REST could not be asked
        ("integrity", "source", "1,234 rows unexplained, 2 rows archive_defect, overlap",
         {"faults": (("unexplained", 1234), ("archive_defect", 2), ("overlap", 0))}),
        ("gaps", "unpublished", "REST was not asked", {}),
        ("gaps", "outage", "the ids of aggTrades run on across it, 1 to 2; REST was not asked", {}),
        ("gaps", "not_listed", "trading began on this day by the listing", {}),
        ("gaps", "unpublished", "REST was not asked: they belong into the day before, which was not asked for",
         {"rest": RestAnswer(answered=False, reason="they belong into the day before, which was not asked for")}),
        ("gaps", "unpublished", "REST was not asked: the ids jump at 60 places, and an attempt asks for 50 of them",
         {"rest": RestAnswer(answered=False, reason="the ids jump at 60 places, and an attempt asks for 50 of them")}),
    ],
)  # fmt: skip
def test_other_sentence(check: str, rule: str, evidence: str, fields: dict[str, Any]) -> None:
    finding = Finding.model_validate(
        {"check": check, "rule": rule, "severity": Severity.WARN, "count": 1, "message": "", "evidence": evidence}
    )
    (read,) = with_fields([finding])
    assert fields_of(read) == {"basis": None, "rest": None, "faults": None, **fields}


@pytest.mark.parametrize(
    ("reason", "published"),
    [
        (f"a.zip.CHECKSUM says {'a' * 64}, the bytes have {'b' * 64}. Binance may mend it.", "a" * 64),
        (f"the bytes have {'b' * 64}", None),
        ("a.csv is not what Binance publishes", None),
    ],
)
def test_published_hash(reason: str, published: str | None) -> None:
    assert published_sha256(reason, "b" * 64) == published
