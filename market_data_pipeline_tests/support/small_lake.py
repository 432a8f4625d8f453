"""A small lake, written by the public functions of ``lake``, whose values follow from symbol, day and row."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from market_data_pipeline import clock
from market_data_pipeline.checks.ordering import ints
from market_data_pipeline.lake import parquet
from market_data_pipeline.lake.checksums import content_sha256
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.ledger import Ledger
from market_data_pipeline.model.datasets import spec_of
from market_data_pipeline.model.day import DayRecord, record_of
from market_data_pipeline.model.findings import Finding
from market_data_pipeline.model.provenance import ChecksumStatus, Part, Provenance, Source
from market_data_pipeline.model.schema import WORD, lake_schema
from market_data_pipeline.model.series import EXCHANGE, INTERVALS, DataType, Market, SeriesKey

TRADES_A_DAY = 100


def series(symbol: str, interval: str | None = None, market: str = "spot", data_type: str = "") -> SeriesKey:
    """A key: klines where there is an interval, else aggTrades unless another data type is named."""
    kind = DataType(data_type) if data_type else DataType.KLINES if interval else DataType.AGG_TRADES
    return SeriesKey(EXCHANGE, Market(market), kind, symbol, interval)


def day_table(key: SeriesKey, day: date, version: int = 0) -> pa.Table:
    """A day's rows. Prices and volumes are ``version`` everywhere, except opens and trade prices: they count rows."""
    schema = lake_schema(key.market, key.data_type)
    rows = {DataType.KLINES: 86_400 // INTERVALS.get(key.interval or "", 1), DataType.AGG_TRADES: TRADES_A_DAY}.get(
        key.data_type, 1
    )
    step = clock.US_PER_DAY // rows
    times = clock.day_start_us(day) + np.arange(rows) * step
    numbers: dict[str, Any] = {
        "open_time": times,
        "close_time": times + step - 1,
        "transact_time": times,
        "agg_trade_id": np.arange(rows) + rows * (day - date(2020, 1, 1)).days,
        "open": np.arange(rows),
        "price": np.arange(rows),
        "day": [day],
    }
    columns: list[pa.Array[Any]] = []
    for field in schema:
        if field.type == WORD:
            columns.append(pa.array([getattr(key, field.name)] * rows).dictionary_encode())
        elif field.name in numbers:
            columns.append(pa.array(numbers[field.name]).cast(field.type))
        else:
            columns.append(pa.array(np.full(rows, version)).cast(field.type))
    return pa.table(columns, schema=schema)


class SmallLake:
    """A lake below a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.layout = Layout(root)

    def put(
        self,
        key: SeriesKey,
        days: Iterable[date],
        *,
        version: int = 0,
        final: bool = True,
        fetched_at: datetime | None = None,
        findings: tuple[Finding, ...] = (),
    ) -> None:
        """Write days and their ledger rows."""
        ledger = Ledger.read(self.layout.ledger(key))
        for day in days:
            ledger.put(self.write_file(key, day, version, final, fetched_at, findings))
        ledger.write(self.layout.ledger(key))

    def put_table(self, key: SeriesKey, day: date, table: pa.Table) -> None:
        """Write a day with rows of the caller, and its ledger row."""
        self.note(key, self.write_file(key, day, table=table))

    def write_file(
        self,
        key: SeriesKey,
        day: date,
        version: int = 0,
        final: bool = True,
        fetched_at: datetime | None = None,
        findings: tuple[Finding, ...] = (),
        table: pa.Table | None = None,
    ) -> DayRecord:
        """Write, or replace, one day's file; the ledger is left as it is."""
        table = day_table(key, day, version) if table is None else table
        at = fetched_at or datetime.combine(day, datetime.min.time(), UTC) + timedelta(days=1, hours=10)
        source = Source.ARCHIVE_DAILY if final else Source.REST
        keys = [0] if key.data_type is DataType.TRADE_PROFILE else ints(table, spec_of(key).key).tolist()
        part = Part(
            source=source,
            url=f"https://archive/{key}/{day}",
            first_row=0,
            rows=table.num_rows,
            fetched_at=at,
            sha256="0" * 64 if final else None,
            checksum=ChecksumStatus.VERIFIED if final else None,
        )
        record = Provenance(
            series=str(key),
            day=day,
            parts=(part,),
            final=final,
            fetched_at=at,
            rows=table.num_rows,
            first_key=keys[0],
            last_key=keys[-1],
            content_sha256=content_sha256(table),
            findings=findings,
        )
        return record_of(record, parquet.write_table(self.layout.file(key, day), table, record))

    def note(self, key: SeriesKey, *rows: DayRecord) -> None:
        """Put rows into a ledger without files."""
        ledger = Ledger.read(self.layout.ledger(key))
        for row in rows:
            ledger.put(row)
        ledger.write(self.layout.ledger(key))


def days_from(first: str, count: int) -> list[date]:
    """So many days from one on."""
    return [date.fromisoformat(first) + timedelta(days=n) for n in range(count)]
