"""What a sweep over the listing and a look into every file find, and what they cost."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from market_data_pipeline import MarketData, clock
from market_data_pipeline.lake import parquet
from market_data_pipeline.lake.checksums import content_sha256
from market_data_pipeline.lake.closed_months import close_months, remove_closed_days
from market_data_pipeline.lake.ledger import Ledger
from market_data_pipeline.lake.months import encode_month, read_month
from market_data_pipeline.lake.reader import read_day
from market_data_pipeline.maintenance import archive_sweep, scrub
from market_data_pipeline.maintenance.archive_sweep import ArchiveChange, SweepReport, find_listed, sweep
from market_data_pipeline.maintenance.scrub import verify_local
from market_data_pipeline.model.datasets import spec_of
from market_data_pipeline.model.day import FAILED, HELD, DayRecord, record_of
from market_data_pipeline.model.needs import needs
from market_data_pipeline.model.outcomes import Action, DayOutcome
from market_data_pipeline.model.provenance import ChecksumStatus, Part, Provenance, Source
from market_data_pipeline.model.schema import lake_schema
from market_data_pipeline.model.series import Market, SeriesKey
from market_data_pipeline.sandbox import (
    GeneratedSymbol,
    LateArchive,
    MissingChecksum,
    MissingDay,
    ReplacedArchive,
    Sandbox,
    Status,
    WrongChecksum,
)
from market_data_pipeline.sources.binance.archive import ArchiveClient
from market_data_pipeline_tests.support.world import World, agg_trades, days, klines, utc

BTC, ETH = klines("BTCUSDT", "1h"), klines("ETHUSDT", "1h")


def swept(world: World, *keys: SeriesKey, mark: bool = True) -> SweepReport:
    """A sweep, with the requests that the sandbox saw checked against those that it tells of."""
    world.forget()
    archive = ArchiveClient(world.settings)
    report = sweep(world.settings, keys, archive, mark=mark)
    archive.close()
    assert report.requests == len(world.sandbox.requests)
    return report


def well(report: SweepReport) -> bool:
    """Whether every archive is the one that is held."""
    return not report.discoveries and not report.troubles


def found(report: SweepReport) -> list[tuple[ArchiveChange, SeriesKey, list[str]]]:
    return [(one.kind, one.key, [str(day) for day in one.days]) for one in report.discoveries]


def write_day(world: World, key: SeriesKey, day: date, rows: int, etag: str | None = None) -> DayRecord:
    """Write a made-up day as ``ingest`` would; return what its ledger should say."""
    schema, spec = lake_schema(key.market, key.data_type), spec_of(key)
    random = np.random.default_rng(day.toordinal())
    prices = np.round(50_000 + np.cumsum(random.normal(size=rows)), 2)
    columns: dict[str, pa.Array[Any]] = {}
    for one in schema:
        if pa.types.is_dictionary(one.type):
            label = key.symbol if one.name == "symbol" else key.interval
            columns[one.name] = pa.DictionaryArray.from_arrays(np.zeros(rows, np.int32), pa.array([label]))
        elif pa.types.is_timestamp(one.type):
            times = clock.day_start_us(day) + np.arange(rows) * (clock.US_PER_DAY // rows)
            columns[one.name] = pa.array(times).cast(one.type)
        elif pa.types.is_integer(one.type):
            columns[one.name] = pa.array(np.arange(rows))
        elif pa.types.is_boolean(one.type):
            columns[one.name] = pa.array(prices > prices.mean())
        else:
            columns[one.name] = pa.array(prices)
    table = pa.table(columns, schema=schema)
    now = clock.now()
    part = Part(
        source=Source.ARCHIVE_DAILY,
        url="https://archive.example",
        first_row=0,
        rows=rows,
        fetched_at=now,
        sha256="ab" * 32,
        etag=etag,
        checksum=ChecksumStatus.VERIFIED,
    )
    keys = table[spec.key].cast(pa.int64())
    record = Provenance(
        series=str(key),
        day=day,
        parts=(part,),
        final=True,
        fetched_at=now,
        rows=rows,
        first_key=keys[0].as_py(),
        last_key=keys[-1].as_py(),
        content_sha256=content_sha256(table),
    )
    path = world.layout.file(key, day)
    return record_of(record, parquet.write_table(path, table, record, spec))


def test_sound_lake_is_reported_with_one_page_per_series(world: World) -> None:
    world.ingest(BTC, days("2026-02-03", "2026-02-20"))
    world.ingest(ETH, days("2026-02-03", "2026-02-20"))
    report = swept(world, BTC, ETH)
    assert well(report)
    assert report.archives == {BTC: 18, ETH: 18}
    assert report.requests == 2


def test_replaced_daily_archives_are_found_and_marked(world: World) -> None:
    replaced = [date(2026, 2, 5), date(2026, 2, 9)]
    world.sandbox.faults.add(ReplacedArchive(series=str(BTC), days=replaced, at=utc("2026-03-06T00:00:00")))
    world.ingest(BTC, days("2026-02-03", "2026-02-20"))
    assert well(swept(world, BTC))
    world.at("2026-03-06T12:00:00")

    report = swept(world, BTC)

    assert found(report) == [
        (ArchiveChange.REPLACED, BTC, ["2026-02-05"]),
        (ArchiveChange.REPLACED, BTC, ["2026-02-09"]),
    ]
    assert report.to_fetch == {BTC: replaced}
    ledger = world.ledger(BTC)
    assert [day for day, row in ledger.rows.items() if row.replaced_by] == replaced
    for one in report.discoveries:
        row = ledger.rows[one.days[0]]
        assert row.replaced_by == one.etag != row.etag
        assert row.outcome == HELD
        assert needs(row, clock.now()).is_due


def test_a_replaced_day_is_fetched_again_and_then_all_is_well(world: World) -> None:
    replaced = date(2026, 2, 5)
    world.sandbox.faults.add(
        ReplacedArchive(series=str(BTC), days=[replaced], at=utc("2026-03-06T00:00:00"), short_by=2)
    )
    world.ingest(BTC, days("2026-02-03", "2026-02-20"))
    world.at("2026-03-06T12:00:00")
    assert swept(world, BTC).to_fetch == {BTC: [replaced]}
    world.forget()
    [outcome] = world.ingest(BTC, [replaced])
    assert outcome.row.rows == 24
    assert outcome.row.replaced_by is None
    assert world.asked(".zip") == [f"/{BTC.archive_daily(replaced)}", f"/{BTC.archive_daily(replaced)}.CHECKSUM"]
    assert well(swept(world, BTC))


def test_a_look_without_marks_leaves_the_ledger_as_it_is(world: World) -> None:
    world.sandbox.faults.add(ReplacedArchive(series=str(BTC), days=[date(2026, 2, 5)], at=utc("2026-03-06T00:00:00")))
    world.ingest(BTC, days("2026-02-03", "2026-02-20"))
    world.at("2026-03-06T12:00:00")
    before = world.layout.ledger(BTC).read_bytes()
    assert found(swept(world, BTC, mark=False)) == [(ArchiveChange.REPLACED, BTC, ["2026-02-05"])]
    assert world.layout.ledger(BTC).read_bytes() == before


def test_days_of_a_monthly_zip_are_compared_with_that_one(world: World) -> None:
    january = days("2026-01-01", "2026-01-31")
    world.sandbox.faults.add(ReplacedArchive(series=str(BTC), days=[january[3]], at=utc("2026-03-06T00:00:00")))
    world.ingest(BTC, january)
    assert {row.source for row in world.ledger(BTC).rows.values()} == {"archive_monthly"}
    assert well(swept(world, BTC))
    world.at("2026-03-06T12:00:00")

    report = swept(world, BTC)

    assert found(report) == [(ArchiveChange.REPLACED, BTC, [str(day) for day in january])]
    assert report.discoveries[0].archive == BTC.archive_monthly(january[0])
    assert report.archives == {BTC: 1}


def test_archive_of_a_day_without_one_is_found_once_published(world: World) -> None:
    world.sandbox.faults.add(LateArchive(series=str(BTC), days=days("2026-03-02", "2026-03-03"), days_late=9))
    world.ingest(BTC, days("2026-03-01", "2026-03-05"))
    assert [day.day for day, row in world.ledger(BTC).rows.items() if not row.final] == [2, 3, 5]
    assert well(swept(world, BTC))
    world.at("2026-03-12T12:00:00")

    report = swept(world, BTC)

    assert found(report) == [
        (ArchiveChange.PUBLISHED, BTC, ["2026-03-02"]),
        (ArchiveChange.PUBLISHED, BTC, ["2026-03-05"]),
    ]
    assert needs(world.ledger(BTC).rows[date(2026, 3, 2)], clock.now()).is_due
    assert not needs(world.ledger(BTC).rows[date(2026, 3, 3)], clock.now()).is_due


def test_a_day_without_checksum_waits_for_the_checksum(world: World) -> None:
    fault = world.sandbox.faults.add(MissingChecksum(series=str(BTC), days=[date(2026, 3, 2)]))
    assert not world.one(BTC, "2026-03-02").row.final
    assert well(swept(world, BTC))
    world.sandbox.faults.remove(fault)
    assert found(swept(world, BTC)) == [(ArchiveChange.PUBLISHED, BTC, ["2026-03-02"])]


def test_day_with_wrong_checksum_waits_for_other_bytes(world: World) -> None:
    day = date(2026, 2, 5)
    world.sandbox.faults.add(WrongChecksum(path="BTCUSDT-1h-2026-02-05"))
    world.sandbox.faults.add(ReplacedArchive(series=str(BTC), days=[day], at=utc("2026-03-06T00:00:00")))
    assert world.one(BTC, "2026-02-05").row.failure == "checksum"
    for _ in range(2):
        assert well(swept(world, BTC))
        assert not needs(world.ledger(BTC).rows[day], utc("2027-01-01T00:00:00")).is_due
    world.at("2026-03-06T12:00:00")
    assert found(swept(world, BTC)) == [(ArchiveChange.PUBLISHED, BTC, ["2026-02-05"])]
    assert needs(world.ledger(BTC).rows[day], clock.now()).is_due
    world.ingest(BTC, [day])
    assert world.ledger(BTC).rows[day].failure == "checksum", "the new one does not match either"
    assert well(swept(world, BTC))


def test_corrected_checksum_of_equal_bytes_is_seen_by_its_time(world: World) -> None:
    world.sandbox.faults.add(WrongChecksum(path="BTCUSDT-1h-2026-02-05", times=4))
    row = world.one(BTC, "2026-02-05").row
    assert (row.failure, row.asked_at) == ("checksum", clock.naive_utc(clock.now()))
    name = BTC.archive_daily(row.day)
    zip_file = Line(name, row.etag or "", "2026-02-06T08:00:00.000Z")
    before, after = (Line(f"{name}.CHECKSUM", "", f"2026-03-05T12:0{minute}:00.000Z") for minute in (0, 1))
    assert well(sweep(world.settings, [BTC], OnePage(zip_file, before)))
    assert found(sweep(world.settings, [BTC], OnePage(zip_file, after))) == [
        (ArchiveChange.PUBLISHED, BTC, ["2026-02-05"])
    ]
    assert needs(world.ledger(BTC).rows[row.day], clock.now()).is_due


@pytest.mark.parametrize("refused", ["checksum", "unproven"])
def test_replacement_with_late_checksum_is_found_for_a_final_day(world: World, refused: str) -> None:
    day = date(2026, 2, 5)
    old = world.one(BTC, str(day)).row
    assert old.is_stored_final
    world.sandbox.faults.add(ReplacedArchive(series=str(BTC), days=[day], at=utc("2026-03-06T00:00:00")))
    wrong = WrongChecksum(path=f"BTCUSDT-1h-{day}")
    proof = world.sandbox.faults.add(wrong if refused == "checksum" else MissingChecksum(days=[day]))
    world.at("2026-03-06T12:00:00")
    assert swept(world, BTC).to_fetch == {BTC: [day]}
    kept = world.one(BTC, str(day)).row
    assert (kept.failure, kept.is_stored_final, kept.content_sha256) == (refused, True, old.content_sha256)
    world.at("2026-03-20T12:00:00")
    for _ in range(2):
        again = swept(world, BTC)
        assert found(again) == [(ArchiveChange.REFUSED, BTC, [str(day)])]
        assert again.to_fetch == {}, "the same answer would come again"
        assert world.ledger(BTC).rows[day] == kept
    world.forget()
    assert world.one(BTC, str(day)).row.failure == refused
    assert world.asked() == []

    world.sandbox.faults.remove(proof)

    assert found(swept(world, BTC)) == [(ArchiveChange.REPLACED, BTC, [str(day)])]
    assert needs(world.ledger(BTC).rows[day], clock.now()).is_due
    new = world.one(BTC, str(day)).row
    assert (new.failure, new.is_stored_final, new.replaced_by) == (None, True, None)
    assert new.etag != old.etag
    assert well(swept(world, BTC))


def test_day_of_rest_with_a_refused_archive_waits_for_another(world: World) -> None:
    day = date(2026, 2, 10)
    world.at("2026-02-11T00:30:00")
    assert world.one(BTC, str(day)).row.source == "rest"
    world.sandbox.faults.add(WrongChecksum(path=f"BTCUSDT-1h-{day}"))
    world.sandbox.faults.add(ReplacedArchive(series=str(BTC), days=[day], at=utc("2026-02-20T00:00:00")))
    world.at("2026-02-11T12:00:00")
    row = world.one(BTC, str(day)).row
    assert (row.outcome, row.source, row.failure, row.etag) == (HELD, "rest", "checksum", None)

    world.at("2026-02-15T12:00:00")

    assert swept(world, BTC).to_fetch == {}
    assert found(swept(world, BTC)) == [(ArchiveChange.REFUSED, BTC, [str(day)])]
    assert not needs(world.ledger(BTC).rows[day], clock.now()).is_due
    world.at("2026-02-20T12:00:00")
    assert found(swept(world, BTC)) == [(ArchiveChange.PUBLISHED, BTC, [str(day)])]
    assert needs(world.ledger(BTC).rows[day], clock.now()).is_due


def test_sweep_leaves_the_backoff_of_an_unreachable_replacement(world: World) -> None:
    day = date(2026, 2, 5)
    world.set(retries=0)
    world.sandbox.faults.add(ReplacedArchive(series=str(BTC), days=[day], at=utc("2026-03-06T00:00:00")))
    world.one(BTC, str(day))
    world.sandbox.faults.add(Status(path=f"BTCUSDT-1h-{day}", status=503))
    world.at("2026-03-06T12:00:00")
    swept(world, BTC)
    for hour in ("12:00", "14:00", "18:00"):
        world.at(f"2026-03-06T{hour}:00")
        assert world.one(BTC, str(day)).row.failure == "network"
    tried = world.ledger(BTC).rows[day]
    assert tried.attempts == 3

    assert found(swept(world, BTC)) == [(ArchiveChange.REPLACED, BTC, [str(day)])]

    assert world.ledger(BTC).rows[day] == tried
    sweep(world.settings, [BTC], ArchiveClient(world.settings), at_once=True)
    assert needs(world.ledger(BTC).rows[day], clock.now()).is_due, "somebody wants it now"


def test_checksum_time_decides_without_a_recorded_etag(world: World) -> None:
    """This is true for a final day, too."""
    day = date(2026, 2, 5)
    row = replace(world.one(BTC, str(day)).row, replaced_by="new", failure="checksum", attempts=1)
    name = BTC.archive_daily(day)
    new = Line(name, "new", "2026-03-04T08:00:00.000Z")
    for minute, kinds in ((0, [ArchiveChange.REFUSED]), (1, [ArchiveChange.REPLACED])):
        Ledger([row]).write(world.layout.ledger(BTC))
        line = Line(f"{name}.CHECKSUM", "ab", f"2026-03-05T12:0{minute}:00.000Z")
        assert [one.kind for one in sweep(world.settings, [BTC], OnePage(new, line)).discoveries] == kinds


def test_archive_restored_after_a_refused_one_clears_the_failure(world: World) -> None:
    day = date(2026, 2, 5)
    row = world.one(BTC, str(day)).row
    replacement = world.sandbox.faults.add(ReplacedArchive(series=str(BTC), days=[day], at=utc("2026-03-06T00:00:00")))
    wrong = world.sandbox.faults.add(WrongChecksum(path=f"BTCUSDT-1h-{day}"))
    world.at("2026-03-06T12:00:00")
    swept(world, BTC)
    assert world.one(BTC, str(day)).row.failure == "checksum"
    for fault in (replacement, wrong):
        world.sandbox.faults.remove(fault)
    assert found(swept(world, BTC)) == [(ArchiveChange.REPLACED, BTC, [str(day)])]
    settled = world.one(BTC, str(day)).row
    assert (settled.failure, settled.content_sha256) == (None, row.content_sha256)
    assert well(swept(world, BTC))


def test_day_without_its_own_archive_is_found_in_the_monthly_one(world: World) -> None:
    late = [date(2026, 2, 20), date(2026, 2, 21)]
    world.sandbox.faults.add(MissingDay(series=str(BTC), days=late, cadence="daily"))
    world.sandbox.faults.add(LateArchive(series=str(BTC), days=[date(2026, 2, 1)], days_late=5, cadence="monthly"))
    world.ingest(BTC, days("2026-02-18", "2026-02-22"))
    report = swept(world, BTC)
    assert well(report)
    assert report.requests == 2
    world.at("2026-03-09T12:00:00")
    assert found(swept(world, BTC)) == [(ArchiveChange.PUBLISHED, BTC, [str(day) for day in late])]
    assert all(result.row.is_stored_final for result in world.ingest(BTC, late))
    assert world.ledger(BTC).rows[late[0]].source == "archive_monthly"
    assert well(swept(world, BTC))


def test_vanished_archive_is_reported_and_the_day_stays(world: World) -> None:
    world.ingest(BTC, days("2026-02-03", "2026-02-08"))
    world.sandbox.faults.add(MissingDay(series=str(BTC), days=[date(2026, 2, 5)]))
    report = swept(world, BTC)
    assert found(report) == [(ArchiveChange.VANISHED, BTC, ["2026-02-05"])]
    assert report.to_fetch == {}
    assert world.ledger(BTC).rows[date(2026, 2, 5)].is_stored_final
    assert world.ledger(BTC).rows[date(2026, 2, 5)].replaced_by is None


def test_ranges_without_a_stored_day_cost_no_request(world: World) -> None:
    wanted = [*days("2019-01-01", "2019-01-03"), *days("2026-03-01", "2026-03-03")]
    world.ingest(BTC, wanted)
    report = swept(world, BTC)
    assert well(report)
    assert report.archives == {BTC: 6}
    assert report.requests == 2, "listing seven years would be six pages"


def test_three_thousand_days_are_six_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = "abcdef0123456789abcdef0123456789"
    key, wanted = klines("BTCUSDT", "1d"), days("2017-09-01", "2025-11-17")
    rows = [DayRecord(day, HELD, True, source="archive_daily", archive_sha256="ab" * 32, etag=listed) for day in wanted]
    with Sandbox() as sandbox:
        world = World(tmp_path, sandbox, monkeypatch)
        world.at("2026-03-05T12:00:30")
        Ledger(rows).write(world.layout.ledger(key))
        monkeypatch.setattr(archive_sweep, "refresh_ledger", lambda *_: [])  # the ledger is all there is of those days
        report = swept(world, key, mark=False)
    assert len(wanted) == 3000
    assert len(report.of(ArchiveChange.REPLACED)) == 3000
    assert report.requests == 6


@dataclass(frozen=True)
class Line:
    """A line of a listing."""

    key: str
    etag: str
    last_modified: str


class OnePage:
    """A listing that has no ETags."""

    def __init__(self, *lines: Line) -> None:
        self.lines = lines

    def list_page(self, prefix: str, after: str) -> tuple[Sequence[Line], bool]:
        return [line for line in self.lines if line.key.startswith(prefix) and line.key > after], False


@pytest.mark.parametrize(
    ("modified", "kinds"),
    [("2026-02-06T08:00:00.000Z", []), ("2026-02-06T08:00:01.000Z", [ArchiveChange.REPLACED])],
)
def test_archive_time_decides_without_an_etag_in_the_listing(
    world: World, modified: str, kinds: list[ArchiveChange]
) -> None:
    row = world.one(BTC, "2026-02-05").row
    assert row.last_modified == "Fri, 06 Feb 2026 08:00:00 GMT"
    line = Line(BTC.archive_daily(row.day), "", modified)
    report = sweep(world.settings, [BTC], OnePage(line))
    assert [one.kind for one in report.discoveries] == kinds
    assert report.without_etag == 0
    nothing_known = replace(row, etag=None, last_modified=None)
    Ledger([nothing_known]).write(world.layout.ledger(BTC))
    assert sweep(world.settings, [BTC], OnePage(line)).without_etag == 1


def test_a_series_that_cannot_be_listed_does_not_stop_the_others(world: World) -> None:
    world.set(retries=0)
    world.ingest(BTC, days("2026-02-03", "2026-02-08"))
    world.ingest(ETH, days("2026-02-03", "2026-02-08"))
    world.sandbox.faults.add(Status(path="^/$", query="BTCUSDT", status=503))
    report = sweep(world.settings, [BTC, ETH], ArchiveClient(world.settings))
    assert list(report.troubles) == [BTC]
    assert "503" in report.troubles[BTC]
    assert report.archives[ETH] == 6


def without_ledger(world: World, key: SeriesKey) -> str:
    """Make a series' ledger something that the system refuses to read; return what is said of it."""
    path = world.layout.ledger(key)
    path.unlink()
    path.mkdir()
    return f"{path} cannot be read"


