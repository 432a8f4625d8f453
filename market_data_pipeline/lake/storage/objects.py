"""The lake in a bucket.

A day's or month's file is an object with its content's hash in its name, such as
``lake/binance/spot/klines/BTCUSDT/1m/2024-01-01-0000050000c-83a41d6c5f1e.parquet``. A new version gets a new name, and
the greatest name of a day counts. So readers of an old list still find what they listed, until the versions that were
replaced are removed. Days and months of a series are in one folder, so that one listing shows both.

The eleven digits before the hash are a fencing token and a counter. Each writer of a series takes a greater token than
all before it, so one that wakes up late cannot replace what was written since. Other files are objects of their own
name. Requests belong to ``bucket.py``.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from io import BufferedReader
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import pyarrow as pa

from market_data_pipeline.errors import SeriesBusyError
from market_data_pipeline.lake.storage.bucket import PAGE_OBJECTS, Bucket, ConditionError, StoredObject, endpoint
from market_data_pipeline.lake.storage.disk import Disk
from market_data_pipeline.lake.storage.protocol import ABSENT, DAYS, Named
from market_data_pipeline.model.day import FileStat
from market_data_pipeline.model.places import LOCKS, ObjectPath, lake_of, local_of
from market_data_pipeline.model.waits import Stop

_FRESH_SECONDS = 2.0
"""Age up to which a listing is used again. The writer of a series lists it once, and knows its own changes."""

_GRACE_NS = 3_600_000_000_000
"""Age from which replaced versions are removed."""

_WHOLE_BYTES = 1 << 20
"""Files up to this size are read in one request."""

_DATED = re.compile(r"\d{4}-\d\d(-\d\d)?\.parquet")
_VERSION = re.compile(r"(\d{4}-\d\d(?:-\d\d)?)-([0-9a-f]{11})-([0-9a-f]{12})\.parquet")
_COUNTER_DIGITS = 5
_SEQUENCE_DIGITS = 11
_SMALL_AREAS = {"universe", "quality"}
_LISTED_WHOLE = {*_SMALL_AREAS, "ledger"}
"""Parts of a lake that one request or two list as a whole."""
_MOST_TAGS = 10_000
_MOST_KEPT = 64
"""Tables whose bytes are cached for the next second."""
_FILE_SUFFIXES = {".parquet", ".json", ".lock", ".duckdb", ".signature", ".zip", ".damaged"}
_TRIES = 5
_CHECK_EVERY_SECONDS = 86_400


class _Version(NamedTuple):
    """A version of a file: the order among those of its name, and the object."""

    order: str
    object: StoredObject
    stat: FileStat

    @property
    def sequence(self) -> int:
        """Return the token and the counter as one number; 0 if its name has none."""
        return int(self.order[:_SEQUENCE_DIGITS] or "0", 16)


@dataclass
class _Folder:
    """Versions of the files in a folder, by name, and from which name on they are known."""

    at: float
    first: str = ""
    last: str = "\uffff"
    files: dict[str, list[_Version]] = field(default_factory=dict)

    def add(self, name: str, version: _Version) -> None:
        versions = self.files.setdefault(name, [])
        versions.append(version)
        versions.sort(key=lambda one: one.order)

    def current(self, name: str) -> _Version | None:
        versions = self.files.get(name)
        return versions[-1] if versions else None


@dataclass
class _Session:
    """The one writer of a series."""

    token: int
    counter: int = 0


class Objects:
    """Files of lakes in one bucket."""

    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket
        self._lock = threading.RLock()
        self._folders: dict[str, _Folder] = {}
        self._trees: dict[str, tuple[float, dict[str, _Folder]]] = {}
        self._sessions: dict[str, _Session] = {}
        self._plain: dict[str, tuple[float, StoredObject | None]] = {}
        self._bytes: OrderedDict[str, tuple[str, bytes]] = OrderedDict()
        self._tags: dict[int, str] = {}
        self._checked: set[str] = set()

    # --- reading --------------------------------------------------------------------------------------------------

    def read(self, path: Path) -> tuple[bytes, FileStat]:
        """Read a file, of a day its current version."""
        if not _DATED.fullmatch(path.name):
            before = self._plain.get(_name(path))
            data, stat = self._read_plain(_name(path))
            self._list_after(path, before)
            return data, stat
        version = self._current(path)
        try:
            return self.bucket.get(version.object.name)[0], version.stat
        except FileNotFoundError:  # replaced, and its old version was removed since
            version = self._current(path, fresh=True)
            return self.bucket.get(version.object.name)[0], version.stat

    def read_range(self, path: Path, start: int, length: int) -> bytes:
        """Read a part of a file."""
        name = self._current(path).object.name if _DATED.fullmatch(path.name) else _name(path)
        return self.bucket.get_range(name, start, length)

    def open_file(self, path: Path) -> BufferedReader:
        """Open a file: a small one whole, of others each part is a request."""
        if not _DATED.fullmatch(path.name):
            return BufferedReader(_Bytes(self.read(path)[0]))
        version = self._current(path)
        if version.object.bytes <= _WHOLE_BYTES:
            return BufferedReader(_Bytes(self.read(path)[0]))
        return BufferedReader(_Ranges(self.bucket, version.object), _WHOLE_BYTES)

    def source(self, path: Path) -> Path | BufferedReader:
        """Open a file for Arrow."""
        return self.open_file(path)

    def head(self, path: Path) -> FileStat | None:
        """Return size and version of a file; None if there is no such file."""
        found = self._found(path)
        return found if found is None or isinstance(found, FileStat) else self._stat(found)

    def modified_ns(self, path: Path) -> int | None:
        """Return when a file was written, by the store's clock; None if there is no such file."""
        if _DATED.fullmatch(path.name):
            version = self._newest(path)
            return None if version is None else version.object.modified_ns
        found = self._headed(path)
        return None if found is None else found.modified_ns

    def revision(self, path: Path) -> tuple[int, ...] | None:
        """Return numbers that change with a file, or with the names in a folder; None if it does not exist."""
        if path.suffix in _FILE_SUFFIXES:
            stat = self.head(path)
            return None if stat is None else (self.modified_ns(path) or 0, stat.bytes, stat.version, 0)
        if path == lake_of(path):
            return (0, 0, 0, 0) if self._tree(path / "ledger") or self._tree(path / "lake") else None
        files_ = self._listed(path).files
        newest = [versions[-1] for versions in files_.values()]
        if not newest:
            return (0, 0, 0, 0) if self.list_names(path) else None
        digest = hashlib.blake2b("".join(sorted(one.object.name for one in newest)).encode(), digest_size=7).digest()
        return max(one.object.modified_ns for one in newest), len(newest), int.from_bytes(digest, "big"), 0

    # --- listing --------------------------------------------------------------------------------------------------

    def list_dates(self, folder: Path, form: Named = DAYS) -> dict[date, FileStat]:
        """Return the days, or months, with a file of their own, in order, with its size and version."""
        return dict(sorted(self._dates(folder, form)))

    def list_named(self, folder: Path, form: Named = DAYS) -> Iterator[date]:
        """Yield the days, or months, with a file of their own."""
        return (of for of, _ in self._dates(folder, form))

    def _dates(self, folder: Path, form: Named) -> Iterator[tuple[date, FileStat]]:
        for name, versions in list(self._listed(folder).files.items()):
            stem = name.removesuffix(".parquet")
            if len(stem) == form.length and _DATED.fullmatch(name):
                try:
                    yield date.fromisoformat(form.as_date.format(stem)), versions[-1].stat
                except ValueError:
                    continue

    def list_names(self, folder: Path) -> list[str]:
        """Return the names in a folder, in order."""
        prefix = _prefix(folder)
        if folder == lake_of(folder):
            folders, files = self.bucket.list_folder(_name(folder))
            return sorted([PurePosixPath(one).name for one in folders] + [_versioned(one)[1] for one in files])
        tree = self._tree(folder)
        below = {one[len(prefix) :].partition("/")[0] for one in tree if one.startswith(prefix) and one != prefix}
        return sorted(below | set(tree[prefix].files if prefix in tree else ()))

    def list_paths(self, folder: Path, pattern: str) -> Iterator[Path]:
        """Yield the files below a folder that match a pattern."""
        wanted = re.compile(_as_regex(pattern))
        if "/" not in pattern:
            yield from (folder / name for name in sorted(self._listed(folder).files) if wanted.fullmatch(name))
            return
        prefix = _prefix(folder)
        for one, found in sorted(self._tree(folder).items()):
            if one.startswith(prefix):
                for name in sorted(found.files):
                    if wanted.fullmatch(one[len(prefix) :] + name):
                        yield folder / (one[len(prefix) :] + name)

    def _tree(self, folder: Path) -> dict[str, _Folder]:
        """Return the folders with files of the part of the lake that has a folder, and list them all in one go."""
        root = lake_of(folder)
        area = root / folder.relative_to(root).parts[0] if folder != root else root
        prefix, began = _prefix(area), time.monotonic()
        known = self._trees.get(prefix)
        if known is not None and began < known[0]:
            return known[1]
        found: dict[str, _Folder] = {}
        for page in self.bucket.pages(_name(area)):
            for stored in page:
                parent, name, version = _versioned(stored)
                found.setdefault(parent, _Folder(began)).add(name, version)
        now = time.monotonic()
        with self._lock:
            for one in [one for one in self._folders if one.startswith(prefix) and one not in self._sessions]:
                del self._folders[one]
            self._folders |= {one: files for one, files in found.items() if one not in self._sessions}
            tree = {one: some for one, some in self._folders.items() if one.startswith(prefix) and some.files}
            for one in found:
                if one not in self._sessions:
                    self._folders[one].at = now
            self._trees[prefix] = now + max(_FRESH_SECONDS, 2 * (now - began)), tree
        return tree

    def _listed(self, folder: Path) -> _Folder:
        """Return the files of a folder."""
        prefix = _prefix(folder)
        known = self._folders.get(prefix)
        if known is not None and known.first == "" and self._is_fresh(prefix, known):
            return known
        if self._is_in(folder, _LISTED_WHOLE) or self._has_tree(prefix):
            return self._tree(folder).get(prefix) or _Folder(time.monotonic())
        return self._kept(prefix, self.bucket.pages(_in_bucket(prefix).rstrip("/")), time.monotonic())

    @staticmethod
    def _is_in(folder: Path, areas: set[str]) -> bool:
        root = lake_of(folder)
        return folder != root and folder.relative_to(root).parts[0] in areas

    def _has_tree(self, prefix: str) -> bool:
        """Return True if the part of the lake that has a folder was listed just now."""
        now = time.monotonic()
        return any(prefix.startswith(one) and now < until for one, (until, _) in list(self._trees.items()))

    def _kept(self, prefix: str, pages: Iterable[list[StoredObject]], at: float, first: str = "") -> _Folder:
        """Cache the files of a listing, and return those of a folder."""
        found = {one: _Folder(at, first) for one in _twins(prefix)}
        for page in pages:
            for stored in page:
                parent, name, version = _versioned(stored)
                if parent in found:
                    found[parent].add(name, version)
        if first and len(page) == PAGE_OBJECTS:  # the last name may have more versions on the next page
            last = max(max(folder.files, default="") for folder in found.values())[: len("2024-01")]
            for folder in found.values():
                folder.files = {name: some for name, some in folder.files.items() if name[: len(last)] < last}
                folder.last = last
        with self._lock:
            self._folders |= {one: folder for one, folder in found.items() if one not in self._sessions}
            return self._folders[prefix]

    def _is_fresh(self, prefix: str, known: _Folder) -> bool:
        return prefix in self._sessions or time.monotonic() - known.at < _FRESH_SECONDS

    def _newest(self, path: Path, *, fresh: bool = False) -> _Version | None:
        """Return the current version of a dated file. One page of the listing from its name on shows it."""
        prefix = _prefix(path.parent)
        known = self._folders.get(prefix)
        month = path.name[: len("2024-01")]
        if known is not None and known.first <= month < known.last and self._is_fresh(prefix, known) and not fresh:
            return known.current(path.name)
        at, folder = time.monotonic(), _in_bucket(prefix)
        page = next(self.bucket.pages(folder.rstrip("/"), after=folder + month), [])
        return self._kept(prefix, [page], at, month).current(path.name)

    def _current(self, path: Path, *, fresh: bool = False) -> _Version:
        version = self._newest(path, fresh=fresh)
        if version is None:
            raise FileNotFoundError(2, os.strerror(2), str(path))
        return version

    def _headed(self, path: Path) -> StoredObject | None:
        name = _name(path)
        known = self._plain.get(name)
        if known is not None and time.monotonic() - known[0] < _FRESH_SECONDS:
            return known[1]
        if self._is_in(path.parent, _SMALL_AREAS):
            version = self._listed(path.parent).current(path.name)
            return None if version is None else version.object
        folder = self._folders.get(_prefix(path.parent))
        if folder is not None and folder.first == "" and time.monotonic() - folder.at < _FRESH_SECONDS:
            version = folder.current(path.name)
            return None if version is None else version.object
        if self._is_in(path.parent, {"ledger"}) and path.suffix == ".parquet":  # its table is read next
            found = self._read_again(name, known[1] if known else None)
            self._list_after(path, known)
            return found
        found = self.bucket.head(name)
        self._plain[name] = time.monotonic(), found
        return found

    def _list_after(self, path: Path, before: tuple[float, StoredObject | None] | None) -> None:
        """Forget the lists of a series if its ledger is another one by now: days that it has may be missing in them."""
        root, now = lake_of(path), self._plain[_name(path)][1]
        parts = path.relative_to(root).parts
        if parts[0] == "ledger" and now is not None and (before is None or before[1] is None or before[1] != now):
            self._forget_lists(_folders_of(root, parts))

    def _forget_lists(self, folders: Iterable[Path]) -> None:
        with self._lock:
            for prefix in map(_prefix, folders):
                if prefix not in self._sessions:
                    self._folders.pop(prefix, None)
                    self._forget_trees(prefix)

    def _read_plain(self, name: str) -> tuple[bytes, FileStat]:
        known = self._plain.get(name)
        if known is not None and known[1] is not None and time.monotonic() - known[0] < _FRESH_SECONDS:
            tag, data = self._bytes.get(name, ("", b""))
            if tag == known[1].etag:
                return data, self._stat(known[1])
        if known is not None and known[1] is None and time.monotonic() - known[0] < _FRESH_SECONDS:
            raise FileNotFoundError(2, os.strerror(2), name)
        try:
            data, found = self.bucket.get(name)
        except FileNotFoundError:
            self._plain[name] = time.monotonic(), None
            raise
        self._plain[name] = time.monotonic(), found
        return data, self._stat(found)

    def _read_again(self, name: str, known: StoredObject | None) -> StoredObject | None:
        """Return what is known of an object, or read it if it is another one by now."""
        found = known
        try:
            has_bytes = known is not None and self._bytes.get(name, ("", b""))[0] == known.etag
            changed = self.bucket.get_changed(name, known.etag if known and has_bytes else None)
            if changed is not None:
                data, found = changed
                self._bytes[name] = found.etag, data
                while len(self._bytes) > _MOST_KEPT:
                    self._bytes.popitem(last=False)
        except FileNotFoundError:
            found = None
        self._plain[name] = time.monotonic(), found
        return found

    def _found(self, path: Path) -> FileStat | StoredObject | None:
        if _DATED.fullmatch(path.name):
            version = self._newest(path)
            return None if version is None else version.stat
        return self._headed(path)

    def _stat(self, found: StoredObject) -> FileStat:
        version = _version_of_tag(found.etag)
        with self._lock:
            self._tags.pop(version, None)  # so that it is the newest
            self._tags[version] = found.etag
            while len(self._tags) > _MOST_TAGS:
                del self._tags[next(iter(self._tags))]
        return FileStat(found.bytes, version)

    def physical(self, path: Path) -> str | None:
        """Return the name of the object that has a file's bytes now; None if there is none."""
        if not _DATED.fullmatch(path.name):
            return _name(path)
        version = self._newest(path)
        return None if version is None else version.object.name

    def address(self, path: Path) -> str | None:
        """Return the name of the object that has a file's bytes now, below the lake; None if there is none."""
        name = self.physical(path)
        return None if name is None else name.removeprefix(_prefix(lake_of(path)))

    # --- writing --------------------------------------------------------------------------------------------------

    def put(
        self, path: Path, data: bytes | pa.Buffer, *, if_match: FileStat | None = None, create: bool = False
    ) -> FileStat:
        """Write a file: of a day a new version, any other in place, and on its condition."""
        self._check(path)
        if _DATED.fullmatch(path.name):
            if create and self.head(path) is not None:
                raise FileExistsError(17, os.strerror(17), str(path))
            return self._put_version(path, data)
        name = _name(path)
        tag = None
        if if_match is not None and if_match != ABSENT:
            tag = self._tags.get(if_match.version)
            if tag is None:
                raise _busy(path)
        try:
            etag = self.bucket.put(name, data, if_match=tag, create=create or if_match == ABSENT)
        except ConditionError:
            if create:
                raise FileExistsError(17, os.strerror(17), str(path)) from None
            raise _busy(path) from None
        size = memoryview(data).nbytes
        found = StoredObject(name, size, time.time_ns(), etag)
        with self._lock:
            self._plain[name] = time.monotonic(), found
            folder = self._folders.get(_prefix(path.parent))
            if folder is not None:
                folder.files[path.name] = [_versioned(found)[2]]
            self._forget_trees(name)
        return self._stat(found)

    def _put_version(self, path: Path, data: bytes | pa.Buffer) -> FileStat:
        prefix = _prefix(path.parent)
        digest = hashlib.sha256(data).hexdigest()[:12]
        with self._lock:
            session = self._sessions.get(prefix)
            if session is not None:
                session.counter += 1
                order = f"{session.token:06x}{session.counter:0{_COUNTER_DIGITS}x}"
        if session is None:
            newest = self._newest(path, fresh=True)
            order = f"{(newest.sequence if newest else 0) + 1:011x}"
        name = f"{_in_bucket(prefix)}{path.name.removesuffix('.parquet')}-{order}-{digest}.parquet"
        etag = self.bucket.put(name, data)
        found = StoredObject(name, memoryview(data).nbytes, time.time_ns(), etag)
        _, logical, version = _versioned(found)
        with self._lock:
            folder = self._folders.get(prefix)
            if folder is not None:
                folder.add(logical, version)
            self._forget_trees(prefix)
        return version.stat

    def restore(self, path: Path, data: bytes, stat: FileStat) -> FileStat:  # noqa: ARG002 - it gets a new version
        """Write a file as it was before. It gets a new version."""
        return self.put(path, data)

    def remove(self, path: Path) -> None:
        """Remove a file with all of its versions."""
        self._check(path)
        if not _DATED.fullmatch(path.name):
            self.bucket.delete([_name(path)])
            self._plain[_name(path)] = time.monotonic(), None
            self._drop(path)
            return
        self._newest(path, fresh=_prefix(path.parent) not in self._sessions)
        folder = self._folders.get(_prefix(path.parent))
        versions = folder.files.get(path.name, []) if folder else []
        # The current version goes last: without it, an older one would count again.
        self.bucket.delete([one.object.name for one in versions[:-1]])
        self.bucket.delete([one.object.name for one in versions[-1:]])
        self._drop(path)

    def _drop(self, path: Path) -> None:
        with self._lock:
            folder = self._folders.get(_prefix(path.parent))
            if folder is not None:
                folder.files.pop(path.name, None)
            self._forget_trees(_name(path))

    def _forget_trees(self, name: str) -> None:
        for prefix in [one for one in self._trees if name.startswith(one)]:
            del self._trees[prefix]

    def remove_folder(self, folder: Path) -> None:
        """Remove all objects below a folder."""
        prefix = _prefix(folder)
        found = [stored for page in self.bucket.pages(_in_bucket(prefix).rstrip("/")) for stored in page]
        names = [stored.name for stored in found if _versioned(stored)[0].startswith(prefix)]
        for begin in range(0, len(names), 1000):
            self.bucket.delete(names[begin : begin + 1000])
        with self._lock:
            for one in [one for one in self._folders if one.startswith(_prefix(folder))]:
                self._folders[one].files.clear()
            self._forget_trees(_prefix(folder))

    def remove_empty(self, folder: Path, root: Path) -> None:
        """Do nothing: a bucket has no folders."""

    def set_aside(self, path: Path, suffix: str) -> None:
        """Copy a file to a name that no reader looks for, and remove it."""
        name = self.physical(path)
        if name is None:
            raise FileNotFoundError(2, os.strerror(2), str(path))
        self.bucket.copy(name, _name(path) + suffix)
        self.remove(path)

    def remove_leftovers(self, folder: Path, of: str = "", *, older_than_seconds: float = 0) -> None:  # noqa: ARG002
        """Remove versions that were replaced an hour ago. Readers with older lists of files list again."""
        known = self._folders.get(_prefix(folder))
        if known is None or _prefix(folder) not in self._sessions:
            return
        over = time.time_ns() - _GRACE_NS
        old = []
        for versions in known.files.values():
            old += [one for one, newer in pairwise(versions) if newer.object.modified_ns < over]
        for begin in range(0, len(old), 1000):
            self.bucket.delete([one.object.name for one in old[begin : begin + 1000]])
        for versions in known.files.values():
            versions[:] = [one for one in versions if one not in old]

    def real(self, folder: Path) -> Path:
        """Return the folder: a bucket has no links."""
        return folder

    def links_below(self, folder: Path, depth: int) -> list[Path]:  # noqa: ARG002 - a bucket has no links
        """Return nothing: a bucket has no links."""
        return []

    # --- one writer -----------------------------------------------------------------------------------------------

    @contextmanager
    def only_writer(self, lock: Path, wait_seconds: float, what: str, stop: Stop | None = None) -> Iterator[None]:
        """Become the only writer on this machine, and take a token that writers before have not."""
        root = lake_of(lock)
        parts = lock.relative_to(root).parts
        with Disk.only_writer(local_of(root).joinpath(LOCKS, *parts), wait_seconds, what, stop):
            if parts[0] != "ledger":
                yield
                return
            self._check(lock)
            folders = _folders_of(root, parts)
            self._begin(lock, folders, what)
            try:
                yield
            finally:
                with self._lock:
                    for prefix in map(_prefix, folders):
                        self._sessions.pop(prefix, None)
                        if prefix in self._folders:
                            self._folders[prefix].at = time.monotonic()

    def _begin(self, lock: Path, folders: Sequence[Path], what: str) -> None:
        """Take the next token, and list the folders that only this writer changes from now on."""
        name = _name(lock)
        self._forget_lists(folders)
        for _ in range(_TRIES):
            try:
                data, found = self.bucket.get(name)
                last, tag = _token_in(data), found.etag
            except FileNotFoundError:
                last, tag = 0, None
            listed = {_prefix(folder): self._listed(folder) for folder in folders}
            versions = (one for folder in listed.values() for some in folder.files.values() for one in some)
            token = max([last, *(one.sequence >> 4 * _COUNTER_DIGITS for one in versions)]) + 1
            writer = {"token": token, "writer": f"{socket.gethostname()}:{os.getpid()}", "at": int(time.time())}
            try:
                self.bucket.put(name, json.dumps(writer).encode(), if_match=tag, create=tag is None)
            except ConditionError:
                self._forget_lists(folders)
                continue
            session = _Session(token)
            with self._lock:
                for prefix, folder in listed.items():
                    self._folders[prefix] = folder
                    self._sessions[prefix] = session
            return
        raise SeriesBusyError(
            f"{what} is being written by runs on other machines. Wait for them to end and start again; nothing "
            "was lost."
        )

    def _check(self, path: Path) -> None:
        """Check once a day on each machine that the store honors conditions."""
        root = lake_of(path)
        if str(root) in self._checked:
            return
        noted, wanted = local_of(root) / "checked-store.json", json.dumps([endpoint(), str(root)]).encode()
        try:
            fresh = noted.read_bytes() == wanted and time.time() - noted.stat().st_mtime < _CHECK_EVERY_SECONDS
        except OSError:
            fresh = False
        if not fresh:
            self.bucket.check_conditions(_name(root))
            Disk.put(noted, wanted)
        self._checked.add(str(root))


