"""Compare tables with the lake: rows and sums of each series, each read from its own side.

The lake's side is what its readers return, so the comparison also covers files that were published under a wrong name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.expressions import And, BooleanExpression, EqualTo
from pyiceberg.table import Table

from market_data_pipeline.errors import DamagedFileError
from market_data_pipeline.iceberg.catalog import existing_table, opened_catalog
from market_data_pipeline.iceberg.commits import Published, labels_of_series
from market_data_pipeline.iceberg.tables import TABLES, TableForm, TableName, table_of
from market_data_pipeline.lake.day_records import rows_as_on_disk
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.partitions import day_files
from market_data_pipeline.lake.reader import read_days
from market_data_pipeline.model.day import HELD
from market_data_pipeline.model.schema import lake_schema
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.settings import Settings

_DAYS_AT_ONCE = 31

_SERIES_A_TURN = 10
"""Most series of a sample."""


class Totals(NamedTuple):
    """Rows of a series, and the sum of a column."""

    rows: int
    total: float

    def equals(self, other: Totals) -> bool:
        """Return True if rows are the same, and sums are but for the order of the addition."""
        both = (self.total, other.total)
        return self.rows == other.rows and (
            math.isclose(*both, rel_tol=1e-9, abs_tol=1e-9) or all(map(math.isnan, both))
        )


@dataclass(frozen=True, slots=True)
class TableDifference:
    """A series whose rows in the table are not those of the lake.

    Attributes:
        key: The series.
        lake: Its totals in the lake; None if a file cannot be read.
        table: Its totals in the table.
        reason: A sentence for people.
    """

    key: SeriesKey
    lake: Totals | None
    table: Totals
    reason: str


def summed_column(name: TableName) -> str:
    """Return the column that is summed: the first column of numbers that is no key."""
    form = TableForm(name)
    schema = lake_schema(name.market, name.data_type)
    floats = [field.name for field in schema if field.type == pa.float64() and field.name not in form.bounded]
    return floats[0]


def compare_tables(
    settings: Settings, keys: Sequence[SeriesKey], *, on_series: Callable[[int], object] = lambda _: None
) -> Iterator[TableDifference]:
    """Read rows and sums of series from both sides, and yield the series that differ.

    Raises:
        EnvironmentFaultError: The catalog does not answer.
    """
    layout = Layout(settings.root)
    with opened_catalog(settings) as catalog:
        for name in TABLES:
            some = [key for key in keys if table_of(key) == name]
            if not some:
                continue
            form = TableForm(name)
            table, column = existing_table(catalog, form), summed_column(name)
            for key in some:
                if (difference := _difference(layout, table, key, column)) is not None:
                    yield difference
                on_series(1)


def _difference(layout: Layout, table: Table | None, key: SeriesKey, column: str) -> TableDifference | None:
    published = Totals(0, 0.0) if table is None else totals_in_table(table, key, column)
    try:
        stored = totals_in_lake(layout, key, column)
    except (DamagedFileError, FileNotFoundError) as error:
        return TableDifference(key, None, published, str(error))
    if stored.equals(published):
        return None
    reason = (
        f"The lake has {stored.rows:,} rows with the sum {stored.total:.12g} of {column}, the table {published.rows:,} "
        f"with {published.total:.12g}."
    )
    return TableDifference(key, stored, published, reason)


def totals_in_lake(layout: Layout, key: SeriesKey, column: str) -> Totals:
    """Return the totals of a series in the lake.

    Raises:
        DamagedFileError: A file cannot be read.
        FileNotFoundError: A file was removed meanwhile.
    """
    days = list(day_files(layout, key).values())
    schema = pa.schema([lake_schema(key.market, key.data_type).field(column)])
    rows, sums = 0, list[float]()
    for begin in range(0, len(days), _DAYS_AT_ONCE):
        part = read_days(days[begin : begin + _DAYS_AT_ONCE], schema)
        rows += part.num_rows
        sums.append(_sum(part[column]))
    return Totals(rows, math.fsum(sums))


def totals_in_table(table: Table, key: SeriesKey, column: str) -> Totals:
    """Return the totals of a series in a table's newest snapshot, as pyiceberg reads it."""
    rows, sums = 0, list[float]()
    scan = table.scan(row_filter=_is_of(key), selected_fields=(column,))
    for batch in scan.to_arrow_batch_reader():
        rows += batch.num_rows
        sums.append(_sum(batch.column(0)))
    return Totals(rows, math.fsum(sums))


def rows_that_differ(settings: Settings, keys: Sequence[SeriesKey]) -> Iterator[TableDifference]:
    """Compare the rows of series by the ledgers and the tables' metadata alone, and yield the series that differ.

    Raises:
        EnvironmentFaultError: The catalog does not answer.
    """
    layout = Layout(settings.root)
    with opened_catalog(settings) as catalog:
        for name in TABLES:
            some = [key for key in keys if table_of(key) == name]
            form = TableForm(name)
            table = existing_table(catalog, form) if some else None
            published = None if table is None else Published.read(table, form)
            for key in some:
                files = published.files(labels_of_series(key)) if published else ()
                there, stored = sum(one.record_count for one in files), rows_stored(layout, key)
                if there != stored:
                    text = f"The lake has {stored:,} rows, the table {there:,}."
                    yield TableDifference(key, Totals(stored, math.nan), Totals(there, math.nan), text)


def rows_stored(layout: Layout, key: SeriesKey) -> int:
    """Return the rows of a series in the lake, by its ledger."""
    table, _ = rows_as_on_disk(layout, key, ("rows",))
    return int(pc.sum(table.filter(pc.field("outcome") == HELD)["rows"]).as_py() or 0)


def sample(layout: Layout, keys: Sequence[SeriesKey], turn: int, most_rows: int) -> list[SeriesKey]:
    """Return some series to read whole, other ones each turn: at least one, and up to a number of rows."""
    chosen, rows = list[SeriesKey](), 0
    begin = turn * _SERIES_A_TURN % max(1, len(keys))
    for key in [*keys[begin:], *keys[:begin]][:_SERIES_A_TURN]:
        rows += rows_stored(layout, key)
        if chosen and rows > most_rows:
            break
        chosen.append(key)
    return chosen


def _is_of(key: SeriesKey) -> BooleanExpression:
    labels = [("symbol", key.symbol), *([("interval", key.interval)] if key.interval else [])]
    # The annotations of pyiceberg know the serialized form of a condition only.
    conditions = [EqualTo(name, value) for name, value in labels]  # type: ignore[arg-type,call-arg]
    return And(*conditions) if len(conditions) > 1 else conditions[0]


def _sum(column: pa.Array[pa.DoubleScalar] | pa.ChunkedArray[pa.DoubleScalar]) -> float:
    return float(pc.sum(column).as_py() or 0.0)
