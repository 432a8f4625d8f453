"""``market-data quarantine``: what somebody at a shell sees of refused files, and can do about them."""

from __future__ import annotations

import io
import json
import re
import zipfile
from datetime import date

import pytest

from market_data_pipeline import clock
from market_data_pipeline.lake import quarantine
from market_data_pipeline.model.day import FAILED, HELD, DayRecord, OtherArchive, after
from market_data_pipeline.model.outcomes import DayFailure, DayOutcome
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.sandbox import (
    ChangedRows,
    Damage,
    DamagedArchive,
    MissingRows,
    ReplacedArchive,
    WrongChecksum,
)
from market_data_pipeline_tests.support.shell import MarketData, shell
from market_data_pipeline_tests.support.world import World, agg_trades, days, klines, utc

BTC = klines("BTCUSDT", "1h")
TRADES = agg_trades("ETHUSDT", "um")
DAY = date(2026, 2, 4)
WRONG = WrongChecksum(path=r"BTCUSDT-1h-2026-02-04\.zip")

UNIVERSE = """\
collect:
  - market: spot
    symbols: [BTCUSDT]
    klines: {intervals: [1h], from: 2026-01-01}
  - market: um
    symbols: [ETHUSDT]
    aggTrades: {from: 2026-02-01}
"""
LOCK = """\
spot:
  BTCUSDT: [{from: 2017-08-17, until: null}]
um:
  ETHUSDT: [{from: 2019-11-27, until: null}]
"""


@pytest.fixture
def market_data(world: World, monkeypatch: pytest.MonkeyPatch) -> MarketData:
    """Run the command in a world of its own: today is 2026-03-05."""
    monkeypatch.setenv("LOGNAME", "somebody")
    return shell(world, monkeypatch, UNIVERSE, LOCK)


def bring(world: World, key: SeriesKey = BTC) -> DayOutcome | DayFailure:
    """Bring the day as a run does."""
    return world.one(key, str(DAY))


def row(world: World, key: SeriesKey = BTC, day: date = DAY) -> DayRecord:
    found = world.ledger(key).get(day)
    assert found is not None
    return found


def test_nothing_in_quarantine(market_data: MarketData) -> None:
    listed = market_data("quarantine", "list")
    assert (listed.exit_code, listed.stdout) == (0, "")
    assert "Nothing is in quarantine" in listed.stderr
    assert json.loads(market_data("quarantine", "list", "--json").stdout) == []
    for command in (["show", "x"], ["accept", "x"], ["retry", "x"], ["retry"]):
        result = market_data("quarantine", *command)
        assert result.exit_code == 2
        assert "Nothing is in quarantine." in result.stderr
    assert market_data("quarantine", "retry", "--all").exit_code == 0


def test_refused_file_is_listed_and_shown_with_all_its_facts(world: World, market_data: MarketData) -> None:
    world.sandbox.faults.add(WRONG)
    assert isinstance(bring(world), DayFailure)
    (entry,) = quarantine.entries(world.layout)
    listed = market_data("quarantine", "list").stdout.splitlines()
    size = f"{entry.size / 1000:.1f} kB"
    (line,) = listed[1:]
    assert re.split(" {2,}", line.strip()) == [
        *(entry.sha256[:12], "spot/klines/BTCUSDT/1h", "2026-02-04", "checksum", "2026-03-05 12:00", size, "no")
    ]
    (shown_as_json,) = json.loads(market_data("quarantine", "list", "--json").stdout)
    assert shown_as_json["name"] == entry.name
    assert shown_as_json["sha256"] == entry.sha256
    assert shown_as_json["published_sha256"] == entry.published_sha256 != entry.sha256
    for name in (entry.name, "BTCUSDT-1h-2026-02-04.zip", entry.sha256[:12]):
        said = market_data("quarantine", "show", name)
        assert said.exit_code == 0
    assert entry.reason in said.stdout
    assert f"published  {entry.published_sha256}" in said.stdout
    assert f"sha256     {entry.sha256}" in said.stdout
    assert "held       no" in said.stdout
    assert "BTCUSDT-1h-2026-02-04.csv; 24 rows, which read as what they should be" in said.stdout
    first = f"{int(utc('2026-02-04T00:00').timestamp())}000000,"
    assert sum(line.startswith("  1770") for line in said.stdout.splitlines()) == 5
    assert f"  {first}" in said.stdout
    unknown = market_data("quarantine", "show", "BTCUSDT-1h-2026-02-05")
    assert unknown.exit_code == 2
    assert f"There are: {entry.sha256[:12]} (spot/klines/BTCUSDT/1h 2026-02-04)." in unknown.stderr


