"""How days are read and encoded: big ones as small ones."""

from __future__ import annotations

from dataclasses import replace
from datetime import date

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from market_data_pipeline.ingest import encoding
from market_data_pipeline.lake import files
from market_data_pipeline.lake.ledger import LedgerRow
from market_data_pipeline.sandbox import Damage, DamagedArchive, MissingChecksum, MissingRows
from market_data_pipeline.series import SeriesKey
from market_data_pipeline.sources import archive
from market_data_pipeline_tests.world import Result, World, agg_trades, days, klines, utc


def told(world: World, result: Result) -> tuple[date, LedgerRow, str, int, pa.Table | None]:
    """What a result says, without what another time or place of bringing it changes."""
    at_once = replace(result.row, fetched_at=None, asked_at=None, mtime_ns=0, bytes=0)
    reason = getattr(result, "reason", "")
    path = world.layout.file(result.key, result.day)
    return (result.day, at_once, reason, result.downloaded, files.read_table(path) if path.exists() else None)


@pytest.mark.parametrize("key", [klines("BTCUSDT", "1m"), agg_trades("BTCUSDT")], ids=str)
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
    monkeypatch.setattr(archive, "_BODY_BYTES", 1 << 10)
    monkeypatch.setattr(encoding, "_BIG_BYTES", 1)
    monkeypatch.setattr(files, "ROW_GROUP_ROWS", 100)
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