class _Bytes(io.BytesIO, io.RawIOBase):
    """The bytes of a file that was read whole."""


class _Ranges(io.RawIOBase):
    """A file whose parts are read, one request each."""

    def __init__(self, bucket: Bucket, stored: StoredObject) -> None:
        self._bucket, self._stored, self._at = bucket, stored, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._stored.bytes}[whence]
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer).cast("B")
        length = min(len(view), self._stored.bytes - self._at)
        if length <= 0:
            return 0
        data = self._bucket.get_range(self._stored.name, self._at, length)
        view[: len(data)] = data
        self._at += len(data)
        return len(data)


def _name(path: Path) -> str:
    assert isinstance(path, ObjectPath)  # noqa: S101 - `store_of` sends no others
    return path.name_in_bucket


def _prefix(folder: Path) -> str:
    name = _name(folder)
    return f"{name}/" if name else ""


_CADENCED = re.compile(r"((?:.*/)?lake/[^/]+/[^/]+/[^/]+/)(?:daily|monthly)/(.*)")
_SERIES = re.compile(r"((?:.*/)?lake/[^/]+/[^/]+/[^/]+/)(.*)")


def _in_bucket(prefix: str) -> str:
    """Return the prefix of the objects of a folder of the lake: days and months are together."""
    match = _CADENCED.fullmatch(prefix)
    return match[1] + match[2] if match else prefix