def test_a_ledger_that_cannot_be_read_does_not_stop_the_others(world: World) -> None:
    world.set(download_threads=1)
    unread = [klines("BTCUSDT", interval) for interval in ("15m", "30m", "2h")]
    for key in (*unread, BTC, ETH):
        world.ingest(key, days("2026-02-03", "2026-02-04"))
    reasons = {key: without_ledger(world, key) for key in unread}
    damage(world.layout.file(ETH, date(2026, 2, 4)))

    report = swept(world, *unread, BTC, ETH)
    local = verify_local(world.settings, [*unread, BTC, ETH])

    assert {key: reason.partition(" (")[0] for key, reason in report.troubles.items()} == reasons
    assert report.archives == {BTC: 2, ETH: 2}
    assert report.not_reached == [], "the listing is not what failed"
    assert {key: reason.partition(" (")[0] for key, reason in local.troubles.items()} == reasons
    assert local.files == {BTC: 2, ETH: 2}
    assert local.to_fetch == {ETH: [date(2026, 2, 4)]}
    assert not local.all_well


def test_failed_listing_does_not_cost_each_series_all_retries(world: World) -> None:
    world.set(retries=2, download_threads=1)
    keys = [klines("BTCUSDT", interval) for interval in ("5m", "15m", "30m", "1h", "2h", "4h", "6h")]
    for key in keys:
        world.one(key, "2026-02-05")
    down = world.sandbox.faults.add(Status(path="^/$", status=503))
    world.forget()
    told: list[int] = []
    report = sweep(world.settings, keys, ArchiveClient(world.settings), on_progress=told.append)
    assert len(world.asked()) == 3 * 3
    assert list(report.troubles) == keys[:3]
    assert report.not_reached == keys[3:]
    assert told == [0] * len(keys)
    world.sandbox.faults.remove(down)
    assert well(swept(world, *keys))


