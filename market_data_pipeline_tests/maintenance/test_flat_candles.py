"""Flat candles of a market, judged over its ledgers: what SQL then says of them, and that it stays so."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import numpy as np
import pyarrow as pa
import pytest

from market_data_pipeline import clock
from market_data_pipeline.checks.ordering import key_ranges
from market_data_pipeline.checks.verdicts import MARKET_NOT_COMPARED, Ground, verdict_finding
from market_data_pipeline.defs.definitions import build_definitions
from market_data_pipeline.defs.in_process import materialize_coverage
from market_data_pipeline.lake import parquet, storage
from market_data_pipeline.lake.checksums import content_sha256
from market_data_pipeline.lake.ledger import Ledger, refresh_ledger
from market_data_pipeline.maintenance import flat_candles
from market_data_pipeline.maintenance.flat_candles import Classification, classify_flat_candles
from market_data_pipeline.model.day import record_of
from market_data_pipeline.model.findings import MAX_RANGES, Basis, Finding, Range, Severity, Verdict
from market_data_pipeline.model.series import Market, SeriesKey
from market_data_pipeline.sandbox import QuietSymbol
from market_data_pipeline.sql.publish import publish_catalog
from market_data_pipeline.universe import load_universe
from market_data_pipeline_tests.support.small_lake import SmallLake, day_table, days_from, series
from market_data_pipeline_tests.support.world import World, agg_trades, klines, utc

DAY = date(2024, 1, 1)
NOT_YET = Ground(Verdict.QUIET, MARKET_NOT_COMPARED, Basis.MARKET_NOT_COMPARED)
NEAR, AVAX, BTC = (series(f"{base}USDT", "1m", "um") for base in ("NEAR", "AVAX", "BTC"))


CONFIRMED = "REST has no trade there either"


@pytest.fixture
def lake(tmp_path: Path) -> SmallLake:
    return SmallLake(tmp_path / "data")


def hold(
    lake: SmallLake,
    key: SeriesKey,
    *flat: int,
    day: date = DAY,
    others: tuple[Finding, ...] = (),
    step: int = 1,
    confirmed: bool = True,
) -> None:
    """Put a day into the lake as ``ingest`` does, whose candles at these minutes, of ``step`` each, are flat.

    REST has confirmed them; else it was not asked yet.
    """
    table = day_table(key, day, version=1)
    is_flat = np.isin(step * np.arange(table.num_rows), flat)
    for name in ("volume", "count"):
        at = table.schema.get_field_index(name)
        values = np.where(is_flat, 0, table[name].to_numpy())
        table = table.set_column(at, table.schema.field(name), pa.chunked_array([values]))
    times = clock.day_start_us(day) + 60_000_000 * np.array(sorted(flat), dtype=np.int64)
    found = verdict_finding(NOT_YET, "candles", len(flat), key_ranges(times, step * 60_000_000))
    if flat and confirmed:
        span = (Range(first=int(times[0]), last=int(times[-1]), count=len(flat)),)
        told = Finding(
            check="integrity", rule="flat_confirmed", severity=Severity.INFO, count=len(flat), message="", ranges=span
        )
        others = (*others, told)
    lake.put(key, [day], version=1)
    path = lake.layout.file(key, day)
    record = parquet.read_provenance(path).model_copy(
        update={
            "findings": (*others, found) if flat else others,
            "content_sha256": content_sha256(table),
            "first_key": clock.day_start_us(day),
            "last_key": clock.day_start_us(day) + 1439 * 60_000_000,
        }
    )
    lake.note(key, record_of(record, parquet.write_table(path, table, record)))


def told(lake: SmallLake, key: SeriesKey) -> list[Finding]:
    """What the gaps check found on the day."""
    return [one for one in Ledger.read(lake.layout.ledger(key)).rows[DAY].findings_list() if one.check == "gaps"]


def gaps(lake: SmallLake, key: SeriesKey) -> list[tuple[str, str | None, int]]:
    """Verdict, first minute and number of candles of each range, from SQL."""
    with duckdb.connect(str(publish_catalog(lake.layout)), read_only=True) as connection:
        rows: list[tuple[str, str | None, int]] = connection.execute(
            "SELECT verdict, strftime(first, '%H:%M'), count FROM quality.gaps WHERE symbol = ? ORDER BY first",
            [key.symbol],
        ).fetchall()
    return rows


def test_outage_of_all_symbols_is_suspended_and_one_is_quiet(lake: SmallLake) -> None:
    """A flat candle of a single symbol is quiet."""
    hold(lake, NEAR, *range(514, 533), 7)
    hold(lake, AVAX, *range(514, 533))
    hold(lake, series("NEARUSDT", "1m", "spot"))

    assert classify_flat_candles(lake.layout, Market.UM) == Classification(2, ())

    assert gaps(lake, AVAX) == [("suspended", "08:34", 19)]
    assert gaps(lake, NEAR) == [("quiet", "00:07", 1), ("suspended", "08:34", 19)]
    row = Ledger.read(lake.layout.ledger(NEAR)).rows[DAY]
    assert (row.verdicts, row.quiet, row.gaps) == ("suspended+quiet", 20, "info")


def test_an_outage_that_rest_has_not_confirmed_is_not_explained(lake: SmallLake) -> None:
    hold(lake, NEAR, 514, 515, confirmed=False)
    hold(lake, AVAX, 514, 515)
    assert classify_flat_candles(lake.layout, Market.UM).days == 2
    assert gaps(lake, NEAR) == [("unconfirmed", "08:34", 2)]
    assert gaps(lake, AVAX) == [("suspended", "08:34", 2)]
    row = Ledger.read(lake.layout.ledger(NEAR)).rows[DAY]
    assert (row.gaps, row.attempts, row.open) == ("warn", 0, True)


@pytest.mark.parametrize("remembered", ["as it was", "lost", "damaged"])
def test_a_second_time_changes_nothing(lake: SmallLake, remembered: str) -> None:
    hold(lake, NEAR, 1, 2, 5)
    hold(lake, AVAX, 2)
    classify_flat_candles(lake.layout, Market.UM)
    before = storage.head(lake.layout.ledger(NEAR))
    if remembered == "lost":
        lake.layout.classified(Market.UM).unlink()
    elif remembered == "damaged":
        lake.layout.classified(Market.UM).write_bytes(b"\xff{")
    assert classify_flat_candles(lake.layout, Market.UM) == Classification(0, ())
    assert storage.head(lake.layout.ledger(NEAR)) == before


def test_leftovers_of_a_killed_writer_are_removed_by_the_next(lake: SmallLake) -> None:
    left = lake.layout.classified(Market.UM).with_name(".um.json.1-aa.tmp")
    of_another = left.with_name(".spot.json.1-aa.tmp")
    left.parent.mkdir(parents=True)
    for path in (left, of_another):
        path.write_bytes(b"half")
    hold(lake, NEAR, 1, 2)
    classify_flat_candles(lake.layout, Market.UM)
    assert (left.exists(), of_another.exists()) == (False, True)


def test_concurrent_classifications_lose_no_result(lake: SmallLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each reads what is known before it judges, and writes afterwards."""
    known = lake.layout.classified(Market.UM)
    other = "1h 2024-05-01 asked"
    classify_days = flat_candles._classify_days

    def meanwhile(*args: Any) -> Any:
        storage.put(known, json.dumps({other: 1}).encode())
        return classify_days(*args)

    monkeypatch.setattr(flat_candles, "_classify_days", meanwhile)
    hold(lake, NEAR, 1, 2)
    classify_flat_candles(lake.layout, Market.UM)
    assert json.loads(known.read_bytes()).keys() == {other, flat_candles._record_name("1m", DAY)}