@pytest.mark.parametrize("damage", [Damage.NOT_A_ZIP, Damage.TWO_FILES, Damage.EXTRA_COLUMN, Damage.OTHER_DAY])
def test_a_file_that_cannot_be_read_is_shown_and_never_accepted(
    world: World, market_data: MarketData, damage: Damage
) -> None:
    world.sandbox.faults.add(DamagedArchive(days=(DAY,), damage=damage))
    assert isinstance(bring(world), DayFailure)
    (entry,) = quarantine.entries(world.layout)
    said = market_data("quarantine", "show", entry.name).stdout
    assert "as malformed" in said
    assert "cannot be read as what it should be: " in said
    assert {
        Damage.NOT_A_ZIP: "b'<html><body>",
        Damage.TWO_FILES: "BTCUSDT-1h-2026-02-04.csv, copy-of-BTCUSDT-1h-2026-02-04.csv",
        Damage.EXTRA_COLUMN: ",0,0\n",
        Damage.OTHER_DAY: "rows of other days",
    }[damage] in said
    refused = market_data("quarantine", "accept", entry.name, "--yes")
    assert refused.exit_code == 2
    assert "it was refused as malformed, and only a wrong checksum can be accepted" in refused.stderr
    assert row(world).outcome == FAILED


def test_a_wrong_checksum_of_an_unreadable_file_is_not_accepted(world: World, market_data: MarketData) -> None:
    world.sandbox.faults.add(WRONG)
    world.sandbox.faults.add(DamagedArchive(days=(DAY,), damage=Damage.CONFLICTING_DUPLICATES))
    assert isinstance(bring(world), DayFailure)
    refused = market_data("quarantine", "accept", "BTCUSDT-1h-2026-02-04", "--yes")
    assert refused.exit_code == 2
    assert "cannot be accepted: two different rows have the key" in refused.stderr
    (entry,) = quarantine.entries(world.layout)
    assert entry.accepted is None


def test_a_broken_zip_of_another_kind_is_shown_and_not_accepted(world: World, market_data: MarketData) -> None:
    packed, name = io.BytesIO(), f"BTCUSDT-1h-{DAY}.csv"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_LZMA) as file:
        file.writestr(name, ",".join("0123456789") * 20)
    data = bytearray(packed.getvalue())
    data[30 + len(name) + 4] ^= 0xFF  # how it is compressed, behind the version and the length of what says so
    quarantine.store(
        world.layout, BTC, BTC.archive_daily(DAY), bytes(data), kind="checksum", reason="other", day=DAY, at=clock.now()
    )
    shown = market_data("quarantine", "show", name.removesuffix(".csv"))
    assert shown.exit_code == 0
    assert "is compressed by method 14, which no archive uses" in " ".join(shown.stdout.split())
    assert market_data("quarantine", "accept", name.removesuffix(".csv"), "--yes").exit_code == 2


def test_zip_with_a_flipped_bit_is_shown_as_broken(world: World, market_data: MarketData) -> None:
    """It cannot be accepted."""
    packed, name = io.BytesIO(), f"BTCUSDT-1h-{DAY}.csv"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(name, ",".join("0123456789") * 20)
    data = bytearray(packed.getvalue())
    data[30 + len(name)] ^= 0b110  # how the first block is compressed, as its first byte behind the file's name says
    quarantine.store(
        world.layout, BTC, BTC.archive_daily(DAY), bytes(data), kind="checksum", reason="other", day=DAY, at=clock.now()
    )
    shown = market_data("quarantine", "show", name.removesuffix(".csv"))
    assert shown.exit_code == 0
    assert f"cannot be read as what it should be: The zip of BTCUSDT-1h-{DAY} is broken" in shown.stdout
    assert r"b'PK\x03\x04" in shown.stdout
    refused = market_data("quarantine", "accept", name.removesuffix(".csv"), "--yes")
    assert refused.exit_code == 2
    assert f"cannot be accepted: The zip of BTCUSDT-1h-{DAY} is broken" in refused.stderr


def test_retry_fetches_a_repaired_day_and_releases_its_file(world: World, market_data: MarketData) -> None:
    world.sandbox.faults.add(WRONG)
    assert isinstance(bring(world), DayFailure)
    still = market_data("quarantine", "retry", "--all")
    assert still.exit_code == 1
    assert "1 day failed" in still.stderr
    (entry,) = quarantine.entries(world.layout)
    world.sandbox.faults.clear()
    mended = market_data("quarantine", "retry", entry.sha256[:12])
    assert mended.exit_code == 0
    assert quarantine.entries(world.layout) == []
    assert (row(world).is_stored_final, row(world).checksum, row(world).failure) == (True, "verified", None)
    assert world.table(BTC, "2026-02-04").num_rows == 24


