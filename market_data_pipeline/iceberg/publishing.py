"""Publish the lake: compare the files of each series with its table, and commit the differences in batches.

The table is the truth about what is published: each data file's name states its content. A file next to the table
remembers which series were alike, so that most need no look. A publish that is killed at any moment leaves the old
snapshot or the new one, and the next publish continues. Old snapshots belong to ``expiry.py``.
"""

from __future__ import annotations

import json
import logging
import random
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from pyiceberg.catalog import Catalog
from pyiceberg.manifest import DataFile
from pyiceberg.table import Table

from market_data_pipeline import __version__
from market_data_pipeline.errors import DamagedFileError, EnvironmentFaultError
from market_data_pipeline.iceberg.catalog import (
    LOST_RACE,
    existing_table,
    layout_of_tables,
    opened_catalog,
    ready_table,
)
from market_data_pipeline.iceberg.commits import Change, Labels, Published, commit, labels_of_series, snapshot_id
from market_data_pipeline.iceberg.data_files import (
    DataFiles,
    FileContent,
    LinkedFiles,
    ReplacedMeanwhileError,
    content_named,
    content_of,
    described,
)
from market_data_pipeline.iceberg.expiry import expire
from market_data_pipeline.iceberg.hints import write_hint
from market_data_pipeline.iceberg.stored_files import StoredFile, files_to_publish, signature
from market_data_pipeline.iceberg.tables import TABLES, TableForm, TableName, table_of
from market_data_pipeline.lake import storage
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.partitions import known_series
from market_data_pipeline.lake.regular_files import read_regular
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.settings import Settings

logger = logging.getLogger(__name__)

SERIES_A_COMMIT = 200
"""Series of one commit. Their files are one snapshot, and a killed publish has to repeat at most so many."""

FILES_A_COMMIT = 20_000
"""Files of one commit, unless one series has more. It bounds the memory of a publish to about 100 MB."""

_ATTEMPTS = 20
"""Attempts at a commit against other publishes. Each lost one means that another publish has won."""

_PAUSE_SECONDS = 0.2

_LISTINGS = 3
"""Attempts at a series whose files are replaced while they are published."""


@dataclass(slots=True)
class PublishReport:
    """Result of a publish.

    Attributes:
        series: Series that were compared or known to be alike.
        changed: Series with files that were added or removed.
        added: Files that were added.
        removed: Files that were removed from the newest snapshot.
        commits: Snapshots that were made.
        expired: Snapshots that were removed because of their age.
        deleted: Files that no snapshot needs any more, and that were deleted.
        troubles: Files that were left out, with the reason. The table has their last published state.
    """

    series: int = 0
    changed: int = 0
    added: int = 0
    removed: int = 0
    commits: int = 0
    expired: int = 0
    deleted: int = 0
    troubles: dict[str, str] = field(default_factory=dict)


def publish(
    settings: Settings,
    only: Collection[SeriesKey] | None = None,
    *,
    tables: Sequence[TableName] = TABLES,
    expire_now: bool = False,
    on_series: Callable[[int], object] = lambda _: None,
) -> PublishReport:
    """Make the tables equal to the lake, and remove snapshots that are older than the setting.

    Args:
        settings: The location of the lake and of the catalog, and the age of snapshots.
        only: Series to publish; None publishes all, and removes those from the tables that the lake no longer has.
        tables: Tables to publish.
        expire_now: Remove old snapshots and unneeded files now. By default, when enough snapshots are old.
        on_series: Called with the number of series that were done.

    Raises:
        UsageError: The catalog cannot be used as it is set.
        EnvironmentFaultError: The catalog does not answer, or other publishes won each time.
        StorageError: A file cannot be written. The tables have their last published state.
    """
    layout, report = layout_of_tables(settings), PublishReport()
    by_table: dict[TableName, list[SeriesKey]] = {name: [] for name in tables}
    for key in known_series(layout) if only is None else only:
        if table_of(key) in by_table:
            by_table[table_of(key)].append(key)
    with opened_catalog(settings) as catalog:
        for name, keys in by_table.items():
            _Publisher(settings, catalog, TableForm(name), report, on_series).run(keys, only is None, expire_now)
    return report


