"""Ledgers are compared with the files on disk, fast, and with the same result as day by day."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market_data_pipeline import clock
from market_data_pipeline.lake.closed_months import close_months
from market_data_pipeline.lake.day_records import corrected, is_as_on_disk
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.partitions import day_columns, day_files
from market_data_pipeline_tests.support.small_lake import SmallLake, series

BTC = series("BTCUSDT", "1h")
FIRST = date(2024, 1, 30)


@settings(max_examples=25, deadline=None)
@given(
    st.sets(st.dates(date(2023, 12, 1), date(2024, 4, 30)), max_size=30),
    st.dictionaries(st.sampled_from([date(2023, 12, 1), date(2024, 2, 1), date(2024, 3, 1)]), st.integers(0, 10**10)),
)
def test_stored_days_are_those_of_day_files(
    tmp_path_factory: pytest.TempPathFactory, days: set[date], months: dict[date, int]
) -> None:
    """Days of a closed month have their share of its bytes, and their own files do not count."""
    layout = Layout(tmp_path_factory.mktemp("lake"))
    for folder in (layout.folder(BTC), layout.months(BTC)):
        folder.mkdir(parents=True)
    for number, day in enumerate(days):
        layout.file(BTC, day).write_bytes(b"x" * number)
    for month, size in months.items():
        layout.month(BTC, month).touch()
        os.truncate(layout.month(BTC, month), size)
    expected = [
        (clock.day_number(day), file.stat.bytes, file.stat.version) for day, file in day_files(layout, BTC).items()
    ]
    assert list(zip(*(column.tolist() for column in day_columns(layout, BTC)), strict=True)) == expected


def _touched(lake: SmallLake) -> None:
    os.utime(lake.layout.file(BTC, FIRST), ns=(1, 1))


def _longer(lake: SmallLake) -> None:
    path = lake.layout.file(BTC, FIRST)
    stat = path.stat()
    path.write_bytes(path.read_bytes() + b" ")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def _removed(lake: SmallLake) -> None:
    lake.layout.file(BTC, FIRST).unlink()


def _without_ledger(lake: SmallLake) -> None:
    lake.layout.ledger(BTC).unlink()


def _damaged_ledger(lake: SmallLake) -> None:
    lake.layout.ledger(BTC).write_bytes(b"PAR1")


def _older_ledger(lake: SmallLake) -> None:
    """Replace the ledger by one that does not know the last day."""
    shutil.copyfile(lake.layout.root / "older", lake.layout.ledger(BTC))


@pytest.mark.parametrize("change", [_touched, _longer, _removed, _without_ledger, _damaged_ledger, _older_ledger])
def test_changed_file_or_ledger_is_seen(tmp_path: Path, change: Callable[[SmallLake], None]) -> None:
    lake = SmallLake(tmp_path)
    lake.put(BTC, [FIRST])
    shutil.copyfile(lake.layout.ledger(BTC), tmp_path / "older")
    lake.put(BTC, [FIRST + timedelta(days=1)])
    assert is_as_on_disk(lake.layout, BTC)
    assert not corrected(lake.layout, [BTC]).num_rows

    change(lake)

    assert not is_as_on_disk(lake.layout, BTC)
    assert corrected(lake.layout, [BTC]).num_rows == 2


def test_a_closed_month_matches_its_ledger(tmp_path: Path) -> None:
    lake = SmallLake(tmp_path)
    lake.put(BTC, clock.days_of_month(date(2024, 2, 1)))
    lake.put(BTC, [date(2024, 3, 1)])
    assert close_months(lake.layout, BTC) == [date(2024, 2, 1)]
    assert is_as_on_disk(lake.layout, BTC)
    os.utime(lake.layout.month(BTC, date(2024, 2, 1)), ns=(1, 1))
    assert not is_as_on_disk(lake.layout, BTC)