def test_series_without_archives_ignore_a_failed_listing(world: World) -> None:
    world.set(retries=0, download_threads=1)
    held = [klines("BTCUSDT", interval) for interval in ("15m", "30m", "1h", "2h")]
    for key in held:
        world.one(key, "2026-02-05")
    world.sandbox.faults.add(Status(path="^/$", status=503))
    [first, second, third, fourth] = held
    empty = [klines("ETHUSDT", interval) for interval in ("15m", "30m")]
    report = sweep(world.settings, [first, empty[0], second, empty[1], third, fourth], ArchiveClient(world.settings))
    assert report.not_reached == [fourth]


def test_days_without_a_ledger_are_known_from_their_footers(world: World) -> None:
    world.sandbox.faults.add(ReplacedArchive(series=str(BTC), days=[date(2026, 2, 5)], at=utc("2026-03-06T00:00:00")))
    world.ingest(BTC, days("2026-02-03", "2026-02-08"))
    world.layout.ledger(BTC).unlink()
    world.at("2026-03-06T12:00:00")
    assert found(swept(world, BTC)) == [(ArchiveChange.REPLACED, BTC, ["2026-02-05"])]
    assert sorted(world.ledger(BTC).rows) == days("2026-02-03", "2026-02-08")


@pytest.mark.slow
def test_three_replaced_archives_are_found_with_forty_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten symbols and one year are swept, and the days are fetched again."""
    symbols = [GeneratedSymbol(Market.SPOT, f"COIN{n}USDT", date(2024, 1, 1), trades_per_day=50) for n in range(10)]
    with Sandbox(symbols=symbols) as sandbox:
        world = World(tmp_path, sandbox, monkeypatch)
        world.at("2025-12-31T12:00:00")
        keys = [klines(symbol.symbol, "1h") for symbol in symbols]
        replaced = {keys[0]: date(2025, 3, 3), keys[4]: date(2025, 7, 20), keys[9]: date(2025, 12, 24)}
        for key, day in replaced.items():
            sandbox.faults.add(ReplacedArchive(series=str(key), days=[day], at=utc("2025-12-31T13:00:00")))
        year = days("2024-12-31", "2025-12-30")
        assert len(year) == 365
        for key in keys:
            # As downloads would have left them: the ETags are those of the listing, and the ledger knows every file.
            listed = find_listed(ArchiveClient(world.settings), key.archive_folder(), map(key.archive_daily, year))[0]
            etags = {day: listed[key.archive_daily(day)].etag for day in year}
            brought = replaced.get(key, year[0])
            of_day = write_day(world, key, brought, 24, etag=etags[brought])
            for day in year:
                if day != brought:
                    world.layout.file(key, day).hardlink_to(world.layout.file(key, brought))
            rows = [replace(of_day, day=day, etag=etags[day]) for day in year]
            Ledger(rows).write(world.layout.ledger(key))
        world.at("2025-12-31T14:00:00")
        world.forget()

        report = sweep(world.settings, keys, ArchiveClient(world.settings))
        mended = [result.row for key, wanted in report.to_fetch.items() for result in world.ingest(key, wanted)]

        assert sum(report.archives.values()) == 3650
        assert report.to_fetch == {key: [day] for key, day in replaced.items()}
        assert [row.etag for row in mended] == [one.etag for one in report.discoveries]
        assert len(world.sandbox.requests) <= 40
        assert report.requests == 10
        assert well(sweep(world.settings, keys, ArchiveClient(world.settings)))


# --- the files of the lake ----------------------------------------------------------------------------------------


def damage(path: Path) -> None:
    """Change a bit among a file's prices, at the same size and time, as a disk does that forgets."""
    stat = path.stat()
    prices = pq.read_metadata(path).row_group(0).column(4)
    data = bytearray(path.read_bytes())
    data[prices.data_page_offset + prices.total_compressed_size - 20] ^= 0x10
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_every_file_is_read_and_verified(world: World) -> None:
    trades = agg_trades("ETHUSDT")
    world.ingest(BTC, days("2026-02-03", "2026-02-08"))
    world.ingest(trades, days("2026-02-03", "2026-02-03"))
    world.forget()
    told: list[int] = []
    report = verify_local(world.settings, [BTC, trades], on_progress=told.append)
    assert report.all_well
    assert report.files == {BTC: 6, trades: 1}
    assert report.rows == 6 * 24 + world.table(trades, "2026-02-03").num_rows
    assert sum(told) == 7
    assert not world.sandbox.requests


