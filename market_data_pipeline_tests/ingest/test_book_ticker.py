"""Best bid and ask: ids with holes, and a type that ended."""

from __future__ import annotations

from datetime import date

import pyarrow as pa
import pytest

from market_data_pipeline import MarketData
from market_data_pipeline.checks.integrity import check_integrity
from market_data_pipeline.model.outcomes import DayFailure, DayOutcome
from market_data_pipeline.model.series import EXCHANGE, DataType, Market, SeriesKey
from market_data_pipeline.sandbox import Damage, DamagedArchive
from market_data_pipeline_tests.support.world import World, days

UM = SeriesKey(EXCHANGE, Market.UM, DataType.BOOK_TICKER, "BTCUSDT")
CM = SeriesKey(EXCHANGE, Market.CM, DataType.BOOK_TICKER, "BTCUSD_PERP")


@pytest.mark.parametrize("key", [UM, CM], ids=lambda key: str(key.market))
def test_days_with_holes_in_their_ids_are_complete(world: World, key: SeriesKey) -> None:
    for one in world.ingest(key, days("2024-03-29", "2024-03-30")):
        assert isinstance(one, DayOutcome)
        assert (one.row.final, one.row.verdicts, one.row.integrity) == (True, "", "info")
    rows = MarketData(world.layout.root).book_ticker(
        key.symbol, "2024-03-29", "2024-03-31", market=str(key.market), on_gap="raise"
    )
    ids = [int(one or 0) for one in rows.arrow().column("update_id").to_pylist()]
    assert ids == sorted(set(ids))


def test_interleaved_rows_are_sorted(world: World) -> None:
    """As in files of January 2024 (binance-public-data #305)."""
    day = date(2024, 1, 10)
    world.sandbox.faults.add(DamagedArchive(days=(day,), damage=Damage.INTERLEAVED, series="bookTicker"))
    one = world.one(UM, str(day))
    assert isinstance(one, DayOutcome)
    assert [finding.rule for finding in one.row.findings_list()] == ["order"]


def test_repeated_id_with_other_content_is_refused(world: World) -> None:
    day = date(2024, 1, 10)
    fault = DamagedArchive(days=(day,), damage=Damage.CONFLICTING_DUPLICATES, series="bookTicker")
    world.sandbox.faults.add(fault)
    one = world.one(UM, str(day))
    assert isinstance(one, DayFailure)
    assert one.failure == "conflict"


def test_crossed_book_is_reported(world: World) -> None:
    world.one(UM, "2024-01-10")
    table = world.table(UM, "2024-01-10").slice(0, 2)
    at = table.schema.get_field_index("best_bid_price")
    crossed = table.set_column(at, table.schema.field(at), pa.array([1e9, 1.0]))
    assert [(one.rule, one.count) for one in check_integrity(UM, crossed)] == [("crossed", 1)]
