"""Places of a lake: a folder of this machine, or a prefix of a bucket. Access belongs to ``lake/storage``."""

from __future__ import annotations

from os import PathLike
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

SCHEME = "s3://"
_DRIVE = "s3:"
LOCKS = "locks"
"""Folder on this machine for the locks of a lake in a bucket."""

_LOCAL: dict[str, Path] = {}
"""The folder on this machine for each lake in a bucket."""

if TYPE_CHECKING:
    _Pure = Path  # so that code that only makes names of paths takes both
else:
    _Pure = PurePosixPath


class ObjectPath(_Pure):
    """Path of an object, such as ``s3://bucket/prefix/lake``. It has no methods that look at files."""

    __slots__ = ()

    def __str__(self) -> str:
        if self.parts[:1] == (_DRIVE,):
            return SCHEME + "/".join(self.parts[1:])
        return "/".join(self.parts)  # relative to another one

    def __fspath__(self) -> str:
        raise TypeError(f"{self} is not on a disk")

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (str(self), _LOCAL.get(str(self)))

    @property
    def bucket(self) -> str:
        """Return the name of its bucket."""
        return self.parts[1]

    @property
    def name_in_bucket(self) -> str:
        """Return its name in the bucket."""
        return "/".join(self.parts[2:])

    def expanduser(self) -> ObjectPath:
        """Return itself."""
        return self

    def absolute(self) -> ObjectPath:
        """Return itself."""
        return self


def _restored(text: str, local: Path | None) -> ObjectPath:
    path = ObjectPath(text)
    if local is not None:
        _LOCAL.setdefault(text, local)
    return path


def is_object(place: object) -> bool:
    """Return True if a text or path names an object, and not a file."""
    return isinstance(place, ObjectPath) or str(place).startswith((SCHEME, _DRIVE + "/"))


def place_of(text: str | PathLike[str]) -> Path:
    """Return the path of a text: of an object if it begins with ``s3://``."""
    if isinstance(text, ObjectPath):
        return text
    return ObjectPath(str(text)) if is_object(text) else Path(text)


def register(root: Path, local: Path) -> None:
    """Set the folder on this machine for what is no part of a lake in a bucket."""
    _LOCAL[str(root)] = local


def local_of(root: Path) -> Path:
    """Return the folder on this machine for what is no part of a lake: of a lake on disk, the data folder."""
    return _LOCAL.get(str(root), Path("data").absolute()) if isinstance(root, ObjectPath) else root


def lake_of(path: Path) -> Path:
    """Return the root of the lake that has an object: the registered one, or else its bucket."""
    found = [parent for parent in (path, *path.parents) if str(parent) in _LOCAL]
    return found[0] if found else path.parents[-3] if len(path.parts) > 2 else path