def test_flipped_bit_at_equal_size_and_time_is_found_and_fixed(world: World) -> None:
    day = date(2026, 2, 5)
    world.ingest(BTC, days("2026-02-03", "2026-02-08"))
    before = world.table(BTC, "2026-02-05")
    damage(world.layout.file(BTC, day))
    [held] = world.ingest(BTC, [day])
    assert held.row.is_stored_final, "nothing but reading the file tells"

    report = verify_local(world.settings, [BTC])

    assert report.to_fetch == {BTC: [day]}
    assert "Backfill that day to replace it" in report.faults[BTC][day]
    row = world.ledger(BTC).rows[day]
    assert (row.outcome, row.failure) == (FAILED, "damaged")
    assert needs(row, clock.now()).is_due
    [mended] = world.ingest(BTC, [day])
    assert mended.row.is_stored_final
    assert world.table(BTC, "2026-02-05").equals(before)
    assert verify_local(world.settings, [BTC]).all_well


def test_a_file_that_is_another_days_or_gone_is_found(world: World) -> None:
    world.ingest(BTC, days("2026-02-03", "2026-02-08"))
    folder = world.layout.folder(BTC)
    (folder / "2026-02-04.parquet").write_bytes((folder / "2026-02-05.parquet").read_bytes())
    (folder / "2026-02-06.parquet").unlink()
    report = verify_local(world.settings, [BTC])
    assert report.to_fetch == {BTC: [date(2026, 2, 4), date(2026, 2, 6)]}
    assert {row.failure for row in world.ledger(BTC).rows.values()} == {None, "damaged", "gone"}
    assert all(result.row.is_stored_final for result in world.ingest(BTC, days("2026-02-03", "2026-02-08")))
    assert verify_local(world.settings, [BTC]).all_well


