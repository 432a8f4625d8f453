"""Stored days that are incomplete or fail their checks: every door says so, with an exit code of its own."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date

import pytest

from market_data_pipeline.defs.in_process import run_ingest
from market_data_pipeline.lake import parquet
from market_data_pipeline.lake.ledger import Ledger
from market_data_pipeline.maintenance.due import changed_profiles
from market_data_pipeline.model.findings import Finding, Severity, to_json
from market_data_pipeline.model.lineage import profile_of
from market_data_pipeline.model.needs import profile_is_due
from market_data_pipeline.sandbox import ChangedRows, MissingChecksum, MissingRows, Status
from market_data_pipeline.universe import Universe, load_universe
from market_data_pipeline_tests.support.shell import MarketData, shell
from market_data_pipeline_tests.support.world import World, agg_trades, klines, utc

UNIVERSE = """\
collect:
  - market: spot
    symbols: [SOLUSDT]
    klines: {intervals: [1h], from: 2026-02-25}
    aggTrades: {from: 2026-02-25}
"""
LOCK = "spot:\n  SOLUSDT: [{from: 2020-08-11, until: null}]\n"
CANDLES, TRADES = klines("SOLUSDT", "1h"), agg_trades("SOLUSDT")
BACKFILL = ("backfill", "--interval", "1h", "--from", "2026-03-01", "--through", "2026-03-03")
BAD = date(2026, 3, 2)
BEGIN, END = utc(f"{BAD}T05:00"), utc(f"{BAD}T08:00")


@pytest.fixture
def market_data(world: World, monkeypatch: pytest.MonkeyPatch) -> MarketData:
    """Run the command in a world of its own: today is 2026-03-05."""
    return shell(world, monkeypatch, UNIVERSE, LOCK)


def break_rows(world: World, column: str = "low") -> None:
    """Let rows contradict themselves, in the archive and over REST."""
    for _ in range(30):  # by 1 each
        world.sandbox.faults.add(ChangedRows(series="SOLUSDT", start=BEGIN, end=END, column=column))


def lack_candles(world: World) -> None:
    """Let the archive have no candles for three hours while REST refuses this address."""
    world.sandbox.faults.add(MissingRows(series="klines", start=BEGIN, end=END, where="archive"))
    world.sandbox.faults.add(Status(path="/api/v3/", status=451))


def test_day_whose_rows_fail_is_not_all_there(world: World, market_data: MarketData) -> None:
    break_rows(world)
    for _ in range(2):  # the second run stores nothing, and must not say otherwise
        result = market_data(*BACKFILL)
        assert result.exit_code == 3
        assert "1 day incomplete: 3 candles price_range" in result.stderr
        assert f"{CANDLES} {BAD}: 3 candles price_range" in result.stderr
        assert "3 days of 1 series: all fetched, 1 of them incomplete." in result.stderr
        assert "all there" not in result.stderr
        assert "final_only=True" in result.stderr, "the remedy"


def test_missing_candles_that_nothing_explains_are_counted(world: World, market_data: MarketData) -> None:
    lack_candles(world)
    for _ in range(2):
        result = market_data(*BACKFILL)
        assert (result.exit_code, "1 day incomplete: 3 candles unpublished" in result.stderr) == (3, True)
    world.sandbox.faults.clear()
    world.at("2026-03-05T14:00:00")
    result = market_data(*BACKFILL)
    assert (result.exit_code, "3 days of 1 series: all there." in result.stderr) == (0, True)


def test_candles_that_contradict_trades_are_unexplained(world: World, market_data: MarketData) -> None:
    assert market_data("backfill", "--data-type", "aggTrades", *BACKFILL[3:]).exit_code == 0
    world.sandbox.faults.add(MissingRows(series="klines", start=BEGIN, end=END))
    result = market_data(*BACKFILL)
    assert result.exit_code == 3
    assert "1 day incomplete: 3 candles unexplained" in result.stderr
    assert "FROM quality.gaps WHERE verdict = 'unexplained'" in result.stderr


def test_days_are_grouped_by_kind_and_named_up_to_a_limit(world: World, market_data: MarketData) -> None:
    start, end = utc("2026-02-01T05:00"), utc("2026-03-01T06:00")
    for _ in range(30):
        world.sandbox.faults.add(ChangedRows(series="SOLUSDT", start=start, end=end, column="low"))
    world.sandbox.faults.add(MissingRows(series="klines", start=BEGIN, end=END, where="archive"))
    world.sandbox.faults.add(Status(path="/api/v3/", status=451))
    path = world.root / "universe.yaml"
    path.write_text(UNIVERSE.replace("2026-02-25", "2026-01-30"))
    result = market_data("backfill", "--interval", "1h", "--through", "2026-03-03")
    assert result.exit_code == 3
    assert "30 days incomplete: 673 candles price_range, 3 candles unpublished." in result.stderr
    assert "and 10 more" in result.stderr
    assert result.stderr.count(f"{CANDLES} 2026") == 20


def test_failures_go_before_incomplete_days(world: World, market_data: MarketData) -> None:
    break_rows(world)
    world.sandbox.faults.add(Status(path="1h-2026-03-01.zip", status=503))
    result = market_data(*BACKFILL)
    assert result.exit_code == 1
    assert "1 day incomplete" in result.stderr
    assert "1 day failed" in result.stderr


def test_checks_that_only_warn_pass_with_a_note(world: World, market_data: MarketData) -> None:
    world.sandbox.faults.add(MissingChecksum(series="1h", days=[BAD]))
    result = market_data(*BACKFILL)
    assert result.exit_code == 0
    assert "Note: checks warn of checksum_missing on 1 day" in result.stderr
    assert "all there" in result.stderr


def test_add_and_sync_end_with_the_same_code(world: World, market_data: MarketData) -> None:
    break_rows(world, "first_trade_id")
    added = market_data("add", "SOLUSDT", "aggTrades", "--through", "2026-03-03")
    assert (added.exit_code, "trades trade_ids" in added.stderr) == (3, True)
    synced = market_data("sync")
    assert (synced.exit_code, "1 day incomplete" in synced.stderr) == (3, True)


def test_status_and_sql_count_such_days(world: World, market_data: MarketData) -> None:
    break_rows(world)
    market_data(*BACKFILL)
    told = json.loads(market_data("status", "--json").stdout)
    assert [(one["series"], one["incomplete"], one["held"]) for one in told if one["held"]] == [(str(CANDLES), 1, 3)]
    table = market_data("status").stdout
    assert "incompl." in table
    assert "1 day incomplete" in table
    found = market_data("sql", "--csv", "SELECT day, state FROM quality.coverage WHERE state = 'faulty'")
    assert found.stdout.splitlines()[1:] == [f"{BAD},faulty"]
    assert "faulty" in market_data("coverage").stdout


def test_report_of_python_knows_them(world: World, market_data: MarketData) -> None:
    break_rows(world)
    market_data(*BACKFILL)
    settings = world.settings.model_copy(update={"universe": world.root / "universe.yaml"})
    report = run_ingest(settings, {CANDLES: [date(2026, 3, 1), BAD]})
    assert {key: [row.day for row in rows] for key, rows in report.incomplete.items()} == {CANDLES: [BAD]}
    assert not report.failures


def test_refused_replacement_is_not_all_there(world: World, market_data: MarketData) -> None:
    """The stored rows stay, and the day's integrity check fails: so does every further run."""
    assert market_data(*BACKFILL).exit_code == 0
    ledger = Ledger.read(world.layout.ledger(CANDLES))
    row = ledger.rows[BAD]
    ledger.put(replace(row, replaced_by='"other"', attempts=1, failure="checksum", reason="It does not match."))
    ledger.write(world.layout.ledger(CANDLES))
    result = market_data(*BACKFILL)
    assert (result.exit_code, "checksum (It does not match.)" in result.stderr) == (3, True)


