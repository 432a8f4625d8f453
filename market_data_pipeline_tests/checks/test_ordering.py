"""Rows are put in order and made unique, and nothing else is done to them."""

from __future__ import annotations

import random

import pyarrow as pa
import pyarrow.compute as pc
from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline.checks.ordering import in_order
from market_data_pipeline.model.datasets import spec_of
from market_data_pipeline_tests.checks.test_gaps import trades
from market_data_pipeline_tests.support.world import agg_trades

KEY = agg_trades("BTCUSDT")
SPEC = spec_of(KEY)


@given(st.sets(st.integers(0, 300), min_size=1, max_size=60), st.randoms(use_true_random=False), st.data())
def test_disorder_and_duplicates_leave_no_trace(ids: set[int], rng: random.Random, data: st.DataObject) -> None:
    clean = trades(KEY, sorted(ids))
    repeats = data.draw(st.lists(st.integers(0, len(ids) - 1), max_size=10))
    order = [*range(len(ids)), *repeats]
    rng.shuffle(order)
    table, findings, conflict = in_order(clean.take(pa.array(order)), SPEC)
    assert conflict is None
    assert table.equals(clean)
    rules = {finding.rule: finding.count for finding in findings}
    assert rules.get("duplicates", 0) == len(repeats)
    assert ("order" in rules) == (order != sorted(order))


@given(st.integers(1, 50), st.data())
def test_different_rows_with_one_key_are_a_conflict(rows: int, data: st.DataObject) -> None:
    """The finding shows both rows."""
    clean = trades(KEY, list(range(100, 100 + rows)))
    at = data.draw(st.integers(0, rows - 1))
    other = clean.slice(at, 1)
    other = other.set_column(2, clean.schema.field("price"), pc.add(other.column("price"), 1.0))
    _, _, conflict = in_order(pa.concat_tables([clean, other]), SPEC)
    assert conflict is not None
    assert conflict.key == 100 + at
    assert "price=1.0" in conflict.rows[0]
    assert "price=2.0" in conflict.rows[1]