def test_retry_of_a_day_stored_meanwhile_makes_no_request(world: World, market_data: MarketData) -> None:
    fault = world.sandbox.faults.add(WRONG)
    bring(world)
    (entry,) = quarantine.entries(world.layout)
    kept = entry.path.read_bytes(), entry.path.with_suffix(".json").read_bytes()
    world.sandbox.faults.remove(fault)
    bring(world)
    for path, data in zip((entry.path, entry.path.with_suffix(".json")), kept, strict=True):
        path.write_bytes(data)
    world.forget()
    result = market_data("quarantine", "retry", "--all")
    assert result.exit_code == 0
    assert f"{entry.name} is removed: spot/klines/BTCUSDT/1h 2026-02-04 is stored in good files." in result.stderr
    assert quarantine.entries(world.layout) == []
    assert world.asked(".zip") == []


def test_an_accepted_day_loads_with_a_warning_that_stays(world: World, market_data: MarketData) -> None:
    world.sandbox.faults.add(WRONG)
    bring(world)
    (entry,) = quarantine.entries(world.layout)
    refused = market_data("quarantine", "accept", entry.sha256[:12], input="n\n")
    assert refused.exit_code == 1
    assert "24 rows, which read as what they should be" in refused.stderr
    assert row(world).outcome == FAILED
    done = market_data("quarantine", "accept", entry.sha256[:12], "--reason", "never mended", "--yes")
    assert done.exit_code == 0, done.output
    assert f"{entry.name} is accepted for binance/spot/klines/BTCUSDT/1h 2026-02-04." in done.stderr
    found = row(world)
    assert (found.is_stored_final, found.final, found.checksum, found.integrity) == (True, True, "accepted", "warn")
    assert [f.rule for f in found.findings_list() if f.check == "integrity"] == ["checksum_accepted"]
    assert world.table(BTC, "2026-02-04").num_rows == 24
    assert (
        "1 day stored, but in doubt:\n  spot/klines/BTCUSDT/1h 2026-02-04: its archive does not match the "
        "published checksum, but a person accepted it"
    ) in market_data("coverage").stdout
    listed = market_data("quarantine", "list").stdout
    assert listed.splitlines()[1].split()[-1] == "somebody"
    shown = market_data("quarantine", "show", entry.name).stdout
    assert "accepted   by somebody, 2026-03-05 12:00 UTC: never mended" in shown
    assert "held       final, 24 rows from archive_daily" in shown
    assert "difference none: it has the same rows" in shown
    world.forget()
    assert isinstance(bring(world), DayOutcome)
    assert market_data("quarantine", "retry", "--all").exit_code == 0
    assert world.asked(".zip") == []


def test_accepted_day_is_verified_once_binance_repairs_it(world: World, market_data: MarketData) -> None:
    """A retry fetches the repaired archive."""
    fault = world.sandbox.faults.add(WRONG)
    bring(world)
    (entry,) = quarantine.entries(world.layout)
    assert market_data("quarantine", "accept", entry.name, "--yes").exit_code == 0
    assert market_data("quarantine", "retry", entry.name).exit_code == 0
    assert row(world).checksum == "accepted", "still not mended"
    world.sandbox.faults.remove(fault)
    world.sandbox.faults.add(ReplacedArchive(series="1h", days=(DAY,), at=utc("2026-03-01T00:00:00")))
    assert market_data("quarantine", "retry", entry.name).exit_code == 0
    assert (row(world).checksum, row(world).integrity) == ("verified", "info")
    assert quarantine.entries(world.layout) == []


def test_other_bytes_of_an_accepted_day_are_refused_as_before(world: World, market_data: MarketData) -> None:
    world.sandbox.faults.add(WRONG)
    bring(world)
    (entry,) = quarantine.entries(world.layout)
    quarantine.accept(world.layout, entry, by="me", at=utc("2026-03-05T12:00"))
    start = utc("2026-02-04T08:00:00")
    world.sandbox.faults.add(ChangedRows(series="1h", start=start, end=utc("2026-02-04T09:00:00"), where="archive"))
    assert market_data("quarantine", "retry", entry.name).exit_code == 1
    assert row(world).outcome == FAILED
    assert len(quarantine.entries(world.layout)) == 2
    ambiguous = market_data("quarantine", "accept", "BTCUSDT-1h-2026-02-04", "--yes")
    assert ambiguous.exit_code == 2
    assert "may mean 2 files: name one of them. There are: " in ambiguous.stderr


