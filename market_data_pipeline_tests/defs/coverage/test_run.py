"""The coverage asset of a market: what it tells, and its standing checks."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import dagster as dg
import pytest
from dagster_shared.serdes import serialize_value

from market_data_pipeline import clock
from market_data_pipeline.checks.verdicts import Ground, verdict_finding
from market_data_pipeline.defs.coverage.run import how_to_recover
from market_data_pipeline.defs.keys import coverage_key_of
from market_data_pipeline.lake.ledger import Ledger
from market_data_pipeline.model.day import FAILED, DayRecord
from market_data_pipeline.model.findings import Finding, Range, Severity, Verdict
from market_data_pipeline.model.series import Market
from market_data_pipeline_tests.support.fakes import (
    KLINES,
    OTHER,
    TRADES,
    UNIVERSE,
    Project,
    day,
    hold,
    put,
    universe_of,
)


@pytest.fixture(autouse=True)
def _noon_of_january_4(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "now", lambda: datetime(2024, 1, 4, 12, tzinfo=UTC))


def run(project: Project) -> tuple[dict[str, Any], dict[str, dg.AssetCheckEvaluation]]:
    """Run the coverage job; the metadata of spot and its checks."""
    result = project.definitions.resolve_job_def("coverage").execute_in_process(instance=project.instance)
    key = coverage_key_of(Market.SPOT)
    [event] = [e for e in result.get_asset_materialization_events() if e.asset_key == key]
    checks = {e.check_name: e for e in result.get_asset_check_evaluations() if e.asset_key == key}
    return {name: value.value for name, value in event.materialization.metadata.items()}, checks


def test_a_complete_market_passes(project: Project) -> None:
    for key in (KLINES, OTHER, TRADES):
        for number in (1, 2, 3):
            hold(project.layout, key, day(number))

    metadata, checks = run(project)

    assert (metadata["days stored"], metadata["days missing"], metadata["series"]) == (9, 0, 3)
    assert checks["missing_days"].passed
    assert checks["doubtful_days"].passed
    # The made-up trades jump from 19 to 20, as they should.
    assert checks["continuity"].passed


def table(found: dg.AssetCheckEvaluation, name: str) -> list[dict[str, Any]]:
    """A table in a check's metadata."""
    value = found.metadata[name]
    assert isinstance(value, dg.TableMetadataValue)
    return [dict(record.data) for record in value.records]


def test_missing_days_are_listed_by_series_with_their_remedy(project: Project) -> None:
    for key in (KLINES, TRADES):
        for number in (1, 2, 3):
            hold(project.layout, key, day(number), final=number != 3)
    hold(project.layout, OTHER, day(2))
    failed = DayRecord(day=day(3), outcome=FAILED, failure="checksum", reason="It differs.", attempts=2)
    put(project.layout, OTHER, failed)

    metadata, checks = run(project)

    first_row = metadata["coverage"].splitlines()[2]
    assert first_row == "| binance/spot/klines/ETHUSDT/1h | 1 | 0 | 1 | 1 | 2024-01-01, 2024-01-03 |"
    assert metadata["days provisional"] == 2
    missing, bad = checks["missing_days"], checks["failed_days"]
    assert (missing.passed, missing.severity, bad.passed, bad.severity) == (
        False, dg.AssetCheckSeverity.WARN, False, dg.AssetCheckSeverity.ERROR
    )  # fmt: skip
    assert "1 days of 1 series were never fetched. Run `market-data sync`" in (missing.description or "")
    assert table(missing, "missing") == [{"series": str(OTHER), "days": 1, "spans": "2024-01-01"}]
    assert table(bad, "failed") == [{"series": str(OTHER), "day": "2024-01-03", "kind": "checksum", "attempts": 2}]
    assert bad.metadata["checksum: newest reason"].value == "It differs."
    assert bad.metadata["checksum: to recover"].value == (
        "`market-data quarantine show ETHUSDT-1h-2024-01-03`, then `retry` or `accept`"
    )


