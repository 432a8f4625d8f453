"""Where everything lies below the root. Paths only; nothing here opens a file."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from pathlib import Path

from market_data_pipeline.model.series import EXCHANGE, Market, SeriesKey


@dataclass(frozen=True, slots=True)
class Layout:
    """The root folder and the places in it.

    Attributes:
        root: Absolute path of the user's data folder.
    """

    root: Path

    def folder(self, key: SeriesKey) -> Path:
        """Folder of a series' daily files."""
        return self.root / key.folder

    def file(self, key: SeriesKey, day: date) -> Path:
        """A day's Parquet file."""
        return self.root / key.file(day)

    def months(self, key: SeriesKey) -> Path:
        """Folder of a series' closed months."""
        return self.root / key.months_folder

    def month(self, key: SeriesKey, day: date) -> Path:
        """The Parquet file of the month that a day lies in, once that is closed."""
        return self.root / key.month_file(day)

    def ledger(self, key: SeriesKey) -> Path:
        """A series' ledger."""
        return self.root / key.ledger

    def lock(self, key: SeriesKey) -> Path:
        """The file that the one writer of a series holds locked."""
        return self.ledger(key).with_suffix(".lock")

    def quarantine(self, key: SeriesKey) -> Path:
        """Folder for bytes of a series that were refused."""
        return self.root / key.folder.replace("lake/", "quarantine/", 1)

    @property
    def quarantined(self) -> Path:
        """Folder of all that was refused, of every series."""
        return self.root / "quarantine"

    @property
    def reconciliation(self) -> Path:
        """Folder of the records of what was reconciled, of every series."""
        return self.root / "quality" / "reconciliation"

    def reconciled(self, key: SeriesKey) -> Path:
        """The record of what a series' days were reconciled with."""
        return self.reconciliation / key.ledger.removeprefix("ledger/")

    def judged(self, market: Market) -> Path:
        """What the flat candles of a market were last judged from."""
        return self.root / "quality" / "judged" / EXCHANGE / f"{market}.json"

    @property
    def catalog(self) -> Path:
        """The DuckDB file with views."""
        return self.root / "catalog.duckdb"

    @property
    def dagster_home(self) -> Path:
        """DAGSTER_HOME of every door of the project."""
        return self.root / "dagster"