class _Publisher:
    """Publishes one table."""

    def __init__(
        self,
        settings: Settings,
        catalog: Catalog,
        form: TableForm,
        report: PublishReport,
        on_series: Callable[[int], object],
    ) -> None:
        self._settings = settings
        self._layout = Layout(settings.root)
        self._catalog = catalog
        self._form = form
        self._folder = self._layout.iceberg_table(*form.name.identifier)
        self._files: DataFiles = LinkedFiles(self._folder)
        self._alike = _Alike(self._folder / "published.json")
        self._report = report
        self._on_series = on_series

    def run(self, keys: Sequence[SeriesKey], whole: bool, expire_now: bool) -> None:
        is_stored = any(self._layout.folder(key).is_dir() or self._layout.months(key).is_dir() for key in keys)
        if not is_stored and (not whole or existing_table(self._catalog, self._form) is None):
            self._on_series(len(keys))
            return
        is_own = not self._settings.iceberg_catalog
        table = ready_table(self._catalog, self._form, self._files.location, is_own=is_own)
        self._alike.load(table)
        published = Published.read(table, self._form)
        if whole and (gone := published.series() - {labels_of_series(key) for key in keys}):
            table = self._committed(lambda now: {labels: _all_of(now, labels) for labels in gone})
        if published.deletes:
            table = self._committed(lambda _: {})
        signatures = {key: signature(self._layout, key, time.time_ns()) for key in keys}
        due = [key for key in keys if not self._alike.has(key, signatures[key])]
        self._report.series += len(keys)
        self._on_series(len(keys) - len(due))
        for some in _batches(due, [self._files_of(published, key) for key in due]):
            table = self._committed(partial(self._changes, keys=some))
            self._alike.note({key: signatures[key] for key in some})
            self._on_series(len(some))
        done = expire(table, self._files, self._settings, at_once=expire_now)
        write_hint(table, self._folder)
        self._report.expired += done.snapshots
        self._report.deleted += done.files

    def _committed(self, changes: Callable[[Published], dict[Labels, Change]]) -> Table:
        """Commit the changes to the newest snapshot. Compute them again if another publish wins."""
        for attempt in range(_ATTEMPTS):
            table = self._catalog.load_table(self._form.name.identifier)
            published = Published.read(table, self._form)
            wanted = changes(published)
            if not wanted and not published.deletes:
                return table
            self._files.settle()
            before = snapshot_id(table)
            try:
                done = commit(published, wanted, {"market-data-pipeline": __version__})
            except LOST_RACE:
                logger.info("Another publish of %s was faster. Its changes are taken over.", self._form.name)
                time.sleep(random.uniform(0, _PAUSE_SECONDS * (attempt + 1)))  # noqa: S311 - no secret
                continue
            self._alike.follow(before, snapshot_id(done))
            self._count(wanted)
            return done
        raise EnvironmentFaultError(
            f"{self._form.name} could not be published: other publishes of it won {_ATTEMPTS} times. Leave the "
            "publishing of a table to one schedule."
        )

    def _files_of(self, published: Published, key: SeriesKey) -> int:
        """Return about how many files a commit of a series has to look at."""
        stored = sum(1 for _ in storage.list_named(self._layout.folder(key)))
        return max(stored, published.number(labels_of_series(key)))

    def _count(self, changes: Mapping[Labels, Change]) -> None:
        self._report.commits += 1
        self._report.changed += len(changes)
        self._report.added += sum(len(one.added) for one in changes.values())
        self._report.removed += sum(len(one.removed) for one in changes.values())

    def _changes(self, published: Published, keys: Iterable[SeriesKey]) -> dict[Labels, Change]:
        publish_id = secrets.token_hex(4)[:7]
        changes = {labels_of_series(key): self._change(published, key, publish_id) for key in keys}
        return {labels: one for labels, one in changes.items() if one.added or one.removed}

    def _change(self, published: Published, key: SeriesKey, publish_id: str) -> Change:
        """Return what makes the table equal to the lake for a series. Place the files that it adds."""
        for attempt in range(_LISTINGS):
            try:
                return self._change_of(published, key, f"{publish_id}{attempt:x}")
            except ReplacedMeanwhileError:
                continue
        self._alike.doubt(key)  # it is written faster than it is listed: the next publish takes it
        return Change()

    def _change_of(self, published: Published, key: SeriesKey, publish_id: str) -> Change:
        found, unread = files_to_publish(self._layout, key)
        wanted = {content_of(file): file for file in found}
        before, stays = dict[str, FileContent | None](), set[FileContent]()
        for one in published.files(labels_of_series(key)):
            content = content_named(one.file_path)
            if content in wanted and content not in stays:
                stays.add(content)
            else:
                before[one.file_path] = content
        added = list[DataFile]()
        for content, file in wanted.items():
            if content not in stays:
                try:
                    added.append(self._placed(file, publish_id))
                except DamagedFileError as error:
                    unread[file.period] = str(error)
        if unread:
            self._alike.doubt(key)
            self._report.troubles |= {f"{key.short} {period}": reason for period, reason in unread.items()}
        good = wanted.keys() if not unread else {one for one in wanted if one.period not in unread}
        removed = {
            path
            for path, content in before.items()
            if content is None or not _overlaps(content.period, unread) or _overlaps(content.period, _periods(good))
        }
        return Change(added, frozenset(removed))

    def _placed(self, file: StoredFile, publish_id: str) -> DataFile:
        placed = self._files.place(file, publish_id)
        try:
            return described(self._form, file, placed)
        except DamagedFileError:
            self._files.remove(placed.location)
            raise


