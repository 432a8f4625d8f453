"""Candles that do not begin at multiples of their interval: spot has days of them, of 2017 and 2018.

They stand for the time that they cover: it is neither missing, nor an outage, nor filled in with what REST has on the
grid.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pyarrow.compute as pc
import pytest

from market_data_pipeline.checks.continuity import continuity
from market_data_pipeline.coverage.summary import cover, states_of
from market_data_pipeline.model.findings import Basis, Finding
from market_data_pipeline.model.outcomes import Action, DayOutcome
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.sandbox import MissingRows, Sandbox, ShiftedRows, Status
from market_data_pipeline.sandbox.zips import make_zip
from market_data_pipeline_tests.support.world import World, days, klines, utc

KEY = klines("BTCUSDT", "1h")
HOUR = 3_600_000
ON, OFF = 1518220800000, 1518222494789
"""2018-02-10 00:00 and 00:28:14.789, in milliseconds."""
SHIFT = timedelta(milliseconds=OFF - ON)

Row = tuple[int, int]
"""Open and close time in milliseconds."""


def rows(first: int, number: int, step: int = HOUR) -> list[Row]:
    return [(first + n * step, first + (n + 1) * step - 1) for n in range(number)]


Publish = Callable[[SeriesKey, str, Sequence[Row]], None]


@pytest.fixture
def publish(tmp_path: Path) -> Publish:
    """Writes a day into the folder that is served as the archive, and over REST."""

    def write(key: SeriesKey, day: str, candles: Sequence[Row]) -> None:
        path = tmp_path / "mirror" / key.archive_daily(date.fromisoformat(day))
        path.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(f"{a},8000,8001,7999,8000,1,{b},8000,10,0.5,4000,0\n" for a, b in candles)
        body = make_zip([(f"{path.stem}.csv", text.encode())])
        path.write_bytes(body)
        path.with_name(f"{path.name}.CHECKSUM").write_text(f"{hashlib.sha256(body).hexdigest()}  {path.name}\n")

    (tmp_path / "mirror" / "data").mkdir(parents=True)
    return write


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, publish: Publish) -> Iterator[World]:
    with Sandbox(mirror=tmp_path / "mirror") as sandbox:
        world = World(tmp_path / "root", sandbox, monkeypatch)
        world.at("2018-03-05T12:00:00")
        yield world


def rest_on_the_grid(world: World) -> None:
    """REST has all candles on the grid, which are the archive's, moved."""
    start, end = utc("2018-02-01T00:00:00"), utc("2018-03-01T00:00:00")
    world.sandbox.faults.add(ShiftedRows(where="rest", shift=-SHIFT, start=start, end=end))


def by_rule(world: World, day: str, key: SeriesKey = KEY) -> dict[str, list[Finding]]:
    row = world.ledger(key).get(date.fromisoformat(day))
    assert row is not None
    found: dict[str, list[Finding]] = {}
    for finding in row.findings_list():
        found.setdefault(finding.rule, []).append(finding)
    return found


def hours(finding: Finding) -> list[str]:
    """The ranges of a finding, as first and last hour."""
    return [
        f"{datetime.fromtimestamp(a / 1e6, UTC):%d %H:%M} {datetime.fromtimestamp(b / 1e6, UTC):%d %H:%M}"
        for a, b in ((range_.first, range_.last) for range_ in finding.ranges)
    ]


@pytest.mark.parametrize("rest", ["on the grid", "as the archive", "off"])
def test_day_off_the_grid_is_whole(lake: World, publish: Publish, rest: str) -> None:
    publish(KEY, "2018-02-10", rows(OFF, 24))
    if rest == "on the grid":
        rest_on_the_grid(lake)
    elif rest == "off":
        lake.sandbox.faults.add(Status(path="/api/v3", status=451))
    result = lake.one(KEY, "2018-02-10")
    assert isinstance(result, DayOutcome)
    assert (result.row.final, result.row.rows, result.row.missing) == (True, 24, 0)
    assert (result.row.integrity, result.row.gaps, result.row.verdicts) == ("info", "info", "")
    table = lake.table(KEY, "2018-02-10")
    assert pc.sum(table["volume"]).as_py() == 24
    found = by_rule(lake, "2018-02-10")
    assert list(found) == ["off_grid"]
    (finding,) = found["off_grid"]
    assert "24 of 24 rows" in finding.message
    assert {
        "on the grid": "REST has 24 candles on the grid, 2018-02-10 00:00:00.000 to 2018-02-10 23:00:00.000",
        "as the archive": "REST has 24 of them",
        "off": "",
    }[rest] in finding.evidence
    assert bool(finding.evidence) == (rest != "off")
    lake.forget()
    assert lake.one(KEY, "2018-02-10").row == result.row
    assert not lake.asked()


