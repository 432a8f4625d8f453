"""The seam between lake and hot rows, and days that travel between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from market_data_pipeline import UsageError, clock
from market_data_pipeline.lake.live_eviction import evict_final_days
from market_data_pipeline.lake.live_rows import LiveWriter, remove_live_rows
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.stores import parquet
from market_data_pipeline.stores.base import RowState, SaveReport, Store
from market_data_pipeline.stores.hybrid import HybridStore
from market_data_pipeline.stores.parquet import ParquetStore
from market_data_pipeline.stores.postgres import PostgresStore
from market_data_pipeline.stores.push import PushReport, evict, push
from market_data_pipeline_tests.support.full_size import sized
from market_data_pipeline_tests.support.live_world import live_rows_of
from market_data_pipeline_tests.support.small_lake import SmallLake, day_table, days_from, series

HOURS = series("BTCUSDT", "1h")
DAYS = days_from("2024-03-01", 6)


@pytest.fixture
def lake(tmp_path: Path) -> SmallLake:
    return SmallLake(tmp_path)


def truth(days: list[date] = DAYS, version: int = 1) -> pa.Table:
    return pa.concat_tables([day_table(HOURS, day, version) for day in days])


def pushed(lake: SmallLake, store: PostgresStore, days: list[date] = DAYS) -> PushReport:
    report = PushReport()
    push(lake.layout, store, HOURS, days, report)
    return report


@given(places=st.lists(st.sampled_from(["final", "provisional", "hot", "both"]), min_size=6, max_size=6))
@settings(max_examples=sized(12, 40), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_split_of_days_is_read_without_a_seam(
    places: list[str], tmp_path_factory: pytest.TempPathFactory, postgres: PostgresStore
) -> None:
    """Each day lies in the lake, in the hot store or in both. The hot rows of final days are wrong on purpose."""
    lake = SmallLake(tmp_path_factory.mktemp("lake"))
    postgres.delete(HOURS)
    for day, place in zip(DAYS, places, strict=True):
        if place != "hot":
            lake.put(HOURS, [day], version=1, final=place != "provisional")
        if place != "final":
            state = RowState.PROVISIONAL if place == "hot" else RowState.LIVE
            postgres.save(HOURS, day_table(HOURS, day, 1 if place == "hot" else 2), state)
    both = HybridStore(ParquetStore(lake.root), postgres)

    assert both.load(HOURS).equals(truth())
    start, end = datetime(2024, 3, 2, 7, tzinfo=UTC), datetime(2024, 3, 5, 3, tzinfo=UTC)
    assert both.load(HOURS, start, end).equals(truth().slice(31, 68))
    assert both.load(HOURS, last=70).equals(truth().slice(144 - 70))
    assert both.get_date_range(HOURS) == (DAYS[0], DAYS[-1])
    assert both.get_missing_dates(HOURS, DAYS[0], DAYS[-1]) == []


@dataclass
class Moving(Store):
    """A hot store whose rows move into the lake between two reads of a hybrid store."""

    move: Callable[[], None]
    rows: list[pa.Table] = field(default_factory=list)

    def load(self, key: SeriesKey, *_: Any, **__: Any) -> pa.Table:
        self.move()
        return self.rows.pop(0)

    def save(self, *_: Any, **__: Any) -> SaveReport:
        raise NotImplementedError

    def exists(self, *_: Any) -> bool:
        raise NotImplementedError

    def delete(self, *_: Any) -> int:
        raise NotImplementedError

    def get_date_range(self, key: SeriesKey) -> tuple[date, date] | None:
        raise NotImplementedError

    def get_missing_dates(self, key: SeriesKey, first: date, last: date) -> list[date]:
        raise NotImplementedError


def test_row_that_moves_into_the_lake_is_not_lost(lake: SmallLake) -> None:
    """The day becomes final and leaves the hot store after the lake was listed: the read is repeated."""
    lake.put(HOURS, DAYS[:1], version=1)
    nothing = ParquetStore(lake.root).load(HOURS, with_state=True).slice(0, 0)
    hot = Moving(lambda: lake.put(HOURS, DAYS[1:2], version=1), [nothing, nothing])

    assert HybridStore(ParquetStore(lake.root), hot).load(HOURS).equals(truth(DAYS[:2]))
    assert hot.rows == []


@pytest.fixture
def feed(lake: SmallLake) -> Iterator[LiveWriter]:
    """The live feed of the lake's data folder."""
    with LiveWriter(lake.layout) as writer:
        yield writer


