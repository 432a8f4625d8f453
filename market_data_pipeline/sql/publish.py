"""Publication of the views as ``catalog.duckdb``.

The catalog is built elsewhere and swapped in by rename. No process opens the published file for writing, because a
DuckDB writer shuts out every reader. What is in the views belongs to ``sql/views.py``.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from market_data_pipeline.errors import MarketDataError
from market_data_pipeline.lake import parquet, storage
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.partitions import folder_of
from market_data_pipeline.lake.regular_files import read_regular
from market_data_pipeline.model.datasets import data_types_of
from market_data_pipeline.model.day import FileStat
from market_data_pipeline.model.series import Market
from market_data_pipeline.sql.errors import lake_error
from market_data_pipeline.sql.file_lists import Held, held_now, marks_of, quoted
from market_data_pipeline.sql.views import statements

LOCK_WAIT_SECONDS = 60.0


_LEFT_AFTER_SECONDS = 3600
"""Age from which a temporary file beside the marks counts as left: readers write marks without a lock."""


def publish_views(layout: Layout, log: logging.Logger | None = None) -> None:
    """Bring the SQL views up to what a run has written. A run whose days are held does not fail for the views' sake."""
    try:
        publish_catalog(layout)
    except MarketDataError as error:
        (log or logging.getLogger(__name__)).warning("The views for SQL are not up to date. %s", error)


def publish_catalog(layout: Layout) -> Path:
    """Bring ``catalog.duckdb`` up to the lake; return its path.

    Where it is right already, that is found out by listing folders, and nothing is written. Readers that have the old
    file open go on with it. Several processes may publish at once. DuckDB 1.4 can read the file.

    Raises:
        StorageError: the root cannot be written to.
        SeriesBusyError: another process has been publishing for too long.
        DamagedFileError: the columns of the ledgers cannot be read off them; the old catalog stays.
    """
    if not _is_published(held_now(layout)):
        lock = layout.catalog.with_suffix(".lock")
        with storage.only_writer(lock, LOCK_WAIT_SECONDS, "The catalog"):
            # Looked at again under the lock, so that the last to publish has seen the newest files.
            held = held_now(layout)
            for mark, schema in marks_of(held):
                storage.remove_leftovers(mark.parent, older_than_seconds=_LEFT_AFTER_SECONDS)
                if not mark.exists():
                    parquet.write_table(mark, schema.empty_table())
            if not _is_published(held):
                _publish(layout, statements(held, published=True))
    return layout.catalog


def refresh_catalog(layout: Layout) -> None:
    """Bring a catalog that there is up to the lake; leave it as it is if the folder cannot be written."""
    if layout.catalog.exists():
        with suppress(MarketDataError):
            publish_catalog(layout)


def retire_catalogs(layout: Layout) -> datetime | None:
    """Have SQL of an earlier time fail from now on: it looks for days that are to be removed.

    Whoever has the catalog open that is published now goes on with it.

    Returns:
        When the oldest of what is retired was published (UTC); None where there was nothing to retire.

    Raises:
        StorageError: the system refuses.
    """
    current = {mark for mark, _ in marks_of(held_now(layout))}
    retired = []
    for market in Market:
        for data_type in data_types_of(market):
            for mark in (folder_of(layout, market, data_type) / "marks").glob("*.parquet"):
                stat = storage.stat(mark)
                if mark not in current and stat is not None:
                    retired.append(stat.mtime_ns)
                    storage.remove(mark)
    return datetime.fromtimestamp(min(retired) / 1e9, UTC) if retired else None


@contextmanager
def _scratch(layout: Layout) -> Iterator[Path]:
    if "?" in str(layout.root):  # DuckDB cannot write there: it takes what follows for parameters
        with tempfile.TemporaryDirectory(prefix="catalog-") as folder:
            yield Path(folder)
    else:
        with storage.temporary_folder(layout.root) as path:
            yield path


def _publish(layout: Layout, wanted: Sequence[str]) -> None:
    import duckdb

    with _scratch(layout) as folder:
        path = folder / "catalog.duckdb"
        with duckdb.connect() as connection:
            connection.execute(f"ATTACH {quoted(str(path))} AS built (STORAGE_VERSION 'v1.0.0')")
            connection.execute("USE built")
            try:
                connection.execute("BEGIN")  # one commit, and so one wait for the disk
                for statement in wanted:
                    connection.execute(statement)
                connection.execute("COMMIT")
            except duckdb.Error as error:
                raise lake_error(error, layout) from error
            connection.execute("CHECKPOINT built")
            connection.execute("USE memory")
            connection.execute("DETACH built")
        built = path.read_bytes()
    stat = storage.write_bytes(layout.catalog, built)
    storage.write_bytes(_signature_file(layout), _signature(wanted, stat).encode())


def _is_published(held: Held) -> bool:
    """Return True if the catalog is the one of a lake that has this, and its marks are there."""
    stat = storage.stat(held.layout.catalog)
    try:
        return (
            stat is not None
            and read_regular(_signature_file(held.layout)).decode()
            == _signature(statements(held, published=True), stat)
            and all(mark.exists() for mark, _ in marks_of(held))
        )
    except (OSError, ValueError):
        return False


def _signature_file(layout: Layout) -> Path:
    # Beside the catalog, since to look into it would need DuckDB, its locks and 20 ms.
    return layout.catalog.with_suffix(".signature")


def _signature(wanted: Sequence[str], stat: FileStat) -> str:
    text = hashlib.sha256("\n".join(wanted).encode()).hexdigest()
    return f"{text} {stat.bytes} {stat.mtime_ns}\n"