def test_outage_ends_where_a_candle_off_the_grid_begins(lake: World, publish: Publish) -> None:
    """The candle of 00:00 is cut at 00:28, and the next one begins at 09:28, so that from 01:00 to 08:00 none lacks."""
    cut = (ON, OFF - 1)
    publish(KEY, "2018-02-10", [cut, *rows(OFF + 9 * HOUR, 15)])
    rest_on_the_grid(lake)
    lake.sandbox.faults.add(MissingRows(where="rest", start=utc("2018-02-10T00:00:00"), end=utc("2018-02-10T08:59:00")))
    row = lake.one(KEY, "2018-02-10").row
    assert (row.rows, row.missing, row.verdicts) == (16, 8, "outage")
    found = by_rule(lake, "2018-02-10")
    assert hours(found["outage"][0]) == ["10 01:00 10 08:00"]
    assert set(found) == {"outage", "off_grid", "close_time"}


def test_outage_over_midnight_ends_at_a_candle_off_the_grid(lake: World, publish: Publish) -> None:
    publish(KEY, "2018-02-09", [(ON - 24 * HOUR, OFF - 24 * HOUR - 1)])
    publish(KEY, "2018-02-10", rows(OFF + 9 * HOUR, 15))
    publish(KEY, "2018-02-11", rows(OFF + 24 * HOUR, 24))
    lake.ingest(KEY, days("2018-02-09", "2018-02-11"))
    assert hours(by_rule(lake, "2018-02-09")["outage"][0]) == ["09 01:00 09 23:00"]
    assert hours(by_rule(lake, "2018-02-10")["outage"][0]) == ["10 00:00 10 08:00"]
    ledger, today = lake.ledger(KEY).rows, date(2018, 3, 5)
    wanted = [(date(2018, 2, 9), date(2018, 2, 11))]
    covered = cover(KEY, ledger, states_of(ledger, wanted, today), wanted, today, 10)
    assert (covered.breaks, covered.explained) == ((), 1)


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("first", ["2018-02-10", "2018-02-11"])
def test_candle_that_reaches_over_midnight_covers_the_next_day(
    lake: World, publish: Publish, first: str, *, together: bool
) -> None:
    """The last candle of a day off the grid ends at 00:28 of the next one, whose own begin at 01:00."""
    publish(KEY, "2018-02-10", rows(OFF, 24))
    publish(KEY, "2018-02-11", rows(ON + 25 * HOUR, 23))
    publish(KEY, "2018-02-12", rows(ON + 48 * HOUR, 24))
    start = utc("2018-02-10T23:00:00")  # REST has a candle at 00:00 of the 11th, that of 23:28 moved
    lake.sandbox.faults.add(
        ShiftedRows(where="rest", shift=timedelta(hours=1) - SHIFT, start=start, end=utc("2018-02-11T00:00:00"))
    )
    if together:
        lake.ingest(KEY, days("2018-02-10", "2018-02-12"))
    else:
        other = {"2018-02-10": "2018-02-11", "2018-02-11": "2018-02-10"}[first]
        for day in (first, other, "2018-02-12"):
            lake.one(KEY, day)
    row = lake.ledger(KEY).rows[date(2018, 2, 11)]
    assert (row.rows, row.missing, row.verdicts) == (23, 0, "")
    assert continuity(KEY, lake.ledger(KEY).rows, date(2018, 3, 5)) == ()
    volumes = sum(pc.sum(lake.table(KEY, f"2018-02-{day}")["volume"]).as_py() for day in (10, 11, 12))
    assert volumes == 24 + 23 + 24


