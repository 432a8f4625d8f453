"""The Iceberg table of a market and data type: its name, columns, partitions and properties. Pure.

Catalogs belong to ``catalog.py``, data files to ``data_files.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa
from pyiceberg.partitioning import PartitionField, PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.table.name_mapping import create_mapping_from_schema
from pyiceberg.transforms import DayTransform, IdentityTransform, MonthTransform, Transform
from pyiceberg.types import (
    BooleanType,
    DateType,
    DoubleType,
    LongType,
    NestedField,
    PrimitiveType,
    StringType,
    TimestampType,
)

from market_data_pipeline.lake.reader import labels_of, time_column
from market_data_pipeline.model.datasets import SPECS, closes_months, data_types_of
from market_data_pipeline.model.field_ids import FIELD_IDS
from market_data_pipeline.model.schema import TIME, WORD, lake_schema
from market_data_pipeline.model.series import EXCHANGE, DataType, Market, SeriesKey

_TYPES: dict[pa.DataType, PrimitiveType] = {
    TIME: TimestampType(),
    WORD: StringType(),
    pa.string(): StringType(),
    pa.date32(): DateType(),
    pa.int64(): LongType(),
    pa.float64(): DoubleType(),
    pa.bool_(): BooleanType(),
}

_FIRST_PARTITION_ID = 1000
"""Iceberg's convention for numbers of partition fields."""

_METADATA_VERSIONS = 20
"""Older versions of a table's metadata file that stay. Snapshots do not depend on them."""


@dataclass(frozen=True, slots=True, order=True)
class TableName:
    """The table of a market and data type. It is named like the SQL view: ``binance_spot.klines``."""

    market: Market
    data_type: DataType

    @property
    def namespace(self) -> str:
        """Return the namespace, e.g. ``binance_spot``."""
        return f"{EXCHANGE}_{self.market}"

    @property
    def identifier(self) -> tuple[str, str]:
        """Return the name in a catalog."""
        return self.namespace, self.data_type.sql_name

    def __str__(self) -> str:
        return ".".join(self.identifier)


TABLES = tuple(TableName(market, data_type) for market in Market for data_type in data_types_of(market))
"""All tables that the lake can have."""


def table_of(key: SeriesKey) -> TableName:
    """Return the table that has a series."""
    return TableName(key.market, key.data_type)


class TableForm:
    """Columns and partitions of a table.

    Attributes:
        name: Its name.
        labels: Columns that name a series: symbol, and interval if it has one.
        time: Column that assigns a row to its day.
    """

    def __init__(self, name: TableName) -> None:
        self.name = name
        self.labels = labels_of(name.data_type)
        self.time = time_column(name.data_type)

    @cached_property
    def schema(self) -> Schema:
        """Return the columns with their fixed numbers. All are optional: files of version 0.1 declare them so."""
        columns = lake_schema(self.name.market, self.name.data_type)
        fields = [NestedField(FIELD_IDS[one.name], one.name, _TYPES[one.type], required=False) for one in columns]
        return Schema(*fields, schema_id=0)

    @cached_property
    def spec(self) -> PartitionSpec:
        """Return the partitions: symbol, interval, and the month, or for types that never close months the day."""
        period: Transform[int, int] = MonthTransform() if closes_months(self.name.data_type) else DayTransform()
        fields: list[tuple[str, Transform[str, str] | Transform[int, int], str]] = [
            *((label, IdentityTransform(), label) for label in self.labels),
            (self.time, period, f"{self.time}_{'month' if isinstance(period, MonthTransform) else 'day'}"),
        ]
        return PartitionSpec(
            *(
                PartitionField(FIELD_IDS[column], _FIRST_PARTITION_ID + number, transform, name)
                for number, (column, transform, name) in enumerate(fields)
            ),
            spec_id=0,
        )

    @cached_property
    def bounded(self) -> frozenset[str]:
        """Return the columns whose bounds each data file states: labels, keys and times.

        Engines find the bounds of other columns in the files. Here they would make plans slower.
        """
        times = {field.name for field in self.schema.fields if isinstance(field.field_type, TimestampType | DateType)}
        spec = SPECS.get((self.name.market, self.name.data_type))
        return frozenset({*self.labels, *times, *([spec.key] if spec else [])})

    @property
    def properties(self) -> dict[str, str]:
        """Return the table's properties."""
        return {
            # Files of older versions have no numbers, so their columns are found by name.
            "schema.name-mapping.default": create_mapping_from_schema(self.schema).model_dump_json(),
            "write.metadata.delete-after-commit.enabled": "true",
            "write.metadata.previous-versions-max": str(_METADATA_VERSIONS),
            # A publish that lost against another one compares lake and table again, and does not repeat its commit.
            "commit.retry.num-retries": "0",
            "comment": f"{self.name.data_type} of Binance {self.name.market}, from market-data-pipeline. Do not write.",
        }
