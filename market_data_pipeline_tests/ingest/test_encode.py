"""How days are read and encoded: big ones as small ones."""

from __future__ import annotations

import io
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import date
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from typing_extensions import override

from market_data_pipeline import clock
from market_data_pipeline.ingest import encode, from_archive, sources
from market_data_pipeline.ingest.day_rows import DayRows
from market_data_pipeline.ingest.encode import Encoded, read_daily, read_zip_days
from market_data_pipeline.lake import parquet
from market_data_pipeline.model.day import DayRecord
from market_data_pipeline.model.provenance import ChecksumStatus
from market_data_pipeline.model.series import ListingSpans, SeriesKey
from market_data_pipeline.sandbox import Damage, DamagedArchive, MissingChecksum, MissingRows
from market_data_pipeline.sources import zips
from market_data_pipeline.sources.binance.archive import ArchiveFile
from market_data_pipeline_tests.support.world import Result, World, agg_trades, days, klines, utc


def told(world: World, result: Result) -> tuple[date, DayRecord, str, int, pa.Table | None]:
    """What a result says, without what another time or place of bringing it changes."""
    at_once = replace(result.row, fetched_at=None, asked_at=None, version=0, bytes=0, file_sha256=None)
    reason = getattr(result, "reason", "")
    path = world.layout.file(result.key, result.day)
    return (result.day, at_once, reason, result.downloaded, parquet.read_table(path) if path.exists() else None)