def test_day_of_minutes_partly_off_the_grid(lake: World, publish: Publish) -> None:
    """Minutes go on at 17 seconds past from 12:00 on; REST has all of them on the grid, and two that are missing."""
    key, minute = klines("LTCUSDT", "1m"), 60_000
    on, off = rows(ON, 720, minute), rows(ON + 720 * minute + 17_000, 719, minute)
    publish(key, "2018-02-10", [*on[:100], *on[102:], *off])
    shift = timedelta(seconds=-17)
    noon, end = utc("2018-02-10T12:00:00"), utc("2018-02-11T00:00:00")
    lake.sandbox.faults.add(ShiftedRows(where="rest", shift=shift, start=noon, end=end))
    row = lake.one(key, "2018-02-10").row
    assert (row.rows, row.missing, row.verdicts) == (1437, 2, "outage")
    (finding,) = by_rule(lake, "2018-02-10", key)["off_grid"]
    assert finding.count == 719


def test_archive_off_the_grid_replaces_rows_of_rest(lake: World, publish: Publish) -> None:
    """A day that came from REST on the grid becomes final off the grid: rows of REST do not stay beside it."""
    publish(KEY, "2018-02-10", rows(OFF, 24))
    rest_on_the_grid(lake)
    lake.at("2018-02-11T00:30:00")  # before the archive has it
    row = lake.one(KEY, "2018-02-10").row
    assert (row.final, row.rows, row.first_key) == (False, 24, ON * 1000)
    lake.at("2018-02-12T12:00:00")
    row = lake.one(KEY, "2018-02-10").row
    assert (row.final, row.rows, row.missing, row.first_key) == (True, 24, 0, OFF * 1000)
    assert "off_grid" in by_rule(lake, "2018-02-10")


def test_provisional_day_off_the_grid_grows(lake: World, publish: Publish) -> None:
    publish(KEY, "2018-02-10", rows(OFF, 24))
    for at, number in (("10T12:10:00", 11), ("10T12:30:00", 12), ("11T00:20:00", 23), ("11T00:30:00", 24)):
        lake.at(f"2018-02-{at}")
        row = lake.one(KEY, "2018-02-10").row
        assert (row.final, row.rows, row.missing) == (False, number, 0)
    assert lake.one(KEY, "2018-02-10").action is Action.HELD  # type: ignore[union-attr]


def test_rows_filled_in_twice_by_an_older_version_are_removed(
    lake: World, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(KEY, "2018-02-10", rows(OFF, 24))
    rest_on_the_grid(lake)
    with monkeypatch.context() as older:
        older.setattr("market_data_pipeline.checks.gaps.off_grid", lambda opened, step: opened[:0])
        older.setattr("market_data_pipeline.ingest.encode.off_grid", lambda opened, step: opened[:0])
        older.setattr("market_data_pipeline.ingest.gap_fill.off_grid", lambda opened, step: opened[:0])
        older.setattr("market_data_pipeline.checks.gaps._covered", lambda missing, table, step: missing < 0)
        older.setattr("market_data_pipeline.ingest.gap_fill.overlapping", lambda opened, *_: opened < 0)
        row = lake.one(KEY, "2018-02-10").row
        assert (row.rows, row.verdicts) == (48, "healed")
    ledger = lake.ledger(KEY)
    ledger.put(replace(row, bases=Basis.RULE_REPLACED))
    ledger.write(lake.layout.ledger(KEY))
    lake.at("2018-03-06T12:00:00")
    row = lake.one(KEY, "2018-02-10").row
    assert (row.final, row.rows, row.verdicts) == (True, 24, "")
    assert "REST has 24 candles on the grid" in by_rule(lake, "2018-02-10")["off_grid"][0].evidence


def test_candles_that_follow_too_soon_fail(lake: World, publish: Publish) -> None:
    """Most of them share their time with the next: what is in them would be counted twice."""
    publish(KEY, "2018-02-10", [(ON + n * HOUR // 2, ON + n * HOUR // 2 + HOUR - 1) for n in range(24)])
    assert lake.one(KEY, "2018-02-10").row.integrity == "error"
    assert by_rule(lake, "2018-02-10")["spacing"][0].count == 23


def test_candle_overlaps_if_it_precedes_the_resumed_grid(lake: World, publish: Publish) -> None:
    publish(KEY, "2018-02-10", [*rows(OFF, 4), *rows(ON + 4 * HOUR, 20)])
    row = lake.one(KEY, "2018-02-10").row
    assert (row.rows, row.missing, row.integrity) == (24, 0, "warn")
    assert {rule: found[0].count for rule, found in by_rule(lake, "2018-02-10").items()} == {
        "off_grid": 4,
        "overlap": 1,
    }
