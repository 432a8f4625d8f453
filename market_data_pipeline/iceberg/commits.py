"""One commit: data files of some series are added and others removed, in one snapshot.

pyiceberg rewrites each manifest that may name a removed file, and compares each with each partition. Here a manifest
has files of one series, so a commit reads and writes those of changed series only, and so does a plan of a query. A
full manifest stays as it is while its files do. Choosing the files belongs to ``publishing.py``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

from pyiceberg.conversions import from_bytes
from pyiceberg.manifest import (
    DataFile,
    ManifestContent,
    ManifestEntry,
    ManifestEntryStatus,
    ManifestFile,
    ManifestWriter,
    write_manifest,
)
from pyiceberg.table import Table, Transaction
from pyiceberg.table.snapshots import Operation
from pyiceberg.table.update.snapshot import _SnapshotProducer
from pyiceberg.types import StringType

from market_data_pipeline.iceberg.tables import TableForm
from market_data_pipeline.model.series import SeriesKey

FULL_MANIFEST = 64
"""Files of a full manifest. Later commits do not rewrite it only to add files of its series."""

Labels = tuple[str, ...]
"""Symbol, and interval if there is one, of a series in a table."""


def labels_of_series(key: SeriesKey) -> Labels:
    """Return the labels of a series."""
    return (key.symbol,) if key.interval is None else (key.symbol, key.interval)


@dataclass(frozen=True, slots=True)
class Change:
    """Data files of a series to add and to remove."""

    added: Sequence[DataFile] = ()
    removed: frozenset[str] = frozenset()


@dataclass(slots=True)
class Published:
    """Data files of a table's current snapshot, by manifest.

    Attributes:
        manifests: Manifests of one series each.
        mixed: Manifests with files of several series, which another program wrote.
        deletes: True if another program deleted rows without rewriting their files.
    """

    table: Table
    form: TableForm
    manifests: dict[Labels, list[ManifestFile]] = field(default_factory=lambda: defaultdict(list))
    mixed: list[ManifestFile] = field(default_factory=list)
    deletes: bool = False
    _read: dict[str, list[ManifestEntry]] = field(default_factory=dict)

    @classmethod
    def read(cls, table: Table, form: TableForm) -> Published:
        """Read the list of manifests."""
        found, snapshot = cls(table, form), table.current_snapshot()
        for manifest in snapshot.manifests(table.io) if snapshot else ():
            if manifest.content is not ManifestContent.DATA:
                found.deletes = True
            elif manifest.has_added_files() or manifest.has_existing_files():
                labels = found._labels_of(manifest)
                (found.mixed if labels is None else found.manifests[labels]).append(manifest)
        return found

    def _labels_of(self, manifest: ManifestFile) -> Labels | None:
        """Return the series of a manifest; None if it has several, or another program's partitions."""
        if manifest.partition_spec_id != self.form.spec.spec_id or not manifest.partitions:
            return None
        labels = []
        for summary in manifest.partitions[: len(self.form.labels)]:
            if summary.contains_null or summary.lower_bound is None or summary.lower_bound != summary.upper_bound:
                return None
            labels.append(str(from_bytes(StringType(), summary.lower_bound)))
        return tuple(labels)

    def entries(self, manifest: ManifestFile) -> list[ManifestEntry]:
        """Return the live files of a manifest."""
        if manifest.manifest_path not in self._read:
            self._read[manifest.manifest_path] = manifest.fetch_manifest_entry(self.table.io)
        return self._read[manifest.manifest_path]

    def series(self) -> set[Labels]:
        """Return all series that have a file."""
        return {*self.manifests, *(self.labels_of(entry) for entry in self._mixed_entries())}

    def number(self, labels: Labels) -> int:
        """Return the number of files in manifests of a series, without reading them."""
        some = self.manifests.get(labels, ())
        return sum((one.added_files_count or 0) + (one.existing_files_count or 0) for one in some)

    def files(self, labels: Labels) -> Iterator[DataFile]:
        """Yield the files of a series."""
        for manifest in self.manifests.get(labels, ()):
            yield from (entry.data_file for entry in self.entries(manifest))
        yield from (entry.data_file for entry in self._mixed_entries() if self.labels_of(entry) == labels)

    def _mixed_entries(self) -> Iterator[ManifestEntry]:
        return chain.from_iterable(map(self.entries, self.mixed))

    def labels_of(self, entry: ManifestEntry) -> Labels:
        """Return the series of a file. The first values of its partition are its labels."""
        partition = entry.data_file.partition
        return tuple(str(partition[number]) for number in range(min(len(self.form.labels), len(partition))))


def snapshot_id(table: Table) -> int | None:
    """Return the number of a table's newest snapshot; None if it has none."""
    snapshot = table.current_snapshot()
    return None if snapshot is None else snapshot.snapshot_id