def _twins(prefix: str) -> list[str]:
    """Return the folders whose objects are together: those of a series' days and months."""
    match = _CADENCED.fullmatch(prefix)
    return [f"{match[1]}{cadence}/{match[2]}" for cadence in ("daily", "monthly")] if match else [prefix]


def _versioned(stored: StoredObject) -> tuple[str, str, _Version]:
    """Return the folder and the name in the lake of an object, and the version that it is."""
    parent, _, name = stored.name.rpartition("/")
    parent += "/"
    match = _VERSION.fullmatch(name)
    if match is None:
        return parent, name, _Version("", stored, FileStat(stored.bytes, _version_of_tag(stored.etag)))
    if (series := _SERIES.fullmatch(parent)) is not None:
        parent = f"{series[1]}{'monthly' if len(match[1]) == len('2024-01') else 'daily'}/{series[2]}"
    number = int(match[2], 16) << 19 | int(match[3], 16) >> 29
    return parent, f"{match[1]}.parquet", _Version(match[2] + match[3], stored, FileStat(stored.bytes, number))


def _version_of_tag(tag: str) -> int:
    return int.from_bytes(hashlib.blake2b(tag.encode(), digest_size=8).digest(), "big") >> 1


def _folders_of(root: Path, lock: tuple[str, ...]) -> list[Path]:
    """Return the folders of a series by its lock or ledger in ``ledger/``: days, months and refused bytes."""
    _, exchange, market, data_type, *labels = (*lock[:-1], lock[-1].rpartition(".")[0])
    lake, refused = (root.joinpath(area, exchange, market, data_type) for area in ("lake", "quarantine"))
    return [lake.joinpath("daily", *labels), lake.joinpath("monthly", *labels), refused.joinpath("daily", *labels)]


