"""Archives that are hostile although their checksums are right: their day fails in words, and other days come."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import pytest

from market_data_pipeline.lake import quarantine
from market_data_pipeline.model.outcomes import DayFailure
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.sandbox import Sandbox, write_mirror
from market_data_pipeline_tests.sources.test_zips import TRADE, bomb, candles, zipped
from market_data_pipeline_tests.support.world import World, agg_trades, days, klines, utc

HOURS, TRADES, MIDDLE = klines("BTCUSDT", "1h"), agg_trades("BTCUSDT"), date(2026, 3, 2)
WANTED = days("2026-03-01", "2026-03-03")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    mirror = tmp_path / "mirror"
    write_mirror(mirror, [HOURS, TRADES], WANTED, cadences=("daily",))
    with Sandbox(mirror=mirror, now=utc("2026-03-05T12:00")) as sandbox:
        world = World(tmp_path / "root", sandbox, monkeypatch)
        world.at("2026-03-05T12:00")
        yield world


def serve(world: World, key: SeriesKey, day: date, data: bytes) -> None:
    """Publish bytes as a day's archive, with their checksum."""
    path = world.root.parent / "mirror" / key.archive_daily(day)
    path.write_bytes(data)
    path.with_name(f"{path.name}.CHECKSUM").write_text(f"{hashlib.sha256(data).hexdigest()}  {path.name}\n")


def stem(key: SeriesKey) -> str:
    return key.archive_daily(MIDDLE).rsplit("/", 1)[-1].removesuffix(".zip")


@pytest.mark.parametrize(
    ("key", "make", "words"),
    [
        (
            HOURS,
            lambda: bomb(b"1", stem(HOURS), 300),
            "has 314,572,800 bytes. The maximum for its period is 16,777,216",
        ),
        (HOURS, lambda: bomb(candles(3600, 1).encode(), stem(HOURS), 300), "The maximum for its period is 16,777,216"),
        (TRADES, lambda: bomb(TRADE, stem(TRADES), 300), "The maximum for its period is"),
        (HOURS, lambda: zipped(candles(60, 1440)), "1,440 of 1,440 candles last 1m, not 1h"),
    ],
    ids=["one line", "rows of candles", "rows of trades", "another interval"],
)
def test_a_hostile_archive_fails_its_day_alone(
    world: World, key: SeriesKey, make: Callable[[], bytes], words: str
) -> None:
    data = make()
    serve(world, key, MIDDLE, data)
    before, failed, after = world.ingest(key, WANTED)
    assert [before.row.is_stored_final, after.row.is_stored_final] == [True, True]
    assert isinstance(failed, DayFailure)
    assert failed.failure == "malformed"
    assert words in failed.reason
    (entry,) = quarantine.entries(world.layout)
    assert (entry.day, entry.kind, entry.read()) == (MIDDLE, "malformed", data)


def test_newest_beginning_of_a_file_that_is_no_zip_is_stored(world: World) -> None:
    for n in range(3):
        serve(world, HOURS, MIDDLE, b"<html>%d" % n + b"log in" * 10_000)
        (failed,) = world.ingest(HOURS, [MIDDLE])
        assert "it is not a zip, but starts with b'<html>" in (failed.row.reason or "")
    (entry,) = quarantine.entries(world.layout)
    assert entry.size == 1024
    assert entry.path.read_bytes().startswith(b"<html>2")


def test_full_quarantine_is_reported_and_stops_nothing(world: World) -> None:
    world.set(quarantine_mb=1)
    serve(world, HOURS, MIDDLE, b"PK\x03\x04" + bytes(600_000))
    before, failed, after = world.ingest(HOURS, WANTED)
    assert [before.row.is_stored_final, after.row.is_stored_final] == [True, True]
    assert "The file is not stored, because quarantine is full (1 MB)" in (failed.row.reason or "")
    assert quarantine.entries(world.layout) == []