@pytest.mark.parametrize("ledger", ["as it was", "lost"])
def test_file_of_another_series_is_not_stored_and_is_replaced(world: World, ledger: str) -> None:
    """A backfill replaces it."""
    day = date(2026, 2, 5)
    for key in (BTC, ETH):
        world.ingest(key, [day])
    truth, path = world.table(ETH, str(day)), world.layout.file(ETH, day)
    path.write_bytes(world.layout.file(BTC, day).read_bytes())
    if ledger == "lost":
        world.layout.ledger(ETH).unlink()  # then files are believed by their footers
    else:
        assert verify_local(world.settings, [ETH]).to_fetch == {ETH: [day]}
    world.forget()

    [mended] = world.ingest(ETH, [day])
    assert isinstance(mended, DayOutcome)
    assert mended.action is Action.FETCHED
    assert len(world.asked(".CHECKSUM")) == 1
    assert world.table(ETH, str(day)).equals(truth)
    assert verify_local(world.settings, [ETH]).all_well


def month_before(november: Path, december: Path) -> None:
    december.write_bytes(november.read_bytes())


def both_months(november: Path, december: Path) -> None:
    schema = lake_schema(BTC.market, BTC.data_type)
    both = read_month(november, schema) | read_month(december, schema)
    december.write_bytes(encode_month([both[day] for day in sorted(both)], spec_of(BTC)))


