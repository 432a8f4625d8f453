"""A series whose rows move from the live feed to provisional and final days, one step at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from market_data_pipeline import MarketData, clock
from market_data_pipeline.client import snapshot
from market_data_pipeline.lake import closed_months, partitions, reader
from market_data_pipeline.lake.live_eviction import evict_final_days
from market_data_pipeline.lake.live_rows import CloseState, LiveRow, LiveWriter
from market_data_pipeline.lake.reader import labels_of
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline_tests.support.small_lake import SmallLake, day_table, series

CANDLES = series("BTCUSDT", "1h")
ROWS = 24
FIRST = date(2024, 1, 30)


def live_rows_of(table: pa.Table, key: SeriesKey, state: CloseState = CloseState.CLOSED) -> list[LiveRow]:
    """The rows of a table of the lake, to append as live rows."""
    columns = [
        table[name].cast(pa.int64()).to_pylist() if pa.types.is_timestamp(table[name].type) else table[name].to_pylist()
        for name in table.column_names
        if name not in labels_of(key.data_type)
    ]
    return [LiveRow(values, state) for values in zip(*columns, strict=True)]


class LiveWorld:
    """The life of one series. The row ``n`` closes at ``n``; the archive changes the close of one row in seven."""

    def __init__(self, root: Path, seed: int) -> None:
        self.lake = SmallLake(root)
        self.market = MarketData(root)
        self.random = Random(seed)
        self.known = 0
        self.final = 0
        self.closed = 0
        self._provisional: dict[int, int] = {}
        self._writer = LiveWriter(self.lake.layout)
        self.steps = 0

    def step(self) -> None:
        """Let one thing happen."""
        self.steps += 1
        chosen = self.random.choices(
            (self.append, self.store_from_rest, self.archive_arrives, self.evict, self.compact), (12, 4, 3, 2, 1)
        )
        chosen[0]()

    def append(self) -> None:
        """The feed writes the next candles."""
        count = self.random.choice((1, 1, 1, 5))
        for number in range(self.known, self.known + count):
            table = self._table(number // ROWS, final=False).slice(number % ROWS, 1)
            self._writer.append(CANDLES, live_rows_of(table, CANDLES))
        self.known += count

    def store_from_rest(self) -> None:
        """A run stores a day that is not final, as far as it goes now."""
        day = self.random.randint(self.final, max(self.final, (self.known - 1) // ROWS))
        rows = min(ROWS, self.known - day * ROWS)
        if rows > self._provisional.get(day, 0):
            table = self._table(day, final=False).slice(0, rows)
            self.lake.note(CANDLES, self.lake.write_file(CANDLES, self._day(day), final=False, table=table))
            self._provisional[day] = rows

    def archive_arrives(self) -> None:
        """A run stores the oldest complete day as final."""
        if self.known >= (self.final + 1) * ROWS + 2:
            self.lake.put_table(CANDLES, self._day(self.final), self._table(self.final, final=True))
            self.final += 1

    def evict(self) -> None:
        """The feed removes the live rows that the lake has as final."""
        for day in range(max(0, self.final - 3), self.final):
            self._writer.release(CANDLES, self._day(day))
        for _ in evict_final_days(self.lake.layout, CANDLES, self._day(self.known // ROWS)):
            pass

    def compact(self) -> None:
        """Months are closed, and later the days' own files are removed."""
        if self.final >= self.closed + 10:
            closed_months.close_months(self.lake.layout, CANDLES)
            self.closed = self.final
        else:
            before, since = closed_months.closed_days(self.lake.layout, CANDLES, clock.now())
            closed_months.remove_closed_days(self.lake.layout, CANDLES, [*before, *since])

    def read_and_check(self) -> None:
        """Read a random range, and compare it with what was known before and after."""
        known, final = self.known, self.final
        oldest = max(0, known - self.random.choice((3, 60)) * ROWS)
        first = self.random.randint(oldest, max(oldest, known - 1))
        until = self.random.randint(first, known + 3)
        start, end = (clock.midnight(FIRST) + timedelta(hours=number) for number in (first, until))
        result = self.market.klines("BTCUSDT", "1h", start, end, columns="close", on_gap="ignore")
        rows = self._rows(result)
        numbers = [(at - clock.day_start_us(FIRST)) // 3_600_000_000 for at, _ in rows]
        assert numbers == list(range(first, first + len(numbers))), "rows are missing, doubled or out of order"
        least, most = (max(0, min(until, one) - first) for one in (known, self.known))
        assert least <= len(numbers) <= most, "rows that were there before the read are missing"
        for number, (_, close) in zip(numbers, rows, strict=True):
            possible = {self._close(number, final=True)} if number < final * ROWS else set()
            possible |= {self._close(number, final=False)} if number >= final * ROWS else set()
            possible |= {self._close(number, final=True)} if number < self.final * ROWS else set()
            assert close in possible, f"row {number} is {close}, of {possible}"

    def _rows(self, result: Any) -> list[tuple[int, float]]:
        table = result.relation().to_arrow_table() if self.random.random() < 0.15 else result.arrow()
        return list(zip(table["open_time"].cast(pa.int64()).to_pylist(), table["close"].to_pylist(), strict=True))

    @staticmethod
    def _close(number: int, *, final: bool) -> float:
        return number + (0.5 if final and number % 7 == 0 else 0.0)

    def _table(self, day: int, *, final: bool) -> pa.Table:
        table = day_table(CANDLES, self._day(day))
        closes = [self._close(day * ROWS + row, final=final) for row in range(ROWS)]
        at = table.column_names.index("close")
        return table.set_column(at, table.schema.field("close"), pa.array(np.array(closes, np.float64)))

    @staticmethod
    def _day(number: int) -> date:
        return FIRST + timedelta(days=number)

    @contextmanager
    def in_between(self, monkeypatch: pytest.MonkeyPatch, share: float) -> Iterator[None]:
        """Let things happen between any two looks that a read takes at files."""
        busy = False

        def interrupted(look: Callable[..., Any]) -> Callable[..., Any]:
            def looking(*args: Any, **options: Any) -> Any:
                nonlocal busy
                if busy:
                    return look(*args, **options)
                for place in (0, 1):
                    if self.random.random() < share:
                        busy = True
                        try:
                            for _ in range(self.random.choice((1, 2, 6))):
                                self.step()
                        finally:
                            busy = False
                    if place == 0:
                        found = look(*args, **options)
                return found

            return looking

        with monkeypatch.context() as patched:
            for module, name in _LOOKS:
                patched.setattr(module, name, interrupted(getattr(module, name)))
            yield

    def close(self) -> None:
        """Close the writer's files."""
        self._writer.close()


_LOOKS: Sequence[tuple[Any, str]] = (
    (snapshot, "live_days"),
    (snapshot, "read_live_rows"),
    (snapshot, "facts_on_record"),
    (partitions, "day_files_between"),
    (reader, "read_days"),
)


def moment(hours: int) -> datetime:
    """So many hours after the first day."""
    return clock.midnight(FIRST) + timedelta(hours=hours)