def test_days_are_classified_again_if_no_record_was_written(lake: SmallLake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flat_candles, "_REMEMBER_WAIT_SECONDS", 0)
    known = lake.layout.classified(Market.UM)
    hold(lake, NEAR, 1, 2)
    with storage.only_writer(known.with_suffix(".lock"), 1, "another"):
        assert classify_flat_candles(lake.layout, Market.UM).days == 1
    assert not known.exists()
    assert classify_flat_candles(lake.layout, Market.UM).days == 0
    assert known.exists()


def test_a_symbol_that_comes_later_changes_the_verdict(lake: SmallLake) -> None:
    hold(lake, NEAR, 1, 2)
    classify_flat_candles(lake.layout, Market.UM)
    assert gaps(lake, NEAR) == [("quiet", "00:01", 2)]
    hold(lake, AVAX, 1, 2)
    classify_flat_candles(lake.layout, Market.UM)
    assert gaps(lake, NEAR) == [("suspended", "00:01", 2)]
    hold(lake, BTC)
    classify_flat_candles(lake.layout, Market.UM)
    assert gaps(lake, NEAR) == [("quiet", "00:01", 2)]


FIVE, TRADES = series("BTCUSDT", "5m", "um"), series("BTCUSDT", None, "um")
BY_MINUTES = tuple(range(600, 620))


