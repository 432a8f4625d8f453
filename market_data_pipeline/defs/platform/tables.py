"""Lake files as tables of the requested type, and the table of a derived asset as files.

Computing does not belong here. DuckDB reads an explicit list of files: finding one day among 10,950 files takes 355 ms
by a pattern and 5 ms by a list. DuckDB, pandas and polars are imported on first use.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from market_data_pipeline import clock
from market_data_pipeline.checks.integrity import source_findings
from market_data_pipeline.clock import contiguous_ranges
from market_data_pipeline.errors import MarketDataError, NotStoredError
from market_data_pipeline.lake import parquet, storage
from market_data_pipeline.lake.checksums import content_sha256
from market_data_pipeline.lake.day_records import rows_on_record
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.ledger import Ledger
from market_data_pipeline.lake.partitions import day_files
from market_data_pipeline.lake.reader import read_days, time_column
from market_data_pipeline.model.day import EMPTY, HELD, NOT_LISTED, DayFile, DayRecord, record_of
from market_data_pipeline.model.places import is_object
from market_data_pipeline.model.provenance import Part, Provenance, Source
from market_data_pipeline.model.schema import lake_schema, may_be_null
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.sql.file_lists import as_pattern
from market_data_pipeline.sql.views import newest_mark

# --- loading -------------------------------------------------------------------------------------------------------


def load_days(layout: Layout, key: SeriesKey, days: Sequence[date], wanted: Any) -> Any:
    """Return days of a series as the requested type, see :func:`load_files`.

    Raises:
        NotStoredError: A day is missing.
        StorageError: The system refuses to read the ledger.
    """
    schema = lake_schema(key.market, key.data_type)
    mark = newest_mark(layout, key.market, key.data_type)
    try:
        return load_files(stored_files(layout, key, days), schema, wanted, mark)
    except FileNotFoundError:  # removed since it was listed, e.g. because its month was compacted
        return load_files(stored_files(layout, key, days), schema, wanted)


def stored_files(layout: Layout, key: SeriesKey, days: Sequence[date]) -> list[DayFile]:
    """Return the files of days, in the days' order. Days that are empty or not listed have no file.

    Raises:
        NotStoredError: A day has no file, or a damaged one, and no ledger row that explains it. The text names the day.
        StorageError: The system refuses to read the ledger.
    """
    if not days:
        return []
    requested = set(days)
    on_disk = {day: file for day, file in day_files(layout, key).items() if day in requested}
    rows = rows_on_record(layout, key, on_disk, min(days), max(days))
    known = {day for day, row in rows.items() if row.outcome in (HELD, EMPTY, NOT_LISTED)}
    if missing := [day for day in days if day not in known]:
        raise NotStoredError(_missing_text(key, missing, rows))
    return [on_disk[day] for day in days if day in on_disk]


def _missing_text(key: SeriesKey, days: Sequence[date], rows: Mapping[date, DayRecord]) -> str:
    named = ", ".join(str(day) for day in days[:10]) + (f" and {len(days) - 10} more" if len(days) > 10 else "")
    row = rows.get(days[0])
    why = f" Last attempt at {days[0]}: {row.reason}" if row is not None and row.reason else ""
    return f"{key}: days missing in the lake: {named}.{why} Materialize these partitions first, or leave the days out."


def load_files(stored: Sequence[DayFile], schema: pa.Schema, wanted: Any, mark: Path | None = None) -> Any:
    """Load files of one schema as the requested type.

    Args:
        stored: The days. Without days, the result is empty and has the right columns.
        wanted: ``pyarrow.Table``, or a class of pandas, polars or DuckDB. Anything else means a DuckDB relation.
        mark: A file without rows that a DuckDB relation reads first, see ``catalog.newest_mark``.
    """
    module, name = getattr(wanted, "__module__", "").partition(".")[0], getattr(wanted, "__name__", "")
    if wanted is pa.Table:
        return read_days(stored, schema).cast(may_be_null(schema))
    if module == "pandas" and name == "DataFrame":
        return read_days(stored, schema).to_pandas()
    if module == "polars" and name in ("DataFrame", "LazyFrame"):
        import polars as pl

        if name == "LazyFrame" and stored and not is_object(stored[0].path):
            at = pl.col(time_column(stored[0].key.data_type))
            inside = [(at >= start) & (at < end) for start, end in _spans(stored)]
            scanned = pl.scan_parquet([str(path) for path in _paths(stored)], glob=False, hive_partitioning=False)
            return scanned.filter(pl.any_horizontal(inside)) if inside else scanned
        frame = pl.DataFrame(read_days(stored, schema))
        return frame.lazy() if name == "LazyFrame" else frame
    if module not in ("duckdb", "_duckdb", "typing", "builtins", ""):
        raise MarketDataError(
            f"An input cannot be loaded as {module}.{name}. Annotate it as duckdb.DuckDBPyRelation, pyarrow.Table, "
            "pandas.DataFrame, polars.DataFrame or polars.LazyFrame."
        )
    import duckdb

    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    if not stored or is_object(stored[0].path):
        return connection.from_arrow(read_days(stored, schema))
    listed = [*filter(None, [mark]), *_paths(stored)]
    relation = connection.read_parquet([as_pattern(path) for path in listed], hive_partitioning=False)
    column = time_column(stored[0].key.data_type)
    spans = (f"{column} >= TIMESTAMP '{start}' AND {column} < TIMESTAMP '{end}'" for start, end in _spans(stored))
    return relation.filter(condition) if (condition := " OR ".join(spans)) else relation


def _paths(stored: Sequence[DayFile]) -> list[Path]:
    return list(dict.fromkeys(one.path for one in stored))


def _spans(stored: Sequence[DayFile]) -> list[tuple[datetime, datetime]]:
    """Return half-open time ranges of the requested days. Return none if no month file has rows of other days."""
    if not any(one.of_month for one in stored):
        return []
    ranges = contiguous_ranges([one.day for one in stored])
    return [
        (datetime.combine(first, time.min), datetime.combine(last + timedelta(days=1), time.min))
        for first, last in ranges
    ]


# --- writing -------------------------------------------------------------------------------------------------------


def store_days(
    layout: Layout,
    key: SeriesKey,
    days: Sequence[date],
    value: Any,
    parents: Sequence[SeriesKey],
    lock_wait_seconds: float,
) -> None:
    """Write the result of a derived asset for the days of a run: one file a day, and the days' ledger rows.

    A derived day is final when all of its sources are. Its integrity fails if a source's day is not complete. A day
    without rows copies the reason of its source.

    Raises:
        MarketDataError: It is not a table, its rows are not of these days, or its columns are not those of the series.
        SeriesBusyError: Another run is writing the series.
        StorageError: The disk refuses.
    """
    tables = split_by_day(key, as_arrow(value), lake_schema(key.market, key.data_type), days)
    sources = {parent: Ledger.read(layout.ledger(parent)) for parent in parents}
    with storage.only_writer(layout.lock(key), lock_wait_seconds, str(key)):
        storage.remove_leftovers(layout.folder(key))
        ledger = Ledger.read(layout.ledger(key))
        for day, table in tables.items():
            before = ledger.get(day)
            attempts = before.attempts + 1 if before else 1
            made_of = {parent: source.get(day) for parent, source in sources.items()}
            if table is None:
                ledger.put(replace(_without_rows(day, list(made_of.values())), attempts=attempts))
                continue
            record = _provenance(layout, key, day, table, made_of)
            encoded = parquet.encode_table(table, record)
            stat = storage.put(layout.file(key, day), encoded)
            sha256 = hashlib.sha256(encoded).hexdigest()
            ledger.put(record_of(record, stat, attempts=attempts, file_sha256=sha256))
        ledger.write(layout.ledger(key))


def as_arrow(value: Any) -> pa.Table:
    """Return an Arrow table from an Arrow, pandas, polars (also lazy) or DuckDB value.

    Raises:
        MarketDataError: The value is not a table.
    """
    table = value.collect() if hasattr(value, "collect") else value  # a lazy frame of polars
    if not hasattr(table, "__arrow_c_stream__"):
        raise MarketDataError(
            f"A derived asset must return a table, not {type(value).__module__}.{type(value).__name__}."
        )
    return pa.table(table)


def split_by_day(
    key: SeriesKey, table: pa.Table, schema: pa.Schema, days: Sequence[date]
) -> dict[date, pa.Table | None]:
    """Split the result of a derived asset by day and cast it to the schema. Days without rows have None.

    Raises:
        MarketDataError: Columns are missing or of another type, or rows are of a day outside of the run.
    """
    try:
        rows = table.select(schema.names).cast(schema)
    except (KeyError, pa.ArrowException) as error:
        raise MarketDataError(f"{key}: the output needs the columns of the series: {error}") from error
    if "day" not in schema.names:
        if len(days) > 1:
            raise MarketDataError(f"{key}: an output for {len(days)} days needs a column `day`.")
        return {days[0]: rows if rows.num_rows else None}
    strangers: set[Any] = set(pc.unique(rows["day"]).to_pylist()) - set(days)
    if strangers:
        raise MarketDataError(f"{key}: the output has rows of {min(strangers)}, which is not a day of this run.")
    parts = {day: rows.filter(pc.equal(rows["day"], pa.scalar(day, pa.date32()))) for day in days}
    return {day: part if part.num_rows else None for day, part in parts.items()}


def _without_rows(day: date, made_of: Sequence[DayRecord | None]) -> DayRecord:
    unlisted = any(row is not None and row.outcome == NOT_LISTED for row in made_of)
    final = bool(made_of) and all(row is not None and row.final for row in made_of)
    outcome = NOT_LISTED if unlisted else EMPTY
    return DayRecord(day=day, outcome=outcome, final=final, asked_at=clock.naive_utc(clock.now()))


def _provenance(
    layout: Layout, key: SeriesKey, day: date, table: pa.Table, made_of: Mapping[SeriesKey, DayRecord | None]
) -> Provenance:
    now = clock.now()
    parts = tuple(
        Part(
            source=Source.DERIVED,
            url=str(layout.file(parent, day).relative_to(layout.root)),
            first_row=0,
            rows=table.num_rows,
            fetched_at=now,
            sha256=row.content_sha256 if row else None,
        )
        for parent, row in made_of.items()
    )
    return Provenance(
        series=str(key),
        day=day,
        parts=parts,
        final=all(row is not None and row.outcome == HELD and row.final for row in made_of.values()),
        fetched_at=now,
        rows=table.num_rows,
        first_key=None,
        last_key=None,
        content_sha256=content_sha256(table),
        findings=source_findings(made_of),
    )
