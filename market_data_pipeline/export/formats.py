"""The table of formats: which data types each one has, how its files are named, and who writes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from market_data_pipeline.export.freqtrade import FREQTRADE_KINDS, freqtrade_path, write_freqtrade
from market_data_pipeline.export.lean import lean_path, lean_refusal, write_lean
from market_data_pipeline.export.nautilus import NAUTILUS_TYPES, nautilus_path, write_nautilus
from market_data_pipeline.export.pairs import Pairs
from market_data_pipeline.export.plain_files import csv_path, parquet_path, write_csv, write_parquet
from market_data_pipeline.export.rows import SeriesRows
from market_data_pipeline.model.series import DataType, SeriesKey


@dataclass(frozen=True, slots=True)
class ExportFormat:
    """A format of files.

    Attributes:
        name: Name on the command line.
        data_types: Data types that it has. If two share a path, the first one is preferred.
        path: Returns the path of a series' file or folder below the target.
        write: Writes a series below a folder.
        refusal: Returns a reason why a series of these data types cannot be written; empty if it can.
    """

    name: str
    data_types: tuple[DataType, ...]
    path: Callable[[SeriesKey, Pairs], str]
    write: Callable[[SeriesRows, Path, Pairs], None]
    refusal: Callable[[SeriesKey], str] = lambda _: ""

    def refuses(self, key: SeriesKey) -> str:
        """Return a reason why a series cannot be written; empty if it can."""
        if key.data_type not in self.data_types:
            return f"{self.name} has no {key.data_type}, only {', '.join(self.data_types)}"
        return self.refusal(key)


_ALL = tuple(DataType)
_OF_LEAN = (DataType.KLINES, DataType.AGG_TRADES, DataType.TRADES, DataType.FUNDING_RATE)

FORMATS: dict[str, ExportFormat] = {
    one.name: one
    for one in (
        ExportFormat("freqtrade", tuple(FREQTRADE_KINDS), freqtrade_path, write_freqtrade),
        ExportFormat("nautilus", tuple(NAUTILUS_TYPES), nautilus_path, write_nautilus),
        ExportFormat("lean", _OF_LEAN, lean_path, write_lean, lean_refusal),
        ExportFormat("csv", _ALL, csv_path, write_csv),
        ExportFormat("parquet", _ALL, parquet_path, write_parquet),
    )
}
"""The formats by name."""