def test_symbol_traded_in_another_interval_refutes_a_suspension(lake: SmallLake) -> None:
    for key in (NEAR, AVAX):
        hold(lake, key, *BY_MINUTES)
    classify_flat_candles(lake.layout, Market.UM)
    assert gaps(lake, NEAR) == [("suspended", "10:00", 20)]
    hold(lake, FIVE)
    assert classify_flat_candles(lake.layout, Market.UM).days == 2
    assert gaps(lake, NEAR) == [("quiet", "10:00", 20)]
    (found,) = told(lake, NEAR)
    assert found.evidence == "1 of 2 other stored symbols traded meanwhile, e.g. BTCUSDT"
    assert classify_flat_candles(lake.layout, Market.UM).days == 0


def test_candle_of_another_interval_is_evidence_for_its_own_time(lake: SmallLake) -> None:
    for key in (NEAR, AVAX):
        hold(lake, key, *range(602, 618))
    hold_five(lake, flat=(121, 122))  # 10:05 and 10:10; those at 10:00 and 10:15 traded, perhaps outside the outage
    classify_flat_candles(lake.layout, Market.UM)
    assert gaps(lake, NEAR) == [("suspended", "10:02", 16)]
    hold_five(lake, flat=(121,))
    classify_flat_candles(lake.layout, Market.UM)
    assert gaps(lake, NEAR) == [("suspended", "10:02", 8), ("quiet", "10:10", 5), ("suspended", "10:15", 3)]


def hold_five(lake: SmallLake, flat: tuple[int, ...]) -> None:
    times = clock.day_start_us(DAY) + 300_000_000 * np.array(flat, dtype=np.int64)
    found = verdict_finding(NOT_YET, "candles", len(flat), key_ranges(times, 300_000_000))
    hold(lake, FIVE, others=(found,))


def test_shorter_intervals_of_another_symbol_classify_candles(lake: SmallLake) -> None:
    hour = series("NEARUSDT", "1h", "um")
    hold(lake, hour, *(60 * n for n in (3, 10)), step=60)
    hold(lake, AVAX, *range(180, 240), 600)
    classify_flat_candles(lake.layout, Market.UM)
    assert gaps(lake, hour) == [("suspended", "03:00", 1), ("quiet", "10:00", 1)]


@pytest.mark.parametrize("held_as_well", [True, False])
def test_trades_of_another_symbol_show_if_the_market_halted(lake: SmallLake, held_as_well: bool) -> None:
    # Trades come every 864 s: in minute 604 (10:04:48), none before 10:19:12.
    hold(lake, NEAR, *range(602, 619))
    if held_as_well:
        hold(lake, AVAX, *range(602, 619))
    lake.put(TRADES, [DAY])
    classify_flat_candles(lake.layout, Market.UM)
    assert gaps(lake, NEAR) == [("suspended", "10:02", 2), ("quiet", "10:04", 1), ("suspended", "10:05", 14)]
    evidence = {one.rule: one.evidence for one in told(lake, NEAR)}
    number, names = ("2", "AVAXUSDT, BTCUSDT") if held_as_well else ("1", "BTCUSDT")
    assert evidence == {
        "suspended": f"every other stored symbol was flat or missing, too ({number}: {names}); {CONFIRMED}",
        "quiet": f"1 of {number} other stored symbols traded meanwhile, e.g. BTCUSDT",
    }


