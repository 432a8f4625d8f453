"""A day of trades whose ids jump at more places than an attempt may ask REST for: each asks for the next ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa

from market_data_pipeline import clock
from market_data_pipeline.ingest.day_rows import DayRows
from market_data_pipeline.ingest.encode import describe
from market_data_pipeline.ingest.gap_fill import GapFiller
from market_data_pipeline.model.findings import verdicts_of
from market_data_pipeline.model.provenance import Part, Source
from market_data_pipeline.model.schema import lake_schema
from market_data_pipeline.model.series import ListingSpans
from market_data_pipeline.sources.binance.rest import RestRows
from market_data_pipeline_tests.support.world import agg_trades, utc

KEY, DAY = agg_trades("BTCUSDT"), date(2026, 3, 3)
JUMPS = 133


@dataclass
class Rest:
    """REST that has none of the trades that it is asked for."""

    asked: list[tuple[int, int]] = field(default_factory=list)

    def agg_trades_of_ids(self, key: object, first: int, last: int, between_us: object) -> RestRows:
        self.asked.append((first, last))
        return RestRows(lake_schema(KEY.market, KEY.data_type).empty_table(), "url", utc("2026-03-05T12:00"))


def every_other_trade() -> DayRows:
    """A day with the ids 0, 2, 4 and so on, evenly spread."""
    ids = np.arange(0, 2 * JUMPS + 1, 2)
    times = clock.day_start_us(DAY) + ids * (clock.US_PER_DAY // (2 * JUMPS + 2))
    schema = lake_schema(KEY.market, KEY.data_type)
    numbers = {"agg_trade_id": ids, "first_trade_id": ids, "last_trade_id": ids, "transact_time": times}
    other: dict[str, Any] = {
        "price": 1.0,
        "quantity": 1.0,
        "symbol": "BTCUSDT",
        "is_buyer_maker": True,
        "is_best_match": True,
    }
    columns = [
        pa.array(numbers[name] if name in numbers else [other[name]] * len(ids)).cast(schema.field(name).type)
        for name in schema.names
    ]
    table = pa.table(columns, schema=schema)
    at = utc("2026-03-04T10:00")
    part = Part(source=Source.ARCHIVE_DAILY, url="zip", first_row=0, rows=len(ids), fetched_at=at)
    return DayRows(table, (part,), final=True, known_until_us=clock.day_start_us(DAY) + clock.US_PER_DAY)


def test_each_attempt_requests_jumps_not_requested_yet() -> None:
    rest, rows, seen = Rest(), every_other_trade(), []
    gap_filler = GapFiller(KEY, lambda: rest, ListingSpans())  # type: ignore[arg-type, return-value]
    for _ in range(4):
        record = describe(KEY, DAY, gap_filler.fill(DAY, rows), ListingSpans())
        lacking = sum(finding.count for finding in record.findings if finding.check == "gaps")
        seen.append((len(rest.asked), verdicts_of(record.findings), lacking))
        rows = DayRows.of_file(record, rows.table)
    assert seen == [
        (50, "unexplained+unpublished", JUMPS),
        (100, "unexplained+unpublished", JUMPS),
        (133, "unexplained", JUMPS),
        # A record keeps a hundred ranges: what is beyond may be asked for once more where the day is looked at again.
        (166, "unexplained", JUMPS),
    ]
    assert rest.asked[:JUMPS] == [(n, n) for n in range(1, 2 * JUMPS, 2)]