@pytest.mark.parametrize("spoil", [month_before, both_months])
def test_closed_month_with_foreign_days_is_found_and_cleaned(world: World, spoil: Callable[[Path, Path], None]) -> None:
    """A backfill leaves only the days of the month."""
    wanted = days("2025-11-01", "2025-12-31")
    world.ingest(BTC, wanted)
    truth = pa.concat_tables([world.table(BTC, str(day)) for day in wanted])
    november, december = close_months(world.layout, BTC)
    remove_closed_days(world.layout, BTC, wanted)
    spoil(world.layout.month(BTC, november), world.layout.month(BTC, december))

    assert verify_local(world.settings, [BTC]).to_fetch == {BTC: days("2025-12-01", "2025-12-31")}
    assert all(result.row.is_stored_final for result in world.ingest(BTC, wanted))
    assert verify_local(world.settings, [BTC]).all_well
    assert pa.concat_tables([read_day(world.layout, BTC, day) for day in wanted]).equals(truth)
    candles = MarketData(world.layout.root).klines("BTCUSDT", "1h", wanted[0], date(2026, 1, 1)).arrow()
    assert candles["open_time"].cast(pa.int64()).equals(truth["open_time"].cast(pa.int64()))


def test_rows_that_were_changed_and_written_again_are_found(world: World) -> None:
    world.ingest(BTC, days("2026-02-03", "2026-02-04"))
    path = world.layout.file(BTC, date(2026, 2, 4))
    table = parquet.read_table(path)
    changed = table.set_column(
        table.schema.get_field_index("close"), table.schema.field("close"), pc.add(table["close"], 0.01)
    )
    parquet.write_table(path, changed, parquet.read_provenance(path))
    report = verify_local(world.settings, [BTC], mark=False)
    assert "sha256" in report.faults[BTC][date(2026, 2, 4)]
    assert world.ledger(BTC).rows[date(2026, 2, 4)].failure is None


