"""Depth of the order book: a key of two columns, ten and twelve bands, and content that freezes."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from market_data_pipeline import GapError, MarketData, UsageError
from market_data_pipeline.checks.diff import difference, key_format
from market_data_pipeline.checks.integrity import check_integrity
from market_data_pipeline.checks.ordering import in_order, ints
from market_data_pipeline.lake.checksums import verify_days
from market_data_pipeline.model.datasets import spec_of
from market_data_pipeline.model.outcomes import DayFailure, DayOutcome
from market_data_pipeline.model.series import EXCHANGE, DataType, Market, SeriesKey
from market_data_pipeline.sandbox import Damage, DamagedArchive, MissingRows, Sandbox, write_mirror
from market_data_pipeline.sandbox.zips import make_zip
from market_data_pipeline.sources.binance.zip_reader import read_zip
from market_data_pipeline_tests.support.shell import shell
from market_data_pipeline_tests.support.world import Result, World, utc

UM = SeriesKey(EXCHANGE, Market.UM, DataType.BOOK_DEPTH, "BTCUSDT")
CM = SeriesKey(EXCHANGE, Market.CM, DataType.BOOK_DEPTH, "BTCUSD_PERP")
DAY = date(2026, 2, 10)


def stored(result: Result) -> DayOutcome:
    assert isinstance(result, DayOutcome), result
    return result


def values(table: pa.Table, name: str) -> list[Any]:
    return list(table.column(name).to_pylist())


def rules(table: pa.Table) -> dict[str, int]:
    return {finding.rule: finding.count for finding in check_integrity(UM, table)}


@pytest.mark.parametrize("key", [UM, CM], ids=lambda key: str(key.market))
def test_day_has_twelve_bands_per_snapshot(world: World, key: SeriesKey) -> None:
    one = stored(world.one(key, str(DAY)))
    table = world.table(key, str(DAY))
    assert (one.row.final, one.row.verdicts, one.row.integrity) == (True, "", "info")
    assert table.num_rows == 12 * len(set(values(table, "timestamp")))
    assert values(table, "percentage")[:12] == [-5, -4, -3, -2, -1, -0.2, 0.2, 1, 2, 3, 4, 5]
    assert not [fault for fault in (found.fault for found in verify_days(world.layout, key, [DAY])) if fault]


def test_day_of_the_change_has_ten_and_twelve_bands(world: World) -> None:
    one = stored(world.one(UM, "2026-01-15"))
    times = values(world.table(UM, "2026-01-15"), "timestamp")
    assert set(Counter(times).values()) == {10, 12}
    assert one.row.integrity == "info"


def test_frozen_inner_bands_are_found(world: World) -> None:
    """As since 2026-09-03. The outer bands still change."""
    stored(world.one(UM, str(DAY)))
    table = world.table(UM, str(DAY))
    bands, times = values(table, "percentage"), values(table, "timestamp")
    for hours, most in ((24, len(times)), (2, 300 * 4)):
        until = utc(f"{DAY}T{hours:02}:00").replace(tzinfo=None) if hours < 24 else times[-1]
        inner = [abs(band) <= 1 and at <= until for band, at in zip(bands, times, strict=True)]
        frozen = table
        for name in ("depth", "notional"):
            same = [1.0 if of else value for of, value in zip(inner, values(table, name), strict=True)]
            at = table.schema.get_field_index(name)
            frozen = frozen.set_column(at, table.schema.field(name), pa.array(same))
        found = rules(frozen)
        assert sum(inner) == found["frozen"] <= most
    assert "frozen" not in rules(table)


def test_day_with_frozen_bands_is_a_gap_for_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its checksum is right, so it is stored as published."""
    (path,) = write_mirror(tmp_path / "mirror", [UM], [DAY])
    with zipfile.ZipFile(path) as archive:
        header, *lines = archive.read(archive.namelist()[0]).decode().splitlines()
    rows = [line.split(",") for line in lines]
    frozen = [[*row[:2], "1.0", "1.0"] if abs(float(row[1])) <= 1 else row for row in rows]
    data = make_zip([(f"{path.stem}.csv", "\n".join([header, *map(",".join, frozen), ""]).encode())])
    path.write_bytes(data)
    path.with_name(f"{path.name}.CHECKSUM").write_text(f"{hashlib.sha256(data).hexdigest()}  {path.name}\n")
    with Sandbox(mirror=tmp_path / "mirror") as sandbox:
        world = World(tmp_path, sandbox, monkeypatch)
        world.at("2026-03-05T12:00")
        one = stored(world.one(UM, str(DAY)))
    assert (one.row.final, one.row.integrity) == (True, "error")
    assert [finding.rule for finding in one.row.findings_list()] == ["frozen"]
    with pytest.raises(GapError, match="the same depth and value for an hour"):
        MarketData(world.layout.root).book_depth("BTCUSDT", str(DAY), "2026-02-11", on_gap="raise")


