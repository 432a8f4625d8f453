"""Paths of everything below the data folder. Opening files does not belong here."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from pathlib import Path

from market_data_pipeline.model.places import local_of
from market_data_pipeline.model.series import EXCHANGE, Market, SeriesKey


@dataclass(frozen=True, slots=True)
class Layout:
    """The data folder and the paths in it.

    Attributes:
        root: The data folder: an absolute path, or an :class:`ObjectPath`.
    """

    root: Path

    @property
    def feed_status(self) -> Path:
        """Return the path of the live feed's status, which is on the machine of the feed."""
        return self.local / "live" / "status.json"

    @property
    def local(self) -> Path:
        """Return the folder on this machine for what is no part of the lake: Dagster's records, live rows, scratch."""
        return local_of(self.root)

    def folder(self, key: SeriesKey) -> Path:
        """Return the folder of a series' daily files."""
        return self.root / key.folder

    def file(self, key: SeriesKey, day: date) -> Path:
        """Return the path of a day's own Parquet file."""
        return self.root / key.file(day)

    def months(self, key: SeriesKey) -> Path:
        """Return the folder of a series' closed months."""
        return self.root / key.months_folder

    def month(self, key: SeriesKey, day: date) -> Path:
        """Return the path of the Parquet file of a day's month. It exists once the month is closed."""
        return self.root / key.month_file(day)

    def ledger(self, key: SeriesKey) -> Path:
        """Return the path of a series' ledger."""
        return self.root / key.ledger

    def lock(self, key: SeriesKey) -> Path:
        """Return the path of the file that the one writer of a series locks."""
        return self.ledger(key).with_suffix(".lock")

    def quarantine(self, key: SeriesKey) -> Path:
        """Return the folder of a series' refused bytes."""
        return self.root / key.folder.replace("lake/", "quarantine/", 1)

    @property
    def quarantined(self) -> Path:
        """Return the folder of the refused bytes of all series."""
        return self.root / "quarantine"

    @property
    def reconciliation(self) -> Path:
        """Return the folder of the reconciliation records of all series."""
        return self.root / "quality" / "reconciliation"

    def reconciled(self, key: SeriesKey) -> Path:
        """Return the path of a series' reconciliation record."""
        return self.reconciliation / key.ledger.removeprefix("ledger/")

    @property
    def collected(self) -> Path:
        """Return the path of the list of collected series. SQL reads it to find days that were never fetched."""
        return self.root / "quality" / "collected" / "series.parquet"

    def classified(self, market: Market) -> Path:
        """Return the path of the inputs from which a market's flat candles were last classified."""
        return self.root / "quality" / "judged" / EXCHANGE / f"{market}.json"

    @property
    def universe(self) -> Path:
        """Return the folder of the tables about all symbols: listings, daily volumes and rules of trading."""
        return self.root / "universe" / EXCHANGE

    @property
    def listings(self) -> Path:
        """Return the path of the table of listings of all markets."""
        return self.universe / "listings.parquet"

    def daily_volumes(self, market: Market) -> Path:
        """Return the path of the table of a market's daily volumes."""
        return self.universe / market / "daily_volumes.parquet"

    def exchange_info(self, market: Market) -> Path:
        """Return the folder of a market's daily snapshots of exchangeInfo."""
        return self.universe / market / "exchange_info"

    @property
    def catalog(self) -> Path:
        """Return the path of the DuckDB file with the views."""
        return self.root / "catalog.duckdb"

    @property
    def iceberg(self) -> Path:
        """Return the folder of the Iceberg tables, and of their catalog unless another one is set."""
        return self.root / "iceberg"

    def iceberg_table(self, namespace: str, table: str) -> Path:
        """Return the folder of an Iceberg table. Engines without a catalog find tables by these two names."""
        return self.iceberg / namespace / table

    @property
    def dagster_home(self) -> Path:
        """Return the DAGSTER_HOME of every entry point of the project."""
        return self.local / "dagster"