def rewrite(
    path: Path,
    change: Callable[[pa.Table], pa.Table],
    record: Callable[[Provenance, pa.Table], Provenance] | None = None,
) -> None:
    """Write a file again with other rows; with its footer as it was, or with what ``record`` makes of it."""
    held, table = parquet.parse_whole(path, path.read_bytes())
    changed = change(table).replace_schema_metadata(None)
    spec = spec_of(BTC)
    parquet.write_table(path, changed, record(held, changed) if record else held, spec)


def hashed(record: Provenance, table: pa.Table) -> Provenance:
    return record.model_copy(update={"content_sha256": content_sha256(table)})


def labelled(label: str) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        labels = pa.DictionaryArray.from_arrays(np.zeros(table.num_rows, np.int32), pa.array([label]))
        return table.set_column(0, table.schema.field(0), labels)

    return change


def of_other_labels_here_and_there(table: pa.Table) -> pa.Table:
    which = np.arange(table.num_rows, dtype=np.int32) % 2
    labels = pa.DictionaryArray.from_arrays(which, pa.array(["BTCUSDT", "ETHUSDT"]))
    return table.set_column(0, table.schema.field(0), labels)


def swapped(table: pa.Table) -> pa.Table:
    return table.take([*range(10), 11, 10, *range(12, table.num_rows)])