def _periods(contents: Iterable[FileContent]) -> list[str]:
    return [one.period for one in contents]


def _overlaps(period: str, others: Iterable[str]) -> bool:
    """Return True if a day or month is, has or is part of one of the others."""
    return any(period.startswith(other) or other.startswith(period) for other in others)


def _batches(keys: Sequence[SeriesKey], files: Sequence[int]) -> Iterator[list[SeriesKey]]:
    batch, held = list[SeriesKey](), 0
    for key, number in zip(keys, files, strict=True):
        if batch and (len(batch) == SERIES_A_COMMIT or held + number > FILES_A_COMMIT):
            yield batch
            batch, held = [], 0
        batch.append(key)
        held += number
    if batch:
        yield batch


class _Alike:
    """Series that were equal to the table at its newest snapshot, with the signatures of their files."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._snapshot: int | None = None
        self._series: dict[str, str] = {}
        self._doubted = set[SeriesKey]()

    def load(self, table: Table) -> None:
        """Read what is known of a table. Nothing is, if its newest snapshot is another one."""
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            known = json.loads(read_regular(self._path))
            if known["snapshot"] == snapshot_id(table):
                self._series = {str(name): str(text) for name, text in known["series"].items()}
        self._snapshot = snapshot_id(table)

    def has(self, key: SeriesKey, text: str | None) -> bool:
        """Return True if a series is known to be equal to the table."""
        return text is not None and self._series.get(str(key)) == text

    def doubt(self, key: SeriesKey) -> None:
        """Look at a series again next time."""
        self._doubted.add(key)

    def follow(self, before: int | None, after: int | None) -> None:
        """Go on with the snapshot of a commit of our own. Another one before it makes all else unknown."""
        if before != self._snapshot:
            self._series.clear()
        self._snapshot = after

    def note(self, signatures: Mapping[SeriesKey, str | None]) -> None:
        """Remember series that are equal to the table now, and write all that is known."""
        for key, text in signatures.items():
            if text is None or key in self._doubted:
                self._series.pop(str(key), None)
            else:
                self._series[str(key)] = text
        known = {"snapshot": self._snapshot, "series": self._series}
        storage.put(self._path, json.dumps(known, indent=0).encode())


def _all_of(published: Published, labels: Labels) -> Change:
    return Change(removed=frozenset(one.file_path for one in published.files(labels)))