def test_symbol_traded_in_a_pause_shows_in_candles_and_trades(
    world: World,
) -> None:
    """The symbols of the same interval paused."""
    day = date(2026, 3, 3)
    quiet = [klines(symbol, "1m", "um") for symbol in ("ETHUSDT", "SOLUSDT")]
    world.sandbox.faults.add(
        QuietSymbol(start=utc(f"{day}T10:00"), end=utc(f"{day}T10:20"), series="^binance/um/.*/(ETH|SOL)USDT")
    )
    for key in quiet:
        world.ingest(key, [day])
    ten = clock.to_us(utc(f"{day}T10:00"))

    def at_ten() -> list[tuple[str, str]]:
        classify_flat_candles(world.layout, Market.UM)
        findings = [f for key in quiet for f in world.ledger(key).rows[day].findings_list()]
        return [(f.rule, f.evidence) for f in findings if any(r.first <= ten <= r.last for r in f.ranges)]

    assert [rule for rule, _ in at_ten()] == ["unconfirmed", "unconfirmed"], "nothing else is known yet"
    for witness in (klines("BTCUSDT", "5m", "um"), agg_trades("BTCUSDT", "um")):
        world.ingest(witness, [day])
        told = at_ten()
        assert [rule for rule, _ in told] == ["quiet", "quiet"]
        assert all("traded meanwhile" in evidence and "BTCUSDT" in evidence for _, evidence in told)
        world.layout.folder(witness).rename(world.root / f"away {witness.data_type}")
        world.layout.ledger(witness).unlink()
        assert [rule for rule, _ in at_ten()] == ["unconfirmed", "unconfirmed"]


def test_incomplete_trades_do_not_confirm_a_halt(lake: SmallLake) -> None:
    hold(lake, NEAR, 602, 604)
    lacking = verdict_finding(Ground(Verdict.UNPUBLISHED, "REST was not asked"), "aggregated trades", 3, ())
    lake.put(TRADES, [DAY], findings=(lacking,))
    classify_flat_candles(lake.layout, Market.UM)
    assert gaps(lake, NEAR) == [("quiet", "10:02", 1), ("quiet", "10:04", 1)]


def test_own_trades_show_a_defect_and_own_intervals_do_not_count(lake: SmallLake) -> None:
    """Other intervals of the symbol are no independent evidence."""
    btc = series("BTCUSDT", "1m", "um")
    hold(lake, btc, *BY_MINUTES)
    hold(lake, FIVE)
    classify_flat_candles(lake.layout, Market.UM)
    alone = "unconfirmed: no other series of um is stored for this time"
    assert [one.evidence for one in told(lake, btc)] == [f"{alone}; {CONFIRMED}"]
    lake.put(TRADES, [DAY])
    classify_flat_candles(lake.layout, Market.UM)
    assert {one.rule for one in told(lake, btc)} == {"archive_defect", "quiet"}


def test_trades_are_not_read_if_candles_decide(lake: SmallLake, monkeypatch: pytest.MonkeyPatch) -> None:
    hold(lake, NEAR, 602)
    hold(lake, AVAX)
    lake.put(TRADES, [DAY])
    read: list[Path] = []
    table = parquet.read_table

    def noted(path: Path, columns: list[str] | None = None) -> pa.Table:
        read.append(path)
        return table(path, columns)

    monkeypatch.setattr(parquet, "read_table", noted)
    classify_flat_candles(lake.layout, Market.UM)
    assert lake.layout.ledger(TRADES) in read
    assert lake.layout.file(TRADES, DAY) not in read
    assert gaps(lake, NEAR) == [("quiet", "10:02", 1)]


def test_ranges_beyond_those_in_a_finding_use_the_rows(lake: SmallLake) -> None:
    every_second = range(0, 4 * MAX_RANGES, 2)
    hold(lake, NEAR, *every_second)
    hold(lake, AVAX, *every_second)
    hold(lake, BTC, *every_second, 901)
    assert classify_flat_candles(lake.layout, Market.UM).days == 3
    assert gaps(lake, NEAR)[-1] == ("suspended", None, len(every_second) - MAX_RANGES)
    assert gaps(lake, BTC)[-2:] == [("quiet", "15:01", 1), ("suspended", None, len(every_second) - MAX_RANGES)]
    lake.layout.classified(Market.UM).unlink()
    assert classify_flat_candles(lake.layout, Market.UM).days == 0


