"""Files of a lake in a bucket, for DuckDB: it reads them through the store, under the lake's own names.

DuckDB's own extension for S3 is not needed. Bytes that were just read are cached, because DuckDB opens a file
several times for one query.
"""

from __future__ import annotations

import io
import re
import threading
from collections import OrderedDict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from market_data_pipeline.lake import storage
from market_data_pipeline.lake.storage.protocol import is_version
from market_data_pipeline.model.day import FileStat
from market_data_pipeline.model.places import ObjectPath, place_of

if TYPE_CHECKING:
    import duckdb

_KEPT_BYTES = 64 << 20
_BIG_BYTES = 8 << 20
"""Bigger files are read in parts."""


def attach_objects(connection: duckdb.DuckDBPyConnection, place: Path) -> None:
    """Let DuckDB read the files of a lake in a bucket.

    Args:
        place: Path in the lake. For a path on disk, nothing is done.
    """
    if isinstance(place, ObjectPath):
        connection.register_filesystem(_filesystem())


def _filesystem() -> Any:
    from fsspec.spec import AbstractFileSystem

    class ObjectFiles(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
        protocol = "s3"
        cachable = False

        def __init__(self) -> None:
            super().__init__()
            self._kept = _Kept()

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return path

        def glob(self, path: str, **_: Any) -> list[str]:
            return [str(one).removeprefix("s3://") for one in _matching(path)]

        def exists(self, path: str, **_: Any) -> bool:
            return storage.head(place_of(path)) is not None

        def info(self, path: str, **_: Any) -> dict[str, Any]:
            stat = storage.head(place_of(path))
            if stat is None:
                raise FileNotFoundError(path)
            return {"name": path, "size": stat.bytes, "type": "file"}

        def modified(self, path: str) -> datetime:
            return datetime.fromtimestamp((storage.modified_ns(place_of(path)) or 0) / 1e9, UTC)

        def open(self, path: str, mode: str = "rb", **_: Any) -> Any:
            if mode != "rb":
                raise PermissionError(f"{path} cannot be written by SQL")
            return self._kept.opened(place_of(path))

    return ObjectFiles()


class _Kept:
    """Files that were read, the newest last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: OrderedDict[tuple[str, FileStat], bytes] = OrderedDict()
        self._bytes = 0

    def opened(self, path: Path) -> Any:
        stat = storage.head(path)
        if stat is None:
            raise FileNotFoundError(str(path))
        if stat.bytes > _BIG_BYTES:
            return storage.open_file(path)
        with self._lock:
            data = self._files.get((str(path), stat))
        if data is None:
            data, stat = storage.read(path)
            with self._lock:
                replaced = self._files.pop((str(path), stat), b"")  # another thread has read it, too
                self._files[str(path), stat] = data
                self._bytes += len(data) - len(replaced)
                while self._bytes > _KEPT_BYTES:
                    self._bytes -= len(self._files.popitem(last=False)[1])
        return io.BytesIO(data)


def _matching(pattern: str) -> list[Path]:
    """Return the files of a pattern of DuckDB. A bracket around one character takes it literally."""
    parts = pattern.removeprefix("s3://").split("/")
    wild = [at for at, part in enumerate(parts) if re.search(r"[*?\[]", re.sub(r"\[[*?\[]\]", "", part))]
    literal = [re.sub(r"\[([*?\[])\]", r"\1", part) for part in parts]
    if not wild:
        path = place_of("s3://" + "/".join(literal))
        if is_version(path):  # it was listed just now
            return [path]
        return [path] if storage.head(path) is not None else []
    folder = place_of("s3://" + "/".join(literal[: wild[0]]))
    return list(storage.list_paths(folder, "/".join(parts[wild[0] :])))
