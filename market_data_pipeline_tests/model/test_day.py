"""The life of a day: random events never take it where the table of transitions does not lead."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, datetime, timedelta
from typing import get_args

from hypothesis import given, settings
from hypothesis import strategies as st

from market_data_pipeline.checks.verdicts import Ground, verdict_finding
from market_data_pipeline.model.day import (
    LASTING,
    TRANSITIONS,
    Classified,
    Confirmed,
    DayRecord,
    Event,
    Failed,
    FileStat,
    Lost,
    NothingThere,
    OtherArchive,
    Stage,
    Stored,
    Unlisted,
    after,
    stage_of,
)
from market_data_pipeline.model.findings import Basis, Finding, RestAnswer, Verdict
from market_data_pipeline.model.needs import LONGEST_PAUSE, NeedKind, needs
from market_data_pipeline.model.provenance import ChecksumStatus, Part, Provenance, Source
from market_data_pipeline_tests.support.full_size import sized
from market_data_pipeline_tests.support.world import klines, utc

DAY = date(2026, 3, 1)
BEGIN = utc("2026-03-02T03:00:00")
KEY = str(klines("BTCUSDT", "1h"))

GROUNDS = (
    Ground(Verdict.OUTAGE, "REST has no candle either", rest=RestAnswer(answered=True)),
    Ground(Verdict.UNPUBLISHED, "REST was not asked"),
    Ground(Verdict.ARCHIVE_DEFECT, "too old", rest=RestAnswer(answered=False, beyond_reach=True)),
    Ground(Verdict.ARCHIVE_DEFECT, "trades took place"),
    Ground(Verdict.UNCONFIRMED, "the market was flat"),
    Ground(Verdict.QUIET, "not compared", Basis.MARKET_NOT_COMPARED),
)
found = st.lists(st.sampled_from(GROUNDS), max_size=2).map(
    lambda grounds: tuple(verdict_finding(ground, "candles", 1, ()) for ground in grounds)
)
etags = st.sampled_from("abc")


def footer(at: datetime, etag: str, final: bool, findings: tuple[Finding, ...]) -> Provenance:
    source = Source.ARCHIVE_DAILY if final else Source.REST
    checksum = ChecksumStatus.VERIFIED if final else None
    part = Part(
        source=source, url="x", first_row=0, rows=1, fetched_at=at, etag=etag if final else None, checksum=checksum
    )
    return Provenance(
        series=KEY,
        day=DAY,
        parts=(part,),
        final=final,
        fetched_at=at,
        rows=1,
        content_sha256="0",
        findings=findings,
    )


@st.composite
def events(draw: st.DrawFn, kind: type[Event], at: datetime, *, stored_final: bool) -> Event:
    """An event of a kind, as a run at a moment may bring it."""
    if kind is Stored:
        final = stored_final or draw(st.booleans())  # rows of REST are never written over final ones
        return Stored(footer(at, draw(etags), final, draw(found)), FileStat(1, 1), "0", at)
    if kind is Confirmed:
        return Confirmed(at, archive=draw(st.booleans()))
    if kind is NothingThere:
        outage = (verdict_finding(GROUNDS[0], "candles", 24, ()),)
        return NothingThere(at, draw(st.sampled_from([(), outage])))
    if kind is Unlisted:
        return Unlisted(at)
    if kind is Failed:
        failure = draw(st.sampled_from([*sorted(LASTING), "network", "host_off", "unpublished", "storage"]))
        return Failed(failure, "why", at, draw(st.none() | etags))
    if kind is OtherArchive:
        return OtherArchive(draw(etags))
    if kind is Lost:
        return Lost("gone", damaged=draw(st.booleans()))
    return Classified(draw(found))


@settings(max_examples=sized(250, 5_000))
@given(st.data())
def test_random_events_follow_the_transitions(data: st.DataObject) -> None:
    """No final day becomes provisional, every event leads where the table says, and each stage is left or settled."""
    record: DayRecord | None = None
    at = BEGIN
    for _ in range(data.draw(st.integers(1, 12))):
        before = stage_of(record)
        kind = data.draw(st.sampled_from(list(TRANSITIONS[before])))
        is_final = record is not None and record.is_stored_final
        at += timedelta(minutes=data.draw(st.integers(1, 20_000)))
        record = after(record, DAY, data.draw(events(kind, at, stored_final=is_final)))
        now = stage_of(record)
        assert now in TRANSITIONS[before][kind]
        if is_final and kind is not Lost:
            assert record.is_stored_final, "a final day stays final"
        need = needs(record, at)
        if kind in (Stored, Confirmed, NothingThere, Failed) and need.kind is not NeedKind.NOTHING:
            assert not need.is_due, "an attempt is followed by a pause, so nothing loops"
        later = needs(record, at + LONGEST_PAUSE)
        assert later.is_due or later.awaits_archive or later.kind in (NeedKind.NOTHING, NeedKind.OTHER_ARCHIVE)


def test_every_stage_is_in_the_table_and_can_be_reached() -> None:
    reached = {Stage.NEW}
    while more := {to for stage in reached for stages in TRANSITIONS[stage].values() for to in stages} - reached:
        reached |= more
    assert reached == set(Stage) == set(TRANSITIONS)
    assert {kind for kinds in TRANSITIONS.values() for kind in kinds} == set(get_args(Event))


def test_failed_attempt_at_a_day_once_unlisted_is_not_final() -> None:
    unlisted = after(None, DAY, Unlisted(BEGIN))
    failed = after(unlisted, DAY, Failed("absent", "why", BEGIN))
    assert (failed.outcome, failed.final) == ("failed", False)
    assert needs(failed, BEGIN).awaits_archive


def test_empty_day_that_is_over_rests_between_attempts() -> None:
    empty = after(None, DAY, NothingThere(BEGIN))
    assert not needs(empty, BEGIN).is_due
    assert needs(empty, BEGIN + timedelta(hours=1)).is_due
    again = after(empty, DAY, NothingThere(BEGIN + timedelta(hours=1)))
    assert not needs(again, BEGIN + timedelta(hours=2)).is_due
    assert needs(replace(again, day=date(2026, 3, 2)), BEGIN).kind is NeedKind.LATER


def test_unconfirmed_verdict_does_not_hide_another_tried_archive() -> None:
    unconfirmed = (verdict_finding(Ground(Verdict.UNCONFIRMED, "REST was not asked"), "candles", 1, ()),)
    stored = after(None, DAY, Stored(footer(BEGIN, "a", True, ()), FileStat(1, 1), "0", BEGIN))
    assert after(stored, DAY, Classified(unconfirmed)).attempts == 0, "due at once"
    waiting = after(stored, DAY, OtherArchive("other"))
    tried = after(waiting, DAY, Failed("checksum", "why", BEGIN, "other"))
    assert after(tried, DAY, Classified(unconfirmed)).attempts == tried.attempts > 0
