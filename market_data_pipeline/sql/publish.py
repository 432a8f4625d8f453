"""Publication of the views as ``catalog.duckdb``.

The catalog is built in a temporary folder and replaced by rename. No process opens the published file for writing,
because a DuckDB writer locks out all readers. The SQL of the views belongs to ``sql/views.py``.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from market_data_pipeline.errors import MarketDataError
from market_data_pipeline.lake import parquet, storage
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.partitions import folder_of, months_closed
from market_data_pipeline.model.datasets import data_types_of
from market_data_pipeline.model.day import FileStat
from market_data_pipeline.model.places import is_object
from market_data_pipeline.model.schema import empty_table
from market_data_pipeline.model.series import Market, SeriesKey
from market_data_pipeline.sql.errors import lake_error
from market_data_pipeline.sql.file_lists import StoredSeries, marks_of, quoted, stored_objects, stored_series
from market_data_pipeline.sql.object_files import attach_objects
from market_data_pipeline.sql.views import statements

_LOCK_WAIT_SECONDS = 60.0


_LEFT_AFTER_SECONDS = 3600
"""Age (s) from which a temporary file next to the marks is a leftover. Readers write marks without a lock."""


def publish_views(layout: Layout, log: logging.Logger | None = None) -> None:
    """Publish the SQL views after a run. Log an error instead of failing the run, because its days are stored."""
    try:
        publish_catalog(layout)
    except MarketDataError as error:
        (log or logging.getLogger(__name__)).warning("The SQL views are not up to date. %s", error)


def publish_catalog(layout: Layout) -> Path:
    """Update ``catalog.duckdb`` to the lake and return its path.

    An up-to-date catalog is detected by listing folders, and nothing is written. Readers of the old file continue with
    it. Several processes may publish at once. DuckDB 1.4 can read the file.

    Raises:
        StorageError: The data folder is not writable.
        SeriesBusyError: Another process has been publishing for too long.
        DamagedFileError: The columns of the ledgers cannot be read. The old catalog stays.
    """
    listed = stored_objects if is_object(layout.root) else stored_series
    if not _is_published(listed(layout)):
        lock = layout.catalog.with_suffix(".lock")
        with storage.only_writer(lock, _LOCK_WAIT_SECONDS, "The catalog"):
            # List again under the lock, so that the last publisher sees the newest files.
            stored = listed(layout)
            for mark, schema in marks_of(stored):
                storage.remove_leftovers(mark.parent, older_than_seconds=_LEFT_AFTER_SECONDS)
                if storage.head(mark) is None:
                    parquet.write_table(mark, empty_table(schema))
            if not _is_published(stored):
                _publish(layout, _published_statements(stored))
    return layout.catalog


def refresh_catalog(layout: Layout) -> None:
    """Update an existing catalog to the lake. Leave it unchanged if it cannot be published."""
    if storage.head(layout.catalog) is not None:
        with suppress(MarketDataError):
            publish_catalog(layout)


def retire_catalogs(layout: Layout) -> datetime | None:
    """Remove the marks of stale SQL, so that it fails. It would read days' files that are about to be removed.

    The SQL of the current catalog still works.

    Returns:
        Publication time (UTC) of the oldest retired mark; None if there was none.

    Raises:
        StorageError: A mark cannot be removed.
    """
    if is_object(layout.root):  # names are never reused, so stale SQL fails by itself
        return None
    current = {mark for mark, _ in marks_of(stored_series(layout))}
    retired = []
    for market in Market:
        for data_type in data_types_of(market):
            for mark in storage.list_paths(folder_of(layout, market, data_type) / "marks", "*.parquet"):
                modified_ns = storage.modified_ns(mark)
                if mark not in current and modified_ns is not None:
                    retired.append(modified_ns)
                    storage.remove(mark)
    return datetime.fromtimestamp(min(retired) / 1e9, UTC) if retired else None


def retire_marks(layout: Layout, keys: Iterable[SeriesKey]) -> None:
    """Remove the marks of all SQL over the closed months of some series, so that it fails. They are about to go.

    The next publication writes the mark of the SQL that is valid then.

    Raises:
        StorageError: A mark cannot be removed.
    """
    if is_object(layout.root):
        return
    for market, data_type in dict.fromkeys((key.market, key.data_type) for key in keys if months_closed(layout, key)):
        for mark in storage.list_paths(folder_of(layout, market, data_type) / "marks", "*.parquet"):
            storage.remove(mark)


@contextmanager
def _scratch(layout: Layout) -> Iterator[Path]:
    if "?" in str(layout.local):  # DuckDB cannot write there: it treats the rest of the path as parameters
        with tempfile.TemporaryDirectory(prefix="catalog-") as folder:
            yield Path(folder)
    else:
        with storage.temporary_folder(layout.local) as path:
            yield path


def _publish(layout: Layout, wanted: Sequence[str]) -> None:
    import duckdb

    with _scratch(layout) as folder:
        path = folder / "catalog.duckdb"
        # Threads only cost here, as each statement by itself does: together a third of the processor's time.
        with duckdb.connect(config={"threads": 1}) as connection:
            attach_objects(connection, layout.root)
            connection.execute(f"ATTACH {quoted(str(path))} AS built (STORAGE_VERSION 'v1.0.0')")
            connection.execute("USE built")
            try:
                connection.execute("BEGIN")  # one commit waits for the disk only once
                connection.execute(";\n".join(wanted))
                connection.execute("COMMIT")
            except duckdb.Error as error:
                raise lake_error(error, layout) from error
            connection.execute("CHECKPOINT built")
            connection.execute("USE memory")
            connection.execute("DETACH built")
        built = path.read_bytes()
    stat = storage.put(layout.catalog, built)
    storage.put(_signature_file(layout), _signature(wanted, stat).encode())


def _is_published(stored: StoredSeries) -> bool:
    """Return True if the catalog matches the stored series and all marks exist."""
    stat = storage.head(stored.layout.catalog)
    try:
        return (
            stat is not None
            and storage.read(_signature_file(stored.layout))[0].decode()
            == _signature(_published_statements(stored), stat)
            and all(storage.head(mark) is not None for mark, _ in marks_of(stored))
        )
    except (OSError, ValueError):
        return False


def _published_statements(stored: StoredSeries) -> list[str]:
    return statements(stored, marked=stored.objects is None, published=True)


def _signature_file(layout: Layout) -> Path:
    # A separate file, because reading it from the catalog needs DuckDB, its locks and 20 ms.
    return layout.catalog.with_suffix(".signature")


def _signature(wanted: Sequence[str], stat: FileStat) -> str:
    text = hashlib.sha256("\n".join(wanted).encode()).hexdigest()
    return f"{text} {stat.bytes} {stat.version}\n"
