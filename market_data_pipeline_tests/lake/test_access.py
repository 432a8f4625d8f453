"""All access to the lake's bytes goes through ``lake/storage``, so that a lake may be in another store than a disk."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import market_data_pipeline

PACKAGE = Path(market_data_pipeline.__file__).parent

OF_PATHS = {
    "chmod", "exists", "glob", "is_dir", "is_file", "is_symlink", "iterdir", "lstat", "mkdir", "open", "read_bytes",
    "read_text", "rename", "resolve", "rglob", "rmdir", "samefile", "stat", "symlink_to", "touch", "unlink",
    "write_bytes", "write_text",
}  # fmt: skip
OF_MODULES = {
    "os": {"access", "link", "listdir", "lstat", "makedirs", "mkdir", "open", "remove", "rename", "replace", "rmdir",
           "scandir", "stat", "unlink", "utime", "walk"},
    "shutil": {"copy", "copy2", "copyfile", "copytree", "disk_usage", "move", "rmtree"},
    "os.path": {"exists", "getmtime", "getsize", "isdir", "isfile", "realpath"},
}  # fmt: skip
OF_ARROW = {"ParquetFile", "read_metadata", "read_schema", "read_table", "memory_map", "OSFile", "dataset"}
BY_NAME = {"open", "open_regular", "read_regular", "reading", "rmtree"}

OTHER_FILES = {
    "cli/demo.py": "the demo's own installation",
    "cli/doctor.py": "the universe, Dagster's records and free space",
    "cli/download.py": "free space",
    "cli/plan.py": "free space and Dagster's records",
    "cli/prune.py": "Dagster's records",
    "cli/remove.py": "Dagster's records",
    "cli/removing.py": "Dagster's records",
    "cli/sql.py": "the universe",
    "client/market_data.py": "the universe",
    "client/session.py": "what DuckDB spills to disk",
    "client/watchdog.py": "the process's memory",
    "defs/live/definitions.py": "the status of the live feed, on this machine",
    "defs/platform/descendants.py": "processes",
    "defs/platform/event_batches.py": "Dagster's records",
    "defs/platform/event_log.py": "Dagster's records",
    "defs/platform/heartbeat.py": "Dagster's records",
    "defs/platform/home.py": "Dagster's records",
    "defs/platform/listening.py": "Dagster's records",
    "defs/platform/packing.py": "a file of the package",
    "defs/platform/pruning.py": "Dagster's records",
    "defs/platform/queues.py": "the universe",
    "defs/platform/records.py": "Dagster's records",
    "defs/platform/renaming.py": "Dagster's records",
    "defs/platform/wiping.py": "Dagster's records",
    "defs/worker.py": "Dagster's home",
    "export/freqtrade.py": "exported files",
    "export/lean.py": "exported files",
    "export/nautilus.py": "exported files",
    "export/plain_files.py": "exported files",
    "export/target.py": "exported files",
    "iceberg/catalog.py": "metadata of tables",
    "iceberg/data_files.py": "links to the lake's files, and metadata of tables",
    "iceberg/file_io.py": "metadata of tables",
    "iceberg/hints.py": "metadata of tables",
    "iceberg/publishing.py": "metadata of tables",
    "iceberg/stored_files.py": "times of folders and ledgers",
    "imports/journal.py": "the journal of an import, on this machine",
    "imports/old_files.py": "files of older caches",
    "imports/old_rows.py": "files of older caches",
    "imports/old_series.py": "files of older caches",
    "imports/run.py": "files of older caches",
    "lake/forming_candles.py": "open candles, on this machine",
    "lake/live_eviction.py": "live rows, on this machine",
    "lake/live_rows.py": "live rows, on this machine",
    "lake/locks.py": "locks, on this machine",
    "lake/regular_files.py": "how files on disk are opened",
    "server/page.py": "files of the package",
    "server/system.py": "permissions of the data folder",
    "sources/connection.py": "certificates",
    "sources/rate_limit.py": "the request limit that processes share",
    "sources/zips.py": "entries of zips",
    "sql/publish.py": "the catalog while it is built",
    "team/current.py": "settings",
    "universe/aliases.py": "a file of the package",
    "universe/config.py": "the universe",
}
"""Modules that work with other files than the lake's."""


def accesses(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the line and the name of each call that opens, lists or changes files."""
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    return ((call.lineno, ast.unparse(call.func)) for call in calls if is_access(call))


def is_access(call: ast.Call) -> bool:
    """Return True if a call opens, lists or changes files."""
    first = ast.unparse(call.args[0]) if call.args else ""
    match call.func:
        case ast.Name(id=name):
            return name in BY_NAME
        case ast.Attribute(value=ast.Name(id="pq" | "pa" | "ds"), attr=name):
            return name in OF_ARROW and first not in FILES
        case ast.Attribute(value=value, attr=name):
            owner = ast.unparse(value)
            if owner in OF_MODULES:
                return name in OF_MODULES[owner]
            return owner not in ("storage", "hub") and name in OF_PATHS and not first.startswith("pa.BufferReader(")
    return False


FILES = {"file", "opened", "source"}
"""Names of opened files and of what ``storage.source`` returns, in calls of Arrow."""


def modules() -> Iterator[tuple[str, ast.AST]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if not name.startswith(("sandbox/", "lake/storage/")):
            yield name, ast.parse(path.read_text("utf-8"))


def test_only_storage_touches_the_lake() -> None:
    """A new module that works with other files than the lake's belongs into the list, with the files it works with."""
    found = {name: list(accesses(tree)) for name, tree in modules()}
    others = {name: calls for name, calls in found.items() if calls and name not in OTHER_FILES}
    assert not others, "use lake/storage for the lake's files"
    idle = {name for name in OTHER_FILES if not found.get(name)}
    assert not idle, "these modules touch no file any more"


def test_accesses_are_found() -> None:
    """The test above is of use only if it sees each kind of access."""
    source = (
        "path.exists()\nfolder.glob('*')\nopen(path)\nos.scandir(folder)\nos.path.exists(path)\npq.ParquetFile(path)\n"
        "with reading(path) as file: pq.read_metadata(file)\nstorage.head(path)\nlayout.month(key, day).stat()"
    )
    names = [name for _, name in sorted(accesses(ast.parse(source)))]
    assert names == [
        "path.exists", "folder.glob", "open", "os.scandir", "os.path.exists", "pq.ParquetFile", "reading",
        "layout.month(key, day).stat",
    ]  # fmt: skip