def test_newest_twenty_failed_days_are_shown_and_all_counted(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "now", lambda: datetime(2024, 2, 1, 12, tzinfo=UTC))
    for number in range(1, 32):
        put(project.layout, KLINES, DayRecord(day=day(number), outcome=FAILED, failure="network", reason="No answer."))

    _, checks = run(project)

    rows = table(checks["failed_days"], "failed")
    assert [row["day"] for row in rows[:20]] == [str(day(number)) for number in range(31, 11, -1)]
    assert rows[20:] == [{**dict.fromkeys(rows[0], ""), "series": "… and 11 more"}]
    assert checks["failed_days"].metadata["days"].value == 31
    assert checks["failed_days"].metadata["network: to recover"].value == (
        "`market-data backfill --market spot --data-type klines --symbol BTCUSDT --interval 1h "
        "--from 2024-01-31 --through 2024-01-31`"
    )


def test_doubtful_stored_days_are_a_lasting_warning(project: Project) -> None:
    wrong = Finding(
        check="integrity", rule="ohlc", severity=Severity.ERROR, count=1, message="1 candle is upside down."
    )
    for key in (KLINES, OTHER, TRADES):
        for number in (1, 2, 3):
            hold(project.layout, key, day(number), findings=(wrong,) if (key, number) == (OTHER, 3) else ())
    rows = Ledger.read(project.layout.ledger(KLINES)).rows
    put(project.layout, KLINES, replace(rows[day(1)], replaced_by="b", failure="checksum", reason="It differs."))
    put(project.layout, KLINES, replace(rows[day(2)], checksum="accepted"))

    metadata, checks = run(project)

    assert metadata["days stored"] == 9
    found = checks["doubtful_days"]
    assert (found.passed, found.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert "3 stored days of 2 series are in doubt" in (found.description or "")
    assert [(row["series"], row["day"], row["doubt"]) for row in table(found, "doubtful")] == [
        (str(OTHER), "2024-01-03", "the integrity check fails (1 candle is upside down.)"),
        (
            str(KLINES),
            "2024-01-02",
            "its archive does not match the published checksum, but a person accepted it",
        ),
        (str(KLINES), "2024-01-01", "another archive was published, but could not be used (checksum: It differs.)"),
    ]


@pytest.mark.parametrize(
    ("failure", "words"),
    [("absent", "universe refresh"), ("unpublished", "the next archive replaces it"), ("conflict", "quarantine show")],
)
def test_each_failure_has_a_way_out(failure: str, words: str) -> None:
    assert words in how_to_recover(TRADES, DayRecord(day=day(1), outcome=FAILED, failure=failure))


@pytest.mark.parametrize(("after", "overdue"), [(2, "2024-01-01"), (3, "")])
def test_days_provisional_for_too_long_are_reported(tmp_path: Path, after: int, overdue: str) -> None:
    project = Project(tmp_path, universe_of(UNIVERSE.partition("  - market: cm")[0]), provisional_days=after)
    for key in (KLINES, OTHER, TRADES):
        for number in (1, 2, 3):
            hold(project.layout, key, day(number), final=key is not KLINES)
    with project.instance:
        _, checks = run(project)
    found = checks["provisional_days"]
    assert found.passed is not bool(overdue)
    if overdue:
        assert found.severity is dg.AssetCheckSeverity.WARN
        assert f"1 days of 1 series have been provisional for more than {after} days" in (found.description or "")
        assert table(found, "overdue") == [{"series": str(KLINES), "days": 1, "spans": overdue}]


@pytest.mark.parametrize(
    ("verdicts", "severity"),
    [
        ((Verdict.OUTAGE, Verdict.HEALED), None),
        ((Verdict.OUTAGE, Verdict.UNPUBLISHED), "WARN"),
        ((Verdict.UNPUBLISHED, Verdict.ARCHIVE_DEFECT), "ERROR"),
    ],
)
def test_gaps_are_summed_and_as_grave_as_the_gravest(
    project: Project, verdicts: tuple[Verdict, ...], severity: str | None
) -> None:
    findings = [verdict_finding(Ground(verdict, f"of {verdict}"), "candles", 1200, ()) for verdict in verdicts]
    hold(project.layout, TRADES, day(1), findings=(findings[0],))
    hold(project.layout, KLINES, day(2), findings=(findings[1],))

    _, checks = run(project)

    found = checks["gaps"]
    assert found.passed is (severity is None)
    assert severity is None or found.severity.value == severity
    assert [found.metadata[verdict].value for verdict in verdicts] == [1200, 1200]
    gravest = table(found, "by series")[0]
    assert gravest["verdict"] == (verdicts[-1] if severity else "healed")
    assert gravest == {
        "series": str(KLINES), "verdict": str(verdicts[1]), "rows": 1200, "days": 1, "newest": "2024-01-02",
        "evidence there": gravest["evidence there"],
    }  # fmt: skip
    assert f"1,200 {verdicts[0]}" in (found.description or "")


def test_a_lost_ledger_does_not_look_like_missing_days(project: Project) -> None:
    for key in (KLINES, OTHER, TRADES):
        for number in (1, 2, 3):
            hold(project.layout, key, day(number))
    project.layout.ledger(KLINES).unlink()

    metadata, checks = run(project)

    assert (metadata["days stored"], metadata["days missing"]) == (9, 0)
    assert all(found.passed for found in checks.values())
    assert not project.layout.ledger(KLINES).exists()  # the series' next writer writes it


def test_calendar_picture_describes_itself(project: Project) -> None:
    for number in (1, 2, 3):
        hold(project.layout, KLINES, day(number), final=number != 3)
    metadata, _ = run(project)
    shown = re.fullmatch(r"!\[(.*)\]\(data:image/svg\+xml;base64,(.*)\)", metadata["calendar"])
    assert shown is not None
    assert shown[1] == "Calendar of 3 series, a square for each day: 2 final, 1 provisional, 6 missing"
    assert ET.fromstring(base64.b64decode(shown[2])).tag.endswith("svg")


def test_the_metadata_of_a_big_market_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "now", lambda: datetime(2025, 1, 4, 12, tzinfo=UTC))
    symbols = ", ".join(f"SYMBOL{n:03d}USDT" for n in range(300))
    text = f"collect: [{{market: um, symbols: [{symbols}], klines: {{intervals: [1h], from: 2024-01-01}}}}]"
    project = Project(tmp_path, universe_of(text))
    with project.instance:
        result = project.definitions.resolve_job_def("coverage").execute_in_process(instance=project.instance)
    [event] = result.get_asset_materialization_events()
    metadata = event.materialization.metadata
    assert len(str(metadata["calendar"].value)) <= 30_000
    assert "series are not in the picture" in str(metadata["calendar"].value)
    assert (
        len(serialize_value(event)) + sum(map(len, map(serialize_value, result.get_asset_check_evaluations()))) < 80_000
    )


