"""Rows that differ between two versions of a day are told with both values: a few in a sentence, the others for SQL."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from market_data_pipeline.checks.diff import RECORDED, change_finding, difference, disagreement, key_format
from market_data_pipeline.model.datasets import spec_of
from market_data_pipeline.model.findings import MAX_RANGES
from market_data_pipeline.sql.publish import publish_catalog
from market_data_pipeline_tests.support.small_lake import SmallLake, day_table, series

DAY = date(2024, 1, 1)
KEY = series("BTCUSDT", "1m")


def versions(changed: int) -> tuple[pa.Table, pa.Table]:
    """A day, and the same with another volume in every second minute, ``changed`` times."""
    before = day_table(KEY, DAY, version=1)
    at = before.schema.get_field_index("volume")
    volumes = before["volume"].to_numpy().copy()
    volumes[: 2 * changed : 2] += 1 + np.arange(changed)
    return before, before.set_column(at, before.schema.field(at), pa.chunked_array([volumes]))


@pytest.mark.parametrize("changed", [1, 3, 10, RECORDED, RECORDED + 50])
def test_values_that_differ_between_rest_and_archive_are_in_sql(tmp_path: Path, changed: int) -> None:
    [found] = disagreement(KEY, *versions(changed))
    assert found.count == changed
    lake = SmallLake(tmp_path)
    lake.put(KEY, [DAY], findings=(found,))

    with duckdb.connect(str(publish_catalog(lake.layout)), read_only=True) as connection:
        rows = connection.execute(
            "SELECT DISTINCT unnest(string_split(ltrim(evidence, 'REST→archive: '), '; ')) "
            "FROM quality.findings WHERE rule = 'disagreement' ORDER BY 1"
        ).fetchall()

    kept = min(changed, RECORDED)
    told = [f"2024-01-01 {2 * n // 60:02}:{2 * n % 60:02}:00 volume 1.0 → {n + 2.0}" for n in range(kept)]
    assert [row for (row,) in rows] == told + (["and 50 more"] if changed > RECORDED else [])
    assert len(found.ranges) == min(changed, MAX_RANGES)


@pytest.mark.parametrize(
    ("changed", "more"), [(1, ""), (3, ""), (10, "; and 7 more"), (RECORDED + 50, "; and 147 more")]
)
def test_sentence_shows_three_values_and_the_number_of_others(changed: int, more: str) -> None:
    [found] = disagreement(KEY, *versions(changed))
    assert found.message.startswith(f"REST and the archive disagree on {changed} rows. The archive's rows are stored. ")
    assert found.message.endswith(f"volume 1.0 → {min(changed, 3) + 1.0}{more}.")
    assert len(found.message) < 400


def test_replaced_archive_is_reported_with_all_values() -> None:
    found = difference(*versions(10), spec_of(KEY), key_format(KEY))
    finding = change_finding(KEY, "replaced", found, "The archive was replaced")
    assert finding.message.startswith(
        "The archive was replaced: 0 rows added, 0 removed, 10 changed: 2024-01-01 00:00:00"
    )
    assert finding.evidence.count("→") == 11
    assert finding.evidence.startswith("before → after: 2024-01-01 00:00:00 volume 1.0 → 2.0; ")
    same = difference(day_table(KEY, DAY), day_table(KEY, DAY).slice(1), spec_of(KEY), key_format(KEY))
    assert change_finding(KEY, "replaced", same, "It was").evidence == "", "no value changed"
