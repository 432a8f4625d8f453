"""``market-data verify``: what somebody at a shell sees of archives that changed and of files that did."""

from __future__ import annotations

import os
from datetime import date

import pytest

from market_data_pipeline.maintenance import scrub
from market_data_pipeline.sandbox import LateArchive, MissingDay, OtherBody, ReplacedArchive, Status, WrongChecksum
from market_data_pipeline_tests.support.shell import MarketData, shell
from market_data_pipeline_tests.support.world import World, days, klines, utc

BTC, ETH = klines("BTCUSDT", "1h"), klines("ETHUSDT", "1h")
WEEK = days("2026-02-02", "2026-02-08")

UNIVERSE = """\
collect:
  - market: spot
    symbols: [BTCUSDT]
    klines: {intervals: [1h], from: 2026-01-01}
"""


@pytest.fixture
def market_data(world: World, monkeypatch: pytest.MonkeyPatch) -> MarketData:
    """Run the command in a world of its own: today is 2026-03-05."""
    return shell(world, monkeypatch, UNIVERSE, retries="0")


def test_replaced_archive_is_fetched_again_and_changes_are_shown(world: World, market_data: MarketData) -> None:
    world.sandbox.faults.add(
        ReplacedArchive(series=str(BTC), days=[WEEK[2]], at=utc("2026-03-06T00:00:00"), short_by=0)
    )
    world.ingest(BTC, WEEK)
    assert market_data("verify").exit_code == 0
    world.at("2026-03-06T12:00:00")
    world.forget()

    looked = market_data("verify", "--check-only")

    assert looked.exit_code == 1
    assert "replaced" in looked.stdout
    assert "BTCUSDT-1h-2026-02-04.zip" in looked.stdout
    assert "7 archives of 1 series compared in 1 request: 1 replaced, 0 published since, 0 refused, 0 vanished." in (
        looked.stderr
    )
    assert world.ledger(BTC).rows[WEEK[2]].replaced_by is None
    assert len(world.asked()) == 1

    mended = market_data("verify")

    assert mended.exit_code == 0, mended.output
    assert "spot/klines/BTCUSDT/1h 2026-02-04: The archive was replaced: 0 rows added, 0 removed, 1 changed" in (
        mended.stderr
    )
    again = market_data("verify")
    assert again.exit_code == 0
    assert "7 archives of 1 series compared in 1 request: 0 replaced" in again.stderr


def test_refused_replacement_fails_every_verify(world: World, market_data: MarketData) -> None:
    """A second run does not succeed either."""
    world.sandbox.faults.add(ReplacedArchive(series=str(BTC), days=[WEEK[2]], at=utc("2026-03-06T00:00:00")))
    world.ingest(BTC, WEEK)
    wrong = world.sandbox.faults.add(WrongChecksum(path="BTCUSDT-1h-2026-02-04"))
    world.at("2026-03-06T12:00:00")

    first = market_data("verify")

    assert first.exit_code == 1
    assert "stays stored as before until Binance publishes another archive or another checksum" in first.stderr
    assert "The same command tries" not in first.stderr
    world.forget()
    for arguments in ([], ["--check-only"]):
        again = market_data("verify", *arguments)
        assert again.exit_code == 1
        assert "0 replaced, 0 published since, 1 refused, 0 vanished." in again.stderr
        assert "1 day is held as before, since the archive that is there now was refused" in again.stderr
        assert "BTCUSDT-1h-2026-02-04.zip" in again.stdout
    assert world.asked(".zip") == [], "only the listing is asked"
    covered = market_data("coverage", "--html", str(world.root / "page.html"))
    said = "another archive was published, but could not be used (checksum: "
    assert f"1 day stored, but in doubt:\n  spot/klines/BTCUSDT/1h 2026-02-04: {said}" in covered.stdout
    assert f"2026-02-04: final. {said}" in (world.root / "page.html").read_text()

    world.sandbox.faults.remove(wrong)
    assert market_data("verify").exit_code == 0
    assert market_data("verify").exit_code == 0
    assert world.ledger(BTC).rows[WEEK[2]].failure is None


def test_days_whose_archive_was_published_since_become_final(world: World, market_data: MarketData) -> None:
    world.sandbox.faults.add(LateArchive(series=str(BTC), days=days("2026-03-02", "2026-03-03"), days_late=3))
    world.ingest(BTC, days("2026-03-01", "2026-03-03"))
    assert market_data("verify").exit_code == 0
    world.at("2026-03-08T12:00:00")
    result = market_data("verify")
    assert result.exit_code == 0, result.output
    assert result.stdout.count("published") == 2
    assert all(row.final for row in world.ledger(BTC).rows.values())


def test_vanished_archive_is_reported_and_its_day_stays(world: World, market_data: MarketData) -> None:
    world.ingest(BTC, WEEK)
    world.sandbox.faults.add(MissingDay(series=str(BTC), days=[WEEK[2]]))
    result = market_data("verify")
    assert result.exit_code == 0
    assert "1 vanished. What vanished from the archive stays in the lake." in result.stderr
    assert world.layout.file(BTC, WEEK[2]).exists()