@pytest.mark.parametrize(("first_key", "kind", "severity"), [(23, "gap", "WARN"), (19, "overlap", "ERROR")])
def test_a_midnight_that_is_not_crossed_is_shown(project: Project, first_key: int, kind: str, severity: str) -> None:
    before = hold(project.layout, TRADES, day(1))
    put(project.layout, TRADES, replace(hold(project.layout, TRADES, day(2)), first_key=first_key))
    assert before.last_key == 19

    _, checks = run(project)

    assert table(checks["continuity"], "midnights") == [
        {"series": str(TRADES), "day": "2024-01-02", "kind": kind, "expected": "20", "found": str(first_key)}
    ]
    assert checks["continuity"].severity.value == severity
    assert not checks["continuity"].passed


@pytest.mark.parametrize(("verdict", "passed"), [(Verdict.OUTAGE, True), (Verdict.UNEXPLAINED, False)])
def test_outage_over_midnight_explained_by_both_days_is_no_break(
    project: Project, verdict: Verdict, passed: bool
) -> None:
    hour, midnight = 3_600_000_000, clock.day_start_us(day(2))

    def lacks(first: int, last: int, verdict: Verdict) -> tuple[Finding, ...]:
        hours = Range(first=midnight + first * hour, last=midnight + last * hour, count=last - first + 1)
        return (verdict_finding(Ground(verdict, "REST was asked"), "candles", hours.count, (hours,)),)

    before = hold(project.layout, KLINES, day(1), findings=lacks(-2, -1, Verdict.OUTAGE))
    after = hold(project.layout, KLINES, day(2), findings=lacks(0, 2, verdict))
    put(project.layout, KLINES, replace(before, last_key=midnight - 3 * hour))
    put(project.layout, KLINES, replace(after, first_key=midnight + 3 * hour))

    _, checks = run(project)

    found = checks["continuity"]
    assert (found.passed, found.metadata["explained"].value) == (passed, int(passed))
    assert ("except 1 midnights that the checks of the adjacent days explain" in (found.description or "")) is passed
    assert ("midnights" in found.metadata) is not passed
