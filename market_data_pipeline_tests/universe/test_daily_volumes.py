"""The table of daily volumes follows the lake, and only changed files are read again."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market_data_pipeline import clock
from market_data_pipeline.errors import DamagedFileError
from market_data_pipeline.lake import reader
from market_data_pipeline.lake.closed_months import close_months, remove_closed_days
from market_data_pipeline.maintenance.compaction import compact
from market_data_pipeline.model.series import Market
from market_data_pipeline.settings import load_settings
from market_data_pipeline.universe.daily_volumes import collect_daily_volumes, refresh_daily_volumes
from market_data_pipeline_tests.support.full_size import sized
from market_data_pipeline_tests.support.small_lake import SmallLake, series

KEYS = [series(symbol, "1d") for symbol in ("AUSDT", "BUSDT", "CUSDT")]
FEBRUARY = clock.days_of_month(date(2023, 2, 1))
DAYS = clock.days_between(FEBRUARY[0], FEBRUARY[-1] + timedelta(days=5))


def rows(lake: SmallLake) -> list[dict[str, Any]]:
    return refresh_daily_volumes(lake.layout, Market.SPOT).drop_columns("modified_ns").to_pylist()


def expected(versions: dict[tuple[int, date], int]) -> list[dict[str, Any]]:
    names = ("volume", "quote_volume", "count")
    ordered = sorted(versions.items())
    return [
        {"symbol": KEYS[one].symbol, "day": day, **dict.fromkeys(names, version)} for (one, day), version in ordered
    ]


STEPS = st.one_of(
    st.tuples(st.just("put"), st.integers(0, 2), st.sets(st.sampled_from(DAYS), min_size=1, max_size=4)),
    st.tuples(st.just("remove"), st.integers(0, 2), st.sets(st.sampled_from(DAYS), min_size=1, max_size=4)),
    st.tuples(st.just("fill"), st.integers(0, 2), st.just(set(FEBRUARY))),
    st.tuples(st.just("close"), st.integers(0, 2), st.just(set[date]())),
    st.tuples(st.just("forget"), st.integers(0, 2), st.just(set[date]())),
)


@settings(max_examples=sized(12, 40), deadline=None)
@given(st.lists(STEPS, max_size=7))
def test_table_follows_any_changes_of_the_lake(
    tmp_path_factory: pytest.TempPathFactory, steps: Sequence[tuple[str, int, set[date]]]
) -> None:
    """Days that are added, replaced or removed, months that are closed, and a lost table."""
    lake = SmallLake(tmp_path_factory.mktemp("lake"))
    versions: dict[tuple[int, date], int] = {}
    for version, (step, one, days) in enumerate(steps, start=1):
        key = KEYS[one]
        if step in ("put", "fill"):
            free = [day for day in sorted(days) if not lake.layout.month(key, day).exists()]
            lake.put(key, free, version=version)
            versions |= {(one, day): version for day in free}
        elif step == "remove":
            for day in days:
                if lake.layout.file(key, day).exists() and not lake.layout.month(key, day).exists():
                    lake.layout.file(key, day).unlink()
                    del versions[one, day]
        elif step == "close":
            for month in close_months(lake.layout, key):
                remove_closed_days(lake.layout, key, clock.days_of_month(month))
        else:
            lake.layout.daily_volumes(Market.SPOT).unlink(missing_ok=True)
        assert rows(lake) == expected(versions)


def test_month_that_is_closed_during_the_read_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = SmallLake(tmp_path)
    for key in KEYS:
        lake.put(key, FEBRUARY, version=3)
    read, calls = reader.read_whole, list[int]()

    def closing(files: Sequence[tuple[Path, int]], *rest: Any) -> list[pa.Table | None]:
        calls.append(len(files))
        if len(calls) == 1:
            close_months(lake.layout, KEYS[1])
            remove_closed_days(lake.layout, KEYS[1], FEBRUARY)
        return read(files, *rest)

    monkeypatch.setattr(reader, "read_whole", closing)
    assert rows(lake) == expected({(one, day): 3 for one in range(3) for day in FEBRUARY})
    assert calls == [3 * len(FEBRUARY), 1]


def test_files_that_vanish_at_each_read_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = SmallLake(tmp_path)
    lake.put(KEYS[0], FEBRUARY[:1])
    monkeypatch.setattr(reader, "read_whole", lambda files, *_: [None for _ in files])
    with pytest.raises(DamagedFileError, match="AUSDT/1d are removed during the read"):
        refresh_daily_volumes(lake.layout, Market.SPOT)


def test_only_changed_files_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = SmallLake(tmp_path)
    for key in KEYS:
        lake.put(key, DAYS)
    rows(lake)
    lake.put(KEYS[1], DAYS[3:5], version=9)
    read, found = reader.read_whole, list[str]()

    def noted(files: Sequence[tuple[Path, int]], *rest: Any) -> list[pa.Table | None]:
        found.extend(str(path) for path, _ in files)
        return read(files, *rest)

    monkeypatch.setattr(reader, "read_whole", noted)
    rows(lake)
    assert found == [str(lake.layout.file(KEYS[1], day)) for day in DAYS[3:5]]


def test_compaction_updates_the_table(tmp_path: Path) -> None:
    lake = SmallLake(tmp_path)
    lake.put(KEYS[0], FEBRUARY)
    compact(load_settings(dir=tmp_path), KEYS[:1])
    assert lake.layout.daily_volumes(Market.SPOT).exists()


def test_new_table_is_left_alone_by_the_next_run(tmp_path: Path) -> None:
    lake = SmallLake(tmp_path)
    path = lake.layout.daily_volumes(Market.SPOT)
    lake.put(KEYS[0], DAYS[:1])
    collect_daily_volumes(lake.layout, [series("AUSDT", "1h")])
    assert not path.exists()
    collect_daily_volumes(lake.layout, KEYS, older_than_seconds=60)
    first = path.stat()
    lake.put(KEYS[0], DAYS[:2])
    collect_daily_volumes(lake.layout, KEYS, older_than_seconds=60)
    assert path.stat() == first
    collect_daily_volumes(lake.layout, KEYS)
    assert path.stat() != first


def test_unreadable_candles_do_not_fail_the_writer(tmp_path: Path) -> None:
    lake = SmallLake(tmp_path)
    lake.put(KEYS[0], DAYS[:1])
    lake.layout.file(KEYS[0], DAYS[0]).write_bytes(b"PAR1")
    collect_daily_volumes(lake.layout, KEYS)
    with pytest.raises(DamagedFileError, match=r"2023-02-01\.parquet is damaged"):
        refresh_daily_volumes(lake.layout, Market.SPOT)
