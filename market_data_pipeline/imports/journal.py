"""Journal of an import: a report as JSON, and one line per stored day, written before the day is.

So a killed import can be undone, too. Undoing belongs to ``undo.py``.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import date, datetime
from pathlib import Path
from typing import Any

from market_data_pipeline.errors import StorageError, UsageError
from market_data_pipeline.lake import storage
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.model.day import DayRecord
from market_data_pipeline.model.series import EXCHANGE, DataType, Market, SeriesKey


@dataclass(frozen=True, slots=True)
class JournalDay:
    """A day that an import stores.

    Attributes:
        sha256: SHA-256 of all bytes of the day's file.
        before: The day's record before the import. None if it had none.
        replaces: True if the day had a file before. The journal has a copy of it.
    """

    key: SeriesKey
    day: date
    sha256: str
    before: DayRecord | None
    replaces: bool


class Journal:
    """The journal of one import.

    Args:
        identity: Name of the import.
    """

    def __init__(self, layout: Layout, identity: str) -> None:
        self.identity = identity
        self._folder = layout.local / "imports"
        self.report_path = self._folder / f"{identity}.json"
        self._days = self._folder / f"{identity}.days.jsonl"
        self._copies = self._folder / identity

    @classmethod
    def begun(cls, layout: Layout, at: datetime) -> Journal:
        """Return a new journal with a name that is free.

        Args:
            at: Time of the import (UTC).
        """
        name = f"{at:%Y%m%dT%H%M%S}"
        taken = set(journals(layout))
        free = next(one for one in (name, *(f"{name}-{n}" for n in range(2, 10_000))) if one not in taken)
        return cls(layout, free)

    def copy_of(self, key: SeriesKey, day: date) -> Path:
        """Return the path of the copy of a replaced day's file."""
        return self._copies / key.file(day)

    def add(self, days: Iterable[JournalDay]) -> None:
        """Record days, durably, before they are stored.

        Raises:
            StorageError: The disk refuses.
        """
        lines = "".join(f"{json.dumps(_as_object(day))}\n" for day in days)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with self._days.open("a", encoding="utf-8") as file:
                file.write(lines)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise StorageError(f"{self._days} cannot be written ({error.strerror}). No day was stored.") from error

    def days(self) -> list[JournalDay]:
        """Return the recorded days in order. The line that a kill cut short is left out: its day was not stored."""
        try:
            lines = self._days.read_text("utf-8").splitlines()
        except FileNotFoundError:
            return []
        return list(_parsed(lines))

    def write_report(self, report: Mapping[str, object]) -> None:
        """Write the report, atomically.

        Raises:
            StorageError: The disk refuses.
        """
        storage.put(self.report_path, json.dumps(report, indent=1).encode() + b"\n")

    def read_report(self) -> dict[str, Any]:
        """Return the report. Empty if the import was killed before it had one."""
        try:
            found = json.loads(self.report_path.read_bytes())
        except (FileNotFoundError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def remove_copies(self) -> None:
        """Remove the copies of replaced files."""
        if self._copies.is_dir():
            for path in sorted(self._copies.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            self._copies.rmdir()


def journals(layout: Layout) -> list[str]:
    """Return the names of all imports, the oldest first."""
    folder = layout.local / "imports"
    ends = (".json", ".days.jsonl")
    names = {path.name.removesuffix(end) for end in ends for path in folder.glob(f"*{end}") if path.name.endswith(end)}
    return sorted(name for name in names if re.fullmatch(r"\d{8}T\d{6}(-\d+)?", name))


def find_journal(layout: Layout, identity: str) -> Journal:
    """Return the journal of an import.

    Raises:
        UsageError: There is none of this name.
    """
    known = journals(layout)
    if identity not in known:
        there_are = f"There are: {', '.join(known[-20:])}." if known else "Nothing was imported yet."
        raise UsageError(f"No import is called {identity!r}. {there_are}")
    return Journal(layout, identity)


def _as_object(day: JournalDay) -> dict[str, object]:
    key = day.key
    return {
        "series": [key.market, key.data_type, key.symbol, key.interval],
        "day": day.day.isoformat(),
        "sha256": day.sha256,
        "before": None if day.before is None else _plain(asdict(day.before)),
        "replaces": day.replaces,
    }


def _plain(record: Mapping[str, object]) -> dict[str, object]:
    return {name: value.isoformat() if isinstance(value, date) else value for name, value in record.items()}


_TIMES = {one.name for one in fields(DayRecord) if str(one.type).startswith("datetime")}


def _record(values: dict[str, Any] | None) -> DayRecord | None:
    if values is None:
        return None
    times = {name: datetime.fromisoformat(values[name]) for name in _TIMES if values.get(name)}
    if (version := values.pop("mtime_ns", None)) is not None:  # a journal of an older version
        values["version"] = version
    return DayRecord(**{**values, **times, "day": date.fromisoformat(values["day"])})


def _parsed(lines: list[str]) -> Iterator[JournalDay]:
    for line in lines:
        try:
            found = json.loads(line)
        except ValueError:
            return
        market, data_type, symbol, interval = found["series"]
        key = SeriesKey(EXCHANGE, Market(market), DataType(data_type), symbol, interval)
        day = date.fromisoformat(found["day"])
        yield JournalDay(key, day, found["sha256"], _record(found["before"]), found["replaces"])