def _token_in(data: bytes) -> int:
    try:
        return int(json.loads(data)["token"])
    except (ValueError, KeyError, TypeError):
        return 0


def _busy(path: Path) -> SeriesBusyError:
    return SeriesBusyError(
        f"{path} was written by another process meanwhile, probably on another machine. Nothing was lost: the stored "
        "days are found again. Start again when that process has ended."
    )


def _as_regex(pattern: str) -> str:
    """Return a regular expression for a pattern of :meth:`pathlib.Path.glob`."""
    parts = re.split(r"(\*\*/|\*|\?|\[[^]]*\])", pattern)
    known = {"**/": "(?:[^/]+/)*", "*": "[^/]*", "?": "[^/]"}
    return "".join(known.get(part, part if part.startswith("[") else re.escape(part)) for part in parts)


_open: dict[tuple[str, int], Objects] = {}
_opening = threading.Lock()


def objects_of(path: ObjectPath) -> Objects:
    """Return the store of a path's bucket. It is opened once per process."""
    name = path.bucket, os.getpid()
    found = _open.get(name)
    if found is None:
        with _opening:
            found = _open.setdefault(name, Objects(Bucket(path.bucket)))
    return found


def forget_connections() -> None:
    """Open buckets again, with the variables that are set now."""
    _open.clear()
