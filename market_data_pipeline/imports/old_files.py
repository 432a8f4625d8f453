"""Files of an older cache below a folder. Links that leave the folder are not followed. Nothing is opened."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG

from market_data_pipeline.errors import UsageError
from market_data_pipeline.imports.layouts import OldFile, OldLayout, recognize
from market_data_pipeline.model.series import Market

_HELPERS = (".CHECKSUM", ".json", ".lock", ".tmp", ".txt", ".md", ".log")
"""Ends of the names of files that accompany rows, so that no note is due."""


@dataclass(frozen=True, slots=True)
class Selected:
    """The part of a cache to read.

    Attributes:
        layout: None for all layouts.
        market: Market of files whose path names none. Files of other markets are left out.
        symbol: Symbol of files whose path names none. Files of other symbols are left out.
    """

    layout: OldLayout | None = None
    market: Market | None = None
    symbol: str | None = None

    def takes(self, file: OldFile) -> bool:
        """Return True if a file is of this layout, market and symbol, as far as its path names them."""
        pairs = (self.layout, file.layout), (self.market, file.market), (self.symbol, file.symbol)
        return all(wanted is None or named in (None, wanted) for wanted, named in pairs)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A path that is not read, with the reason."""

    path: str
    reason: str


def old_files(folder: Path, selected: Selected, without: Path | None = None) -> tuple[list[OldFile], list[LeftOut]]:
    """Return the files of a cache in the order of their paths, and the paths that are left out.

    Args:
        without: Folder that is not entered: the data folder, if the cache is around it.

    Raises:
        UsageError: The folder does not exist.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder.")
    root = folder.resolve()
    found, left = list[OldFile](), list[LeftOut]()
    for path, reason in _walk(root, without.resolve() if without else None):
        if reason:
            left.append(LeftOut(path, reason))
            continue
        file = recognize(path)
        if file is None:
            if not path.endswith(_HELPERS):
                left.append(LeftOut(path, "no known layout"))
        elif selected.takes(file):
            found.append(file)
    return sorted(found, key=lambda one: one.path), sorted(left, key=lambda one: one.path)


def _walk(root: Path, without: Path | None) -> Iterator[tuple[str, str]]:
    """Yield paths below a folder, each with the reason not to read it, or an empty text."""
    errors: list[OSError] = []
    for here, folders, names in os.walk(root, onerror=errors.append):
        for error in errors:
            yield os.path.relpath(error.filename, root), f"cannot be listed ({error.strerror})"
        errors.clear()
        folders[:] = sorted(one for one in folders if Path(here, one) != without)
        for name in [*(one for one in folders if Path(here, one).is_symlink()), *sorted(names)]:
            path = Path(here, name)
            relative = path.relative_to(root).as_posix()
            try:
                relative.encode()
                yield relative, _fault(path, root)
            except UnicodeEncodeError:
                yield relative.encode(errors="replace").decode(), "its name is not valid UTF-8"
            except (OSError, RuntimeError) as error:
                yield relative, f"cannot be looked at ({getattr(error, 'strerror', None) or error})"


def _fault(path: Path, root: Path) -> str:
    if path.is_symlink():
        if not path.resolve().is_relative_to(root):
            return "a link that leaves the folder"
        return "a link; its target is read where it lies"
    return "" if S_ISREG(path.lstat().st_mode) else "not a regular file"