def test_bands_that_shrink_or_lack_are_reported(world: World) -> None:
    stored(world.one(UM, str(DAY)))
    table = world.table(UM, str(DAY)).slice(0, 24)
    depths = values(table, "depth")
    depths[11] = 1.0
    at = table.schema.get_field_index("depth")
    assert rules(table.set_column(at, table.schema.field("depth"), pa.array(depths))) == {"cumulative": 1}
    assert rules(table.slice(1)) == {"bands": 11}


def test_pause_without_snapshots_is_an_archive_defect(world: World) -> None:
    for start, end in (("00:00", "00:10"), ("12:00", "12:30"), ("23:50", "23:59:59")):
        gone = MissingRows(start=utc(f"{DAY}T{start}"), end=utc(f"{DAY}T{end}"), series="bookDepth")
        world.sandbox.faults.add(gone)
    one = stored(world.one(UM, str(DAY)))
    (finding,) = one.row.findings_list()
    assert (one.row.verdicts, len(finding.ranges)) == ("archive_defect", finding.count)
    assert 95 <= finding.count <= 105
    assert "snapshots are missing in the archive" in finding.message


def test_equal_rows_are_stored_once_and_others_refused(world: World) -> None:
    world.sandbox.faults.add(DamagedArchive(days=(DAY,), damage=Damage.DUPLICATES, series="bookDepth"))
    one = stored(world.one(UM, str(DAY)))
    assert [(finding.rule, finding.count) for finding in one.row.findings_list()] == [("duplicates", 1)]
    world.sandbox.faults.add(DamagedArchive(days=(DAY,), damage=Damage.CONFLICTING_DUPLICATES, series="bookDepth"))
    result = world.one(CM, str(DAY))
    assert isinstance(result, DayFailure)
    assert result.failure == "conflict"


def test_rows_out_of_order_are_sorted_by_both_columns(world: World) -> None:
    stored(world.one(UM, str(DAY)))
    table = world.table(UM, str(DAY)).slice(0, 48)
    for order in (list(range(48))[::-1], [*range(12, 48), *range(12)]):
        ordered, findings, conflict = in_order(table.take(order), spec_of(UM))
        assert (ordered.to_pylist(), conflict) == (table.to_pylist(), None)
        assert [finding.rule for finding in findings] == ["order"]


def test_versions_of_a_day_differ_by_snapshot(world: World) -> None:
    """One band changes, one snapshot loses a band and one is removed."""
    stored(world.one(UM, str(DAY)))
    before = world.table(UM, str(DAY)).slice(0, 60)
    depths = values(before, "depth")
    depths[14] = 7.0
    changed = before.set_column(before.schema.get_field_index("depth"), before.schema.field("depth"), pa.array(depths))
    after = pa.concat_tables([changed.slice(0, 24), changed.slice(25, 11), changed.slice(48)])
    found = difference(before, after, spec_of(UM), key_format(UM))
    times = ints(before, "timestamp")[::12]
    assert (found.removed.tolist(), found.changed.tolist()) == ([times[3]], [times[1], times[2]])
    assert found.examples[0].endswith("→ 7.0")
    assert len(found.added) == 0
    assert not difference(before, before, spec_of(UM), key_format(UM))


def test_added_depth_is_served_by_python_and_sql(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    run = shell(world, monkeypatch, f"collect:\n  - {{market: um, symbols: [ETHUSDT], bookDepth: {{from: {DAY}}}}}\n")
    result = run("add", "BTCUSDT", "bookDepth", "--market", "um", "--from", str(DAY), "--through", str(DAY), "--yes")
    assert result.exit_code == 0, result.output
    market = MarketData(world.layout.root)
    rows = market.book_depth("BTCUSDT", str(DAY), "2026-02-11", on_gap="raise")
    (row,) = market.sql("SELECT count(*) AS n FROM binance_um.book_depth WHERE percentage = 0.2").arrow().to_pylist()
    assert row["n"] * 12 == len(rows)
    with pytest.raises(UsageError, match="Several bookDepth can share a time"):
        rows.wide("depth")
    with pytest.raises(UsageError, match="spot has no bookDepth"):
        market.book_depth("BTCUSDT", str(DAY), market="spot")


def test_recorded_snapshots_are_read_value_by_value(realdata: Path) -> None:
    sample = realdata / "datatypes" / "Replikanti__mie" / "BTCUSDT-bookDepth-2026-09-30.csv"
    if not sample.exists():
        pytest.skip("the recorded sample of bookDepth is not here")
    text, day = sample.read_text(), date(2026, 9, 30)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(f"BTCUSDT-bookDepth-{day}.csv", text)
    table = read_zip(file.getvalue(), UM, f"BTCUSDT-bookDepth-{day}", day, day)
    rows = [line.split(",") for line in text.splitlines()[1:]]
    assert [str(at) for at in values(table, "timestamp")] == [row[0] for row in rows]
    for at, name in enumerate(("percentage", "depth", "notional"), start=1):
        assert values(table, name) == [float(row[at]) for row in rows]
    assert "cumulative" not in rules(in_order(table, spec_of(UM))[0])