@pytest.mark.parametrize("key", [klines("BTCUSDT", "5m"), agg_trades("BTCUSDT")], ids=str)
def test_big_days_which_threads_share_are_the_same(
    world: World, key: SeriesKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = world.sandbox.faults
    faults.add(MissingRows(start=utc("2026-02-05T10:00"), end=utc("2026-02-05T10:20")))
    faults.add(MissingChecksum(days=[date(2026, 2, 6)]))
    faults.add(DamagedArchive(days=[date(2026, 2, 7)], damage=Damage.NOT_A_ZIP))
    faults.add(DamagedArchive(days=[date(2026, 2, 9)], damage=Damage.DUPLICATES))
    faults.add(DamagedArchive(days=[date(2026, 2, 10)], damage=Damage.CONFLICTING_DUPLICATES))
    wanted = days("2026-01-01", "2026-02-12") if key.interval else days("2026-02-03", "2026-02-12")
    small = [told(world, result) for result in world.ingest(key, wanted)]
    # Ten pieces of a day or more, of both kinds.
    body, rows = (1 << 8, 20) if key.interval else (1 << 14, 1500)
    monkeypatch.setattr(zips, "_BODY_BYTES", body)
    monkeypatch.setattr(encode, "_BIG_BYTES", 1)
    monkeypatch.setattr(parquet, "ROW_GROUP_ROWS", rows)
    other = World(world.root / "other", world.sandbox, monkeypatch)
    big = [told(other, result) for result in other.ingest(key, wanted)]
    assert big == small
    assert {row.failure for _, row, *_ in small} == {None, "malformed", "conflict"}


@pytest.mark.parametrize(("key", "codec"), [(klines("BTCUSDT", "1m"), "LZ4"), (agg_trades("BTCUSDT"), "ZSTD")], ids=str)
def test_candles_are_compressed_for_speed_and_trades_for_size(world: World, key: SeriesKey, codec: str) -> None:
    day = date(2026, 2, 3)
    world.ingest(key, [day])
    path = world.layout.file(key, day)
    group = pq.read_metadata(path).row_group(0)
    assert {group.column(n).compression for n in range(group.num_columns)} == {codec}
    assert duckdb.read_parquet(str(path)).arrow().read_all().num_rows == group.num_rows


HOURS = klines("BTCUSDT", "1h")
FEBRUARY = days("2026-02-01", "2026-02-28")


def candles(day: date, fault: str) -> list[list[object]]:
    """The rows of a day's CSV, with a fault."""
    begin, hour = clock.day_start_us(day), 3_600_000_000
    rows: list[list[object]] = [
        [begin + n * hour, 5, 9, 1, 6, 100 + day.day, begin + (n + 1) * hour - 1, 7, 3, 4, 5, 0] for n in range(24)
    ]
    if fault == "quiet":
        rows[3][5] = rows[3][8] = rows[3][9] = 0
    elif fault == "cut short":
        rows[3][6] = begin
    elif fault == "negative":
        rows[3][7], rows[3][10] = -1, -2
    elif fault == "lacking":
        del rows[3]
    elif fault == "twice":
        rows.insert(3, rows[3])
    elif fault == "out of order":
        rows[3:5] = rows[4], rows[3]
    return rows


def zip_of(stem: str, rows: list[list[object]]) -> ArchiveFile:
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(f"{stem}.csv", "".join(",".join(map(str, row)) + "\n" for row in rows))
    return ArchiveFile(
        f"http://archive/{stem}.zip", body.getvalue(), "0" * 64, None, None, ChecksumStatus.VERIFIED, utc("2026-03-02")
    )


FAULTS = ["", "quiet", "cut short", "negative", "lacking", "twice", "out of order"]


@settings(max_examples=30)
@given(st.dictionaries(st.sampled_from(FEBRUARY), st.sampled_from(FAULTS), max_size=3))
@example({})
@example({FEBRUARY[0]: "quiet", FEBRUARY[-1]: "quiet"})
def test_day_of_a_monthly_zip_equals_its_own_zip_or_is_not_taken(faults: dict[date, str]) -> None:
    of_days = {day: candles(day, faults.get(day, "")) for day in FEBRUARY}
    monthly = zip_of("BTCUSDT-1h-2026-02", [row for rows in of_days.values() for row in rows])
    months = read_zip_days(HOURS, monthly, FEBRUARY[0], FEBRUARY[-1], ListingSpans())
    assert list(months) == FEBRUARY
    assert all(isinstance(months[day], Encoded) for day in FEBRUARY if not faults.get(day))
    for day in {*faults, FEBRUARY[0], FEBRUARY[-1]}:
        found, rows = months[day], of_days[day]
        own = read_zip_days(HOURS, zip_of(f"BTCUSDT-1h-{day}", rows), day, day, ListingSpans())[day]
        if faults.get(day) in ("lacking", "negative"):
            assert isinstance(found, DayRows)
            continue
        assert isinstance(found, Encoded)
        assert isinstance(own, Encoded)
        assert found.record.model_copy(update={"parts": own.record.parts}) == own.record
        assert parquet.read_encoded(found.parquet).equals(parquet.read_encoded(own.parquet))
        assert bool(own.record.findings) == bool(faults.get(day))


@settings(max_examples=30)
@given(st.lists(st.tuples(st.sampled_from(FEBRUARY), st.sampled_from(FAULTS)), unique_by=lambda d: d[0], min_size=1))
@example([(day, "") for day in FEBRUARY])
@example([(FEBRUARY[3], ""), (FEBRUARY[1], "quiet")])
def test_batched_daily_zips_equal_single_reads_or_are_not_read(
    faults: list[tuple[date, str]],
) -> None:
    zips = {day: zip_of(f"BTCUSDT-1h-{day}", candles(day, fault)) for day, fault in faults}
    together = dict(read_daily(HOURS, zips))
    assert list(together) == (list(zips) if {fault for _, fault in faults} <= {"", "quiet"} else [])
    for day, found in together.items():
        own = read_zip_days(HOURS, zips[day], day, day, ListingSpans())[day]
        assert isinstance(own, Encoded)
        assert (found.record, found.downloaded) == (own.record, own.downloaded)
        assert parquet.read_encoded(found.parquet).equals(parquet.read_encoded(own.parquet))


def test_run_batches_daily_zips_and_reads_faulty_ones_alone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    faults, wanted = world.sandbox.faults, days("2026-02-01", "2026-02-20")
    faults.add(MissingRows(start=utc("2026-02-05T10:00"), end=utc("2026-02-05T10:20")))
    faults.add(MissingChecksum(days=[date(2026, 2, 6)]))
    faults.add(DamagedArchive(days=[date(2026, 2, 7)], damage=Damage.NOT_A_ZIP))
    faults.add(DamagedArchive(days=[date(2026, 2, 9)], damage=Damage.DUPLICATES))
    faults.add(DamagedArchive(days=[date(2026, 2, 10)], damage=Damage.CONFLICTING_DUPLICATES))
    key, together = klines("BTCUSDT", "1m"), set[date]()
    waiting = threading.Semaphore(0)

    def until_all_wait() -> None:
        for _ in range(16):  # the number of days in progress
            assert waiting.acquire(timeout=60)

    class Gated(ThreadPoolExecutor):
        """Compute nothing until all days in progress wait, so that the batches do not depend on the machine."""

        @override
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            super().submit(until_all_wait)

        @override
        def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            future = super().submit(function, *args, **kwargs)
            waiting.release()
            return future

    def noted(of: SeriesKey, zips: Mapping[date, ArchiveFile]) -> Iterator[tuple[date, Encoded]]:
        together.update(zips)
        return read_daily(of, zips)

    monkeypatch.setattr(from_archive, "read_daily", noted)
    monkeypatch.setattr(sources, "cpus", lambda: 1)
    world.set(download_threads=8)
    with monkeypatch.context() as patched:
        patched.setattr(sources, "ThreadPoolExecutor", Gated)
        in_parts = [told(world, result) for result in world.ingest(key, wanted)]
    assert together.issuperset(wanted[:16])
    monkeypatch.setattr(from_archive, "_SMALL_BYTES", 0)
    other = World(world.root / "other", world.sandbox, monkeypatch)
    together.clear()
    assert [told(other, result) for result in other.ingest(key, wanted)] == in_parts
    assert not together
