"""The newest metadata of a table for engines that read a folder without a catalog.

Spark's catalog of type ``hadoop``, DuckDB and others read ``version-hint.text``, and the metadata file that it names.
"""

from __future__ import annotations

import re
from pathlib import Path

from pyiceberg.table import Table

from market_data_pipeline.lake import storage
from market_data_pipeline.lake.regular_files import read_regular

_VERSION = re.compile(r"(\d+)-.*metadata\.json")
_HINT = "version-hint.text"


def hint_files(metadata_location: str) -> tuple[str, ...]:
    """Return the URIs of a hint and of the file that it names, for a metadata file; empty if it has another form."""
    folder, _, name = metadata_location.rpartition("/")
    named = _VERSION.fullmatch(name)
    return (f"{folder}/v{int(named[1])}.metadata.json", f"{folder}/{_HINT}") if named else ()


def write_hint(table: Table, folder: Path) -> None:
    """Let the hint of a table's folder name its newest metadata, unless it does so already.

    Readers by hint see a killed publish when the next one has ended.
    """
    source = Path(table.metadata_location.removeprefix("file://"))
    files = hint_files(table.metadata_location)
    if not files or not source.is_relative_to(folder):  # a catalog with names and places of its own
        return
    newest, hint = (Path(one.removeprefix("file://")) for one in files)
    version = newest.name.split(".")[0].removeprefix("v")
    if not newest.exists() or not hint.exists() or read_regular(hint).decode() != version:
        storage.put(newest, read_regular(source))
        storage.put(hint, version.encode())