def test_rows_of_the_live_feed_are_read(lake: SmallLake, feed: LiveWriter, postgres: PostgresStore) -> None:
    """A final day, one that is provisional up to noon, one of the feed alone, and one of another machine's feed."""
    lake.put(HOURS, DAYS[:1], version=1)
    lake.note(HOURS, lake.write_file(HOURS, DAYS[1], final=False, table=truth(DAYS[1:2]).slice(0, 12)))
    feed.append(HOURS, live_rows_of(day_table(HOURS, DAYS[0], 7), HOURS))  # the archive has other values
    feed.append(HOURS, live_rows_of(truth(DAYS[1:2]).slice(6), HOURS))
    feed.append(HOURS, live_rows_of(truth(DAYS[2:3]).slice(0, 20), HOURS))
    postgres.save(HOURS, truth(DAYS[2:4]), RowState.LIVE)
    cold, both = ParquetStore(lake.root), HybridStore(ParquetStore(lake.root), postgres)

    assert cold.load(HOURS).equals(truth(DAYS[:3]).slice(0, 68))
    assert both.load(HOURS).equals(truth(DAYS[:4]))
    found = cold.load(HOURS, with_state=True)
    states = dict.fromkeys(range(68), RowState.LIVE) | dict.fromkeys(range(36), RowState.PROVISIONAL)
    states |= dict.fromkeys(range(24), RowState.FINAL)
    assert found["state"].to_pylist() == [states[n] for n in range(68)]
    assert found["seen_at"][40] == found["open_time"][40]
    assert cold.load(HOURS, datetime(2024, 3, 2, 10, tzinfo=UTC), last=30).equals(truth(DAYS[:3]).slice(38, 30))
    assert cold.get_date_range(HOURS) == (DAYS[0], DAYS[2])
    assert both.get_missing_dates(HOURS, DAYS[0], DAYS[4]) == [DAYS[4]]
    assert ParquetStore(lake.root, include_live=False).load(HOURS).num_rows == 36


