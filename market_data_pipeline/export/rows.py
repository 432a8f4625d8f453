"""Rows of a series to export, in tables of bounded size. Writing files belongs to the modules of the formats."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import date
from itertools import groupby

import pyarrow as pa

from market_data_pipeline.lake.reader import read_days
from market_data_pipeline.model.datasets import closes_months
from market_data_pipeline.model.day import DayFile
from market_data_pipeline.model.schema import lake_schema, may_be_null
from market_data_pipeline.model.series import SeriesKey


class SeriesRows:
    """The stored rows of a series, read as they are written.

    Attributes:
        key: The series.
        days: Stored days to export, in order.
        rows: Number of rows read so far.
    """

    def __init__(self, key: SeriesKey, days: Sequence[DayFile], on_days: Callable[[int], object]) -> None:
        """Create the rows of a series.

        Args:
            on_days: Receives a number of days when they are written.
        """
        self.key = key
        self.days = tuple(days)
        self.rows = 0
        self._on_days = on_days

    def parts(self, *, by_day: bool = False) -> Iterator[tuple[date, pa.Table]]:
        """Yield a part of the rows and its first day: a month, or a day if a month may be too large.

        Labels are text, and times are in UTC with zone. A part without rows is left out.

        Args:
            by_day: Yield days in any case.

        Raises:
            DamagedFileError: A file is damaged. The message names it.
            FileNotFoundError: A file was removed meanwhile.
        """
        schema = lake_schema(self.key.market, self.key.data_type)
        by_month = closes_months(self.key.data_type) and self.key.interval != "1s" and not by_day
        for _, some in groupby(self.days, key=lambda stored: stored.day.replace(day=1) if by_month else stored.day):
            days = list(some)
            table = read_days(days, schema)
            self.rows += table.num_rows
            if table.num_rows:
                yield days[0].day, table.cast(plain_schema(schema))
            self._on_days(len(days))


def plain_schema(schema: pa.Schema) -> pa.Schema:
    """Return a schema of types that every tool reads: labels as text, times in UTC with zone."""
    return pa.schema([field.with_type(_plain(field.type)) for field in may_be_null(schema)])


def _plain(type_: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(type_):
        return pa.string()
    return pa.timestamp(type_.unit, "UTC") if pa.types.is_timestamp(type_) else type_