def test_replacement_with_wrong_checksum_is_compared_with_day(world: World, market_data: MarketData) -> None:
    assert isinstance(bring(world), DayOutcome)
    gone = MissingRows(
        series="1h", start=utc("2026-02-04T08:00:00"), end=utc("2026-02-04T10:00:00"), where="archive", cadence="daily"
    )
    world.sandbox.faults.add(gone)
    world.sandbox.faults.add(WRONG)
    held = world.ledger(BTC)
    held.put(after(row(world), row(world).day, OtherArchive("another")))  # as the sweep over the listing does
    held.write(world.layout.ledger(BTC))
    assert isinstance(bring(world), DayFailure)
    assert (row(world).outcome, row(world).failure) == (HELD, "checksum")
    said = market_data("quarantine", "show", "BTCUSDT-1h-2026-02-04").stdout
    assert "held       final, 24 rows" in said
    assert "difference 0 rows added, 2 removed, 0 changed" in said
    world.sandbox.faults.remove(WRONG)
    assert market_data("quarantine", "retry", "BTCUSDT-1h-2026-02-04").exit_code == 0
    assert row(world).failure is None
    assert quarantine.entries(world.layout) == []


def test_bad_monthly_zip_can_be_released_but_not_accepted(world: World, market_data: MarketData) -> None:
    world.sandbox.faults.add(WrongChecksum(path=r"/monthly/.*BTCUSDT-1h-2026-01\.zip"))
    outcomes = world.ingest(BTC, days("2026-01-01", "2026-01-31"))
    assert {outcome.row.source for outcome in outcomes} == {"archive_daily"}, "the daily zips stand in"
    (entry,) = quarantine.entries(world.layout)
    assert entry.day is None
    assert "24 rows" not in market_data("quarantine", "show", entry.name).stdout
    assert "744 rows, which read as what they should be" in market_data("quarantine", "show", entry.name).stdout
    refused = market_data("quarantine", "accept", entry.name, "--yes")
    assert refused.exit_code == 2
    assert "it is a monthly zip" in refused.stderr
    assert market_data("quarantine", "retry", entry.name).exit_code == 0
    assert quarantine.entries(world.layout) == []


def test_retry_of_all_skips_series_that_are_not_collected(world: World, market_data: MarketData) -> None:
    fault = world.sandbox.faults.add(WRONG)
    world.sandbox.faults.add(WrongChecksum(path=r"ETHUSDT-aggTrades-2026-02-04\.zip"))
    world.sandbox.faults.add(WrongChecksum(path=r"BTCUSDT-1h-2021-12-01\.zip"))
    bring(world)
    bring(world, TRADES)
    world.one(BTC, "2021-12-01")
    world.sandbox.faults.remove(fault)
    (world.root / "universe.yaml").write_text(UNIVERSE.partition("  - market: um")[0])

    result = market_data("quarantine", "retry", "--all")

    assert result.exit_code == 1
    assert row(world).is_stored_final
    assert result.stderr.count(" is left out: ") == 2
    assert "binance/spot/klines/BTCUSDT/1h 2021-12-01 cannot be fetched: " in result.stderr
    assert [entry.key for entry in quarantine.entries(world.layout)] == [BTC, TRADES]


def test_trades_are_handled_alike_and_uncollected_series_named(world: World, market_data: MarketData) -> None:
    world.sandbox.faults.add(WrongChecksum(path=r"ETHUSDT-aggTrades-2026-02-04\.zip"))
    assert isinstance(bring(world, TRADES), DayFailure)
    universe = world.root / "universe.yaml"
    universe.write_text(UNIVERSE.partition("  - market: um")[0])
    for command in (["retry"], ["accept", "--yes"]):
        result = market_data("quarantine", *command, "ETHUSDT-aggTrades-2026-02-04")
        assert result.exit_code == 2
        assert "binance/um/aggTrades/ETHUSDT is no longer in" in result.stderr
    everything = market_data("quarantine", "retry", "--all")
    assert everything.exit_code == 1
    assert " is left out: binance/um/aggTrades/ETHUSDT is no longer in" in everything.stderr
    universe.write_text(UNIVERSE)
    assert market_data("quarantine", "accept", "ETHUSDT-aggTrades-2026-02-04", "--yes").exit_code == 0
    assert row(world, TRADES).checksum == "accepted"