def with_bit_lost_in(label: bytes) -> Callable[[Path], None]:
    """Changes a bit of a label where it is first written, which is in the dictionary that the rows refer to."""

    def change(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[data.index(label)] ^= 0x02
        path.write_bytes(data)

    return change


def same(table: pa.Table) -> pa.Table:
    return table


def with_text(table: pa.Table) -> pa.Table:
    return table.set_column(0, "symbol", table["symbol"].cast(pa.string()))


def saying(**what: object) -> Callable[[Provenance, pa.Table], Provenance]:
    return lambda held, _: held.model_copy(update=what)


_FAULTS: tuple[tuple[Callable[[Path], object], str], ...] = (
    (with_bit_lost_in(b"BTCUSDT"), "the sha256 of its values differs"),
    (with_bit_lost_in(b"1h"), "the sha256 of its values differs"),
    (damage, "Backfill that day to replace it"),
    (lambda path: path.write_bytes(path.read_bytes()[:-9]), "is damaged or was not written by this pipeline"),
    (lambda path: path.write_bytes(b""), "is damaged or was not written by this pipeline"),
    (lambda path: rewrite(path, swapped, hashed), "open_time is not strictly ascending"),
    (lambda path: rewrite(path, lambda table: table.slice(0, 23), hashed), "it has 23 rows instead of 24"),
    (lambda path: rewrite(path, labelled("ETHUSDT")), "the sha256 of its values differs"),
    (lambda path: rewrite(path, of_other_labels_here_and_there), "the sha256 of its values differs"),
    (lambda path: rewrite(path, same, saying(content_sha256="ab")), "the sha256 of its values differs"),
    (lambda path: rewrite(path, same, saying(last_key=1)), "the first or last open_time differs"),
    (lambda path: rewrite(path, same, saying(series=str(ETH))), "of binance/spot/klines/ETHUSDT/1h"),
    (lambda path: rewrite(path, lambda table: table.drop_columns(["count"])), "its columns differ"),
    (lambda path: rewrite(path, with_text), "its columns differ"),
    (
        lambda path: parquet.write_table(path, parquet.read_table(path).replace_schema_metadata(None)),
        "its provenance is missing",
    ),
)
"""What can be wrong with a file, and what is said of it."""


@pytest.mark.parametrize("faults", [_FAULTS, _FAULTS[::-1]], ids=["forwards", "backwards"])
@pytest.mark.parametrize("between", [0, 1, 4])
def test_each_damaged_file_among_many_is_named_with_its_fault(
    world: World, faults: Sequence[tuple[Callable[[Path], object], str]], between: int
) -> None:
    wanted = days("2020-01-01", "2020-03-16")
    wrong = dict(zip(wanted[:: between + 1], faults, strict=False))
    for day in wanted:
        write_day(world, BTC, day, 24)
    for day, (break_it, _) in wrong.items():
        break_it(world.layout.file(BTC, day))
    report = verify_local(world.settings, [BTC])
    assert report.files == {BTC: len(wanted)}
    assert report.to_fetch == {BTC: list(wrong)}
    for day, (_, reason) in wrong.items():
        assert str(world.layout.file(BTC, day)) in report.faults[BTC][day]
        assert reason in report.faults[BTC][day]


def test_files_with_other_row_groups_and_row_counts_are_verified(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = days("2020-01-01", "2020-01-08")
    for day in wanted[:4]:
        write_day(world, BTC, day, 20 + day.day % 2)
    monkeypatch.setattr(parquet, "ROW_GROUP_ROWS", 10)
    for day in wanted[4:]:
        write_day(world, BTC, day, 24)
    assert pq.read_metadata(world.layout.file(BTC, wanted[-1])).num_row_groups == 3
    report = verify_local(world.settings, [BTC])
    assert report.all_well
    assert report.rows == 2 * 20 + 2 * 21 + 4 * 24
    rewrite(world.layout.file(BTC, wanted[-1]), swapped, hashed)
    assert "is not strictly ascending" in verify_local(world.settings, [BTC], mark=False).faults[BTC][wanted[-1]]


@pytest.mark.slow
def test_files_verified_by_two_processes_give_the_same_result(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrub, "_WORTH_BYTES", 1)
    wanted = days("2020-01-01", "2020-06-01")
    for day in wanted:
        write_day(world, BTC, day, 24)
    damage(world.layout.file(BTC, wanted[70]))
    before = _workers()
    report = verify_local(world.settings, [BTC], processes=2)
    assert report.files == {BTC: len(wanted)}
    assert report.to_fetch == {BTC: [wanted[70]]}
    assert world.ledger(BTC).rows[wanted[70]].failure == "damaged"
    assert len(world.ledger(BTC).days(HELD)) == len(wanted) - 1
    assert _workers() == before, "no worker is left behind"


def _workers() -> list[psutil.Process]:
    """The children of this process. The trackers of resources live as long as this process."""
    return [one for one in psutil.Process().children() if "resource_tracker" not in " ".join(one.cmdline())]


@dataclass
class ShortPages:
    """A listing with one key on a page."""

    keys: Sequence[str]
    asked: int = 0

    def list_page(self, prefix: str, after: str) -> tuple[list[Line], bool]:
        self.asked += 1
        left = [key for key in self.keys if key > after]
        return [Line(key, "", "") for key in left[:1]], len(left) > 1


def test_page_between_a_zip_and_its_checksum_is_requested_once() -> None:
    keys = [f"f/{day}.zip{end}" for day in range(5) for end in ("", ".CHECKSUM")]
    listing = ShortPages(keys)
    assert list(find_listed(listing, "f/", [key for key in keys if key.endswith(".zip")])[0]) == keys
    assert listing.asked == len(keys)


def test_a_listing_without_end_is_a_trouble_of_its_series(world: World) -> None:
    world.ingest(BTC, days("2026-02-02", "2026-02-04"))
    endless = ShortPages([f"{BTC.archive_folder()}BTCUSDT-1h-2026-02-02.{n:03}" for n in range(999)])
    report = sweep(world.settings, [BTC], endless)
    assert "more than 200 pages" in report.troubles[BTC]
    assert not report.discoveries


def test_invalid_recorded_date_is_no_evidence(world: World) -> None:
    row = DayRecord(day=date(2026, 2, 2), outcome=HELD, last_modified="yesterday")
    assert archive_sweep._is_same(row, Line("k", "", "2026-02-03T08:00:00.000Z")) is None