def test_live_row_that_becomes_final_is_not_lost(
    lake: SmallLake, feed: LiveWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The archive arrives, and the live rows are removed, between any two looks of a read."""
    store, calls = ParquetStore(lake.root), 0

    def moved(look: Callable[..., Any], at: int) -> Callable[..., Any]:
        def looked(*arguments: Any, **others: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == at:
                lake.put(HOURS, DAYS[:1], version=1)
                for _ in evict_final_days(lake.layout, HOURS, DAYS[5]):
                    pass
            return look(*arguments, **others)

        return looked

    for at in range(1, 8):
        lake.layout.file(HOURS, DAYS[0]).unlink(missing_ok=True)
        lake.layout.ledger(HOURS).unlink(missing_ok=True)
        feed.append(HOURS, live_rows_of(truth(DAYS[:1]), HOURS))
        calls = 0
        with monkeypatch.context() as patch:
            for name in ("live_days", "read_live_rows", "stored_dates", "day_files_between", "read_days"):
                patch.setattr(parquet, name, moved(getattr(parquet, name), at))
            assert store.load(HOURS).equals(truth(DAYS[:1])), at
        feed.release(HOURS, DAYS[0])
        remove_live_rows(lake.layout, HOURS, DAYS[0])
    assert calls >= 4


# --- the lake as a store ---------------------------------------------------------------------------------------------


def test_rows_from_outside_never_touch_files_of_the_lake(lake: SmallLake) -> None:
    lake.put(HOURS, DAYS[:1], version=1)
    lake.put(HOURS, DAYS[1:2], version=1, final=False)
    files = {path: path.read_bytes() for path in (lake.root / "lake").rglob("*") if path.is_file()}
    store = ParquetStore(lake.root)

    with pytest.raises(UsageError, match="only a verified archive makes a day of the lake final"):
        store.save(HOURS, day_table(HOURS, DAYS[2]), RowState.FINAL)
    assert store.save(HOURS, day_table(HOURS, DAYS[0], 9)).ignored == 24
    assert store.save(HOURS, day_table(HOURS, DAYS[2], 1)).inserted == 24

    assert {path: path.read_bytes() for path in (lake.root / "lake").rglob("*") if path.is_file()} == files
    assert store.load(HOURS).equals(truth(DAYS[:3]))
    states = store.load(HOURS, with_state=True)["state"].to_pylist()
    assert states == [RowState.FINAL] * 24 + [RowState.PROVISIONAL] * 48
    lake.put(HOURS, DAYS[2:3], version=4)
    assert store.load(HOURS, clock.midnight(DAYS[2])).equals(day_table(HOURS, DAYS[2], 4))
    assert store.delete(HOURS) == 24
    assert store.load(HOURS, clock.midnight(DAYS[2])).equals(day_table(HOURS, DAYS[2], 4))


# --- push and evict --------------------------------------------------------------------------------------------------


def test_push_copies_each_day_once(lake: SmallLake, postgres: PostgresStore) -> None:
    lake.put(HOURS, DAYS[:3], version=1)

    first = pushed(lake, postgres)
    assert (first.copied, first.rows, first.unchanged) == (3, 72, 0)
    assert postgres.load(HOURS).equals(truth(DAYS[:3]))
    assert set(postgres.load(HOURS, with_state=True)["state"].to_pylist()) == {RowState.FINAL}

    lake.put(HOURS, DAYS[3:4], version=1)
    second = pushed(lake, postgres)
    assert (second.copied, second.rows, second.unchanged) == (1, 24, 3)
    assert postgres.load(HOURS).equals(truth(DAYS[:4]))


def test_push_copies_a_provisional_day_again_when_final(lake: SmallLake, postgres: PostgresStore) -> None:
    """The archive has another close, and one candle less."""
    lake.put(HOURS, DAYS[:1], version=1, final=False)
    assert pushed(lake, postgres).copied == 1
    lake.put_table(HOURS, DAYS[0], day_table(HOURS, DAYS[0], 2).slice(0, 23))

    report = pushed(lake, postgres)
    assert (report.copied, report.replaced) == (1, 0)
    assert postgres.load(HOURS).equals(day_table(HOURS, DAYS[0], 2).slice(0, 23))


def test_archive_that_was_replaced_is_copied_again(lake: SmallLake, postgres: PostgresStore) -> None:
    lake.put(HOURS, DAYS[:2], version=1)
    pushed(lake, postgres)
    lake.put(HOURS, DAYS[1:2], version=5)

    report = pushed(lake, postgres)
    assert (report.copied, report.replaced, report.unchanged) == (1, 1, 1)
    assert postgres.load(HOURS, clock.midnight(DAYS[1])).equals(day_table(HOURS, DAYS[1], 5))


def test_push_that_was_stopped_goes_on(lake: SmallLake, postgres: PostgresStore) -> None:
    lake.put(HOURS, DAYS, version=1)

    days = iter(range(2))
    with pytest.raises(StopIteration):
        push(lake.layout, postgres, HOURS, DAYS, PushReport(), lambda: next(days))
    report = pushed(lake, postgres)
    assert (report.copied, report.unchanged) == (3, 3)
    assert postgres.load(HOURS).equals(truth())


def test_damaged_day_is_reported_and_others_are_copied(lake: SmallLake, postgres: PostgresStore) -> None:
    lake.put(HOURS, DAYS[:2], version=1)
    lake.layout.file(HOURS, DAYS[0]).write_bytes(b"PAR1")

    report = pushed(lake, postgres)
    assert list(report.damaged) == [(HOURS, DAYS[0])]
    assert report.copied == 1


def test_only_days_that_the_lake_has_are_evicted(lake: SmallLake, postgres: PostgresStore) -> None:
    """Of five old days, one was copied, one is live and equal in all keys, and three must stay."""
    copied, live, extra, late, unknown, recent = DAYS
    lake.put(HOURS, [copied], version=1)
    pushed(lake, postgres)
    lake.put(HOURS, [live], version=1)
    postgres.save(HOURS, day_table(HOURS, live, 9), RowState.LIVE)
    lake.put_table(HOURS, extra, day_table(HOURS, extra, 1).slice(0, 23))
    lake.put(HOURS, [late], version=1, final=False)
    for day in (extra, late, unknown, recent):
        postgres.save(HOURS, day_table(HOURS, day, 1), RowState.LIVE)

    report = PushReport()
    evict(lake.layout, postgres, HOURS, recent, report)

    assert report.evicted == 2
    assert report.staying == {
        (HOURS, extra): "it has rows that the lake does not have",
        (HOURS, late): "it is not final in the lake",
        (HOURS, unknown): "the lake does not have it",
    }
    assert postgres.get_missing_dates(HOURS, DAYS[0], DAYS[-1]) == [copied, live]
    assert postgres.copied_days(HOURS) == {}
    both = HybridStore(ParquetStore(lake.root), postgres)
    assert both.get_missing_dates(HOURS, DAYS[0], DAYS[-1]) == []