# --- derived data ------------------------------------------------------------------------------------------------

PROFILE = profile_of(TRADES)


def profile_marks(world: World) -> dict[date, list[str]]:
    """Rules of failing integrity findings, by day: as the ledger of the tradeProfile has them, and the footers."""
    rows = world.ledger(PROFILE).rows
    for day, row in rows.items():
        if row.outcome == "held":
            assert parquet.read_provenance(world.layout.file(PROFILE, day)).findings == row.findings_list()
    return {day: [f.rule for f in row.findings_list()] for day, row in rows.items() if row.integrity == "error"}


def test_profile_of_faulty_trades_is_marked_until_repaired(world: World, market_data: MarketData) -> None:
    break_rows(world, "first_trade_id")
    (world.root / "universe.yaml").write_text(UNIVERSE.replace("2026-02-25", "2026-03-01"))
    assert market_data("sync").exit_code == 3
    assert profile_marks(world) == {BAD: ["source"]}
    told = "SELECT state FROM quality.coverage WHERE data_type = 'tradeProfile' AND integrity = 'error'"
    assert market_data("sql", "--csv", told).stdout.splitlines()[1:] == ["faulty"]

    world.sandbox.faults.clear()
    world.layout.file(TRADES, BAD).unlink()
    world.at("2026-03-05T15:00:00")
    assert market_data("sync").exit_code == 0
    assert profile_marks(world) == {}


def test_mark_follows_the_checks_though_the_rows_stay(world: World, market_data: MarketData) -> None:
    """A profile that an earlier version made has no mark; it is made again once, and not once more."""
    (world.root / "universe.yaml").write_text(UNIVERSE.replace("2026-02-25", "2026-03-01"))
    assert market_data("sync").exit_code == 0
    ledger = world.ledger(TRADES)
    whole = ledger.rows[BAD]
    gap = Finding(check="gaps", rule="unexplained", severity=Severity.ERROR, count=7, message="Ids are missing.")
    ledger.put(replace(whole, gaps="error", verdicts="unexplained", findings=to_json([gap])))
    ledger.write(world.layout.ledger(TRADES))
    assert profile_is_due(ledger.rows[BAD], world.ledger(PROFILE).rows[BAD])
    assert market_data("sync").exit_code == 3
    row = world.ledger(PROFILE).rows[BAD]
    assert profile_marks(world) == {BAD: ["source"]}
    assert "7 rows unexplained" in row.findings_list()[0].message
    assert not profile_is_due(ledger.rows[BAD], row)
    ledger.put(whole)
    ledger.write(world.layout.ledger(TRADES))
    assert profile_is_due(whole, row)
    at = utc("2026-03-05T14:00:00")
    [(day, keys)] = [
        (day, keys)
        for day, keys in changed_profiles(at.date(), 1, universe_of_world(world), world.layout)
        if day == BAD
    ]
    assert (day, keys) == (BAD, [PROFILE])


def universe_of_world(world: World) -> Universe:
    return load_universe(world.root / "universe.yaml")