def test_changed_series_that_is_not_collected_is_named(world: World, market_data: MarketData) -> None:
    world.sandbox.faults.add(ReplacedArchive(series=str(ETH), days=[WEEK[2]], at=utc("2026-03-06T00:00:00")))
    world.ingest(ETH, WEEK)
    world.at("2026-03-06T12:00:00")
    result = market_data("verify")
    assert result.exit_code == 1
    assert "binance/spot/klines/ETHUSDT/1h is no longer collected, so 1 day of it stayed as it was" in result.stderr


def test_a_listing_that_cannot_be_had_is_no_success(world: World, market_data: MarketData) -> None:
    world.ingest(BTC, WEEK)
    world.sandbox.faults.add(Status(path="^/$", status=503))
    result = market_data("verify")
    assert result.exit_code == 1
    assert "503" in result.stderr


def test_series_that_were_not_compared_are_named_with_the_reason(
    world: World, market_data: MarketData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MARKET_DATA_DOWNLOAD_THREADS", "1")
    for interval in ("15m", "30m", "1h", "2h", "4h"):
        world.ingest(klines("BTCUSDT", interval), WEEK[:1])
    world.sandbox.faults.add(Status(path="^/$", status=503))
    world.forget()
    result = market_data("verify")
    assert result.exit_code == 1
    assert "2 series were not compared, because listing the archive failed for the series before" in result.stderr
    assert len(world.asked()) == 3


def test_only_the_selected_series_are_verified(world: World, market_data: MarketData) -> None:
    world.ingest(BTC, WEEK)
    world.ingest(ETH, WEEK)
    world.forget()
    assert "of 1 series compared in 1 request" in market_data("verify", "--symbol", "ETHUSDT").stderr
    assert len(world.asked()) == 1
    refused = market_data("verify", "--symbol", "DOGEUSDT")
    assert refused.exit_code == 2
    assert "There are: ETHUSDT, BTCUSDT" in refused.stderr


def test_empty_lake_has_nothing_to_verify(market_data: MarketData) -> None:
    result = market_data("verify")
    assert result.exit_code == 0
    assert "nothing to verify" in result.stderr


def test_verify_local_finds_damage_and_backfill_replaces_it(world: World, market_data: MarketData) -> None:
    world.ingest(BTC, WEEK)
    world.forget()
    good = market_data("verify", "--local")
    assert good.exit_code == 0, good.output
    assert "7 files of 1 series with 168 rows" in good.stderr
    assert "0 damaged" in good.stderr

    path = world.layout.file(BTC, date(2026, 2, 4))
    stat = path.stat()
    path.write_bytes(path.read_bytes()[:-8] + b"\0" * 8)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    bad = market_data("verify", "--local")

    assert bad.exit_code == 1
    assert "2026-02-04" in bad.stdout
    assert "1 damaged" in bad.stderr
    assert world.asked() == []
    brought = market_data("backfill", "--from", "2026-02-02", "--through", "2026-02-08")
    assert brought.exit_code == 0, brought.output
    assert "7 days, 6 stored before, 1 fetched" in brought.stderr
    assert market_data("verify", "--local").exit_code == 0


def test_local_needs_no_universe(world: World, market_data: MarketData) -> None:
    world.ingest(BTC, WEEK)
    (world.root / "universe.yaml").write_text(UNIVERSE.replace("[BTCUSDT]", "['*USDT']"))
    assert market_data("verify").exit_code == 2
    assert market_data("verify", "--local").exit_code == 0


def test_a_command_reads_many_files_with_processes(
    world: World, market_data: MarketData, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.ingest(BTC, WEEK)
    monkeypatch.setattr(scrub, "_WORTH_BYTES", 1)
    result = market_data("verify", "--local")
    assert result.exit_code == 0
    assert "7 files of 1 series with 168 rows" in result.stderr


def test_login_page_is_no_answer_about_archives_or_symbols(world: World, market_data: MarketData) -> None:
    """A captive portal answers 200. No archive vanished, and no symbol is misspelt."""
    world.ingest(BTC, WEEK)
    world.sandbox.faults.add(OtherBody())

    swept = market_data("verify")
    refreshed = market_data("universe", "refresh")

    assert (swept.exit_code, refreshed.exit_code) == (1, 1)
    assert "0 vanished" in swept.stderr
    for output in (swept.output, refreshed.output):
        assert "titled 'Hotel WiFi'" in " ".join(output.split())
        assert "no symbol" not in output
    assert not world.root.joinpath("universe.lock.yaml").exists()
    world.sandbox.faults.clear()
    again = market_data("verify")
    assert again.exit_code == 0, again.output
    assert "7 archives of 1 series compared" in again.stderr