def commit(published: Published, changes: Mapping[Labels, Change], properties: Mapping[str, str]) -> Table:
    """Add and remove data files of series in one snapshot, and return the table with it.

    Args:
        published: The state of the table that the changes begin with.
        properties: Text for the summary of the snapshot.

    Raises:
        CommitFailedException: The table has another state by now. Nothing was changed.
    """
    with published.table.transaction() as transaction:
        _Commit(transaction, published, changes, dict(properties)).commit()
    return published.table


class _Commit(_SnapshotProducer["_Commit"]):
    """Snapshot that replaces the manifests of changed series."""

    def __init__(
        self,
        transaction: Transaction,
        published: Published,
        changes: Mapping[Labels, Change],
        properties: dict[str, str],
    ) -> None:
        added, removed = (any(getattr(one, name) for one in changes.values()) for name in ("added", "removed"))
        operation = Operation.APPEND if not removed else Operation.OVERWRITE if added else Operation.DELETE
        super().__init__(operation, transaction, published.table.io, snapshot_properties=properties)
        self._published = published
        self._metadata = published.table.metadata
        self._changes = changes
        for change in changes.values():
            self._added_data_files += change.added

    def _manifests(self) -> list[ManifestFile]:
        kept, touched = self._split()
        for labels, change in self._changes.items():
            touched[labels].extend(self._added(change.added))
        return [*self._written(touched), *kept]

    def _split(self) -> tuple[list[ManifestFile], dict[Labels, list[ManifestEntry]]]:
        """Return the manifests that stay, and the entries of all others by series."""
        published, kept = self._published, list[ManifestFile]()
        touched: dict[Labels, list[ManifestEntry]] = defaultdict(list)
        for labels, manifests in published.manifests.items():
            change = self._changes.get(labels)
            for manifest in manifests:
                entries = published.entries(manifest) if change else []
                full = len(entries) >= FULL_MANIFEST
                if change is None or (full and not any(one.data_file.file_path in change.removed for one in entries)):
                    kept.append(manifest)
                else:
                    touched[labels].extend(self._staying(entries, change))
        for manifest in published.mixed:
            for entry in published.entries(manifest):
                labels = published.labels_of(entry)
                touched[labels].extend(self._staying([entry], self._changes.get(labels, Change())))
        return kept, touched

    def _staying(self, entries: Iterable[ManifestEntry], change: Change) -> Iterator[ManifestEntry]:
        """Yield the entries of a rewritten manifest. Removed files stay in it as removed."""
        for entry in entries:
            removed = entry.data_file.file_path in change.removed
            if removed:
                self._deleted_data_files.add(entry.data_file)
            yield ManifestEntry.from_args(
                status=ManifestEntryStatus.DELETED if removed else ManifestEntryStatus.EXISTING,
                snapshot_id=self._snapshot_id if removed else entry.snapshot_id,
                sequence_number=entry.sequence_number,
                file_sequence_number=entry.file_sequence_number,
                data_file=entry.data_file,
            )

    def _added(self, files: Iterable[DataFile]) -> Iterator[ManifestEntry]:
        for one in files:
            yield ManifestEntry.from_args(
                status=ManifestEntryStatus.ADDED, snapshot_id=self._snapshot_id, data_file=one
            )

    def _written(self, entries: Mapping[Labels, list[ManifestEntry]]) -> Iterator[ManifestFile]:
        for of_series in entries.values():
            groups: dict[int, list[ManifestEntry]] = defaultdict(list)
            for entry in of_series:
                groups[entry.data_file.spec_id].append(entry)
            for number, of_spec in groups.items():
                of_spec.sort(key=_by_time)
                for begin in range(0, len(of_spec), FULL_MANIFEST):
                    with self._writer(number) as writer:
                        for entry in of_spec[begin : begin + FULL_MANIFEST]:
                            writer.add_entry(entry)
                    yield writer.to_manifest_file()

    def _writer(self, spec: int) -> ManifestWriter:
        # The producer's own method asks the transaction for the metadata, which makes a copy each time.
        metadata = self._metadata
        return write_manifest(
            format_version=metadata.format_version,
            spec=metadata.specs()[spec],
            schema=metadata.schema(),
            output_file=self.new_manifest_output(),
            snapshot_id=self._snapshot_id,
            avro_compression=self._compression,
        )

    # The producer's own `_manifests` calls these two. This one writes the manifests itself, so a call is a fault.
    def _existing_manifests(self) -> list[ManifestFile]:
        raise AssertionError("this commit writes its manifests itself")

    def _deleted_entries(self) -> list[ManifestEntry]:
        raise AssertionError("this commit writes its entries itself")


def _by_time(entry: ManifestEntry) -> tuple[int, str]:
    """Order files by their period, so that the bounds of a manifest are narrow. Months come before open days."""
    partition = entry.data_file.partition
    return int(partition[len(partition) - 1] or 0), entry.data_file.file_path