def test_a_verdict_that_was_lost_with_its_ledger_comes_back(lake: SmallLake) -> None:
    hold(lake, NEAR, 5)
    hold(lake, AVAX, 5)
    classify_flat_candles(lake.layout, Market.UM)
    ledger = Ledger()
    refresh_ledger(ledger, lake.layout, NEAR)
    ledger.write(lake.layout.ledger(NEAR))
    assert gaps(lake, NEAR) == [("quiet", "00:05", 1)]
    classify_flat_candles(lake.layout, Market.UM)
    assert gaps(lake, NEAR) == [("suspended", "00:05", 1)]


def test_other_findings_of_the_day_stay(lake: SmallLake) -> None:
    outage = verdict_finding(Ground(Verdict.OUTAGE, "REST has no candle either"), "candles", 3, ())
    hold(lake, NEAR, 5, others=(outage,))
    classify_flat_candles(lake.layout, Market.UM)
    row = Ledger.read(lake.layout.ledger(NEAR)).rows[DAY]
    assert row.findings_list()[0] == outage
    assert row.verdicts == "outage+quiet"


def test_series_written_by_another_run_waits_for_the_next_time(lake: SmallLake) -> None:
    hold(lake, NEAR, 5)
    hold(lake, AVAX, 5)
    with storage.only_writer(lake.layout.lock(NEAR), 0, "test"):
        assert classify_flat_candles(lake.layout, Market.UM) == Classification(1, (NEAR,))
    assert gaps(lake, AVAX) == [("suspended", "00:05", 1)]
    assert classify_flat_candles(lake.layout, Market.UM) == Classification(1, ())
    assert gaps(lake, NEAR) == [("suspended", "00:05", 1)]


def test_days_of_a_lost_or_older_ledger_are_passed_over(lake: SmallLake) -> None:
    hold(lake, NEAR, 5)
    hold(lake, AVAX, 5)
    hold(lake, BTC)
    ledger = lake.layout.ledger(AVAX)
    parquet.write_table(ledger, parquet.read_table(ledger).drop_columns(["verdicts"]))
    lake.layout.ledger(BTC).unlink()
    assert classify_flat_candles(lake.layout, Market.UM) == Classification(1, ())
    assert gaps(lake, NEAR) == [("quiet", "00:05", 1)]


def test_recorded_flat_um_minutes_are_classified_by_coverage(recorded: World) -> None:
    near, avax = klines("NEARUSDT", "1m", "um"), klines("AVAXUSDT", "1m", "um")
    for key in (near, avax):
        recorded.ingest(key, days_from("2023-09-01", 30))
    universe = recorded.root / "universe.yaml"
    universe.write_text(
        "collect: [{market: um, symbols: [NEARUSDT, AVAXUSDT], klines: {intervals: [1m], from: 2023-09-01}}]"
    )

    definitions = build_definitions(recorded.settings, load_universe(universe))
    with dg.DagsterInstance.ephemeral() as instance:
        runs = [materialize_coverage(instance, definitions, [Market.UM]) for _ in range(2)]

    events = [event for run in runs for event in run.get_asset_materialization_events()]
    assert [event.materialization.metadata["days classified again"].value for event in events] == [30, 0]

    with duckdb.connect(str(publish_catalog(recorded.layout)), read_only=True) as connection:
        sums = connection.execute("SELECT symbol, verdict, sum(count) FROM quality.gaps GROUP BY ALL ORDER BY ALL")
        assert sums.fetchall() == [
            ("AVAXUSDT", "quiet", 3),
            ("AVAXUSDT", "suspended", 19),
            ("NEARUSDT", "quiet", 125),
            ("NEARUSDT", "suspended", 19),
        ]
        suspended = connection.execute(
            "SELECT symbol, strftime(first, '%Y-%m-%dT%H:%M'), strftime(last, '%H:%M'), evidence FROM quality.gaps "
            "WHERE verdict = 'suspended' ORDER BY symbol"
        )
        evidence = "every other stored symbol was flat or missing, too (1: {}); " + CONFIRMED
        assert suspended.fetchall() == [
            ("AVAXUSDT", "2023-09-12T08:34", "08:52", evidence.format("NEARUSDT")),
            ("NEARUSDT", "2023-09-12T08:34", "08:52", evidence.format("AVAXUSDT")),
        ]
