"""Ingest days of one series into the lake. Dagster does not belong here.

For each day: bytes or JSON → verified Arrow table with its origin → findings → one Parquet file, atomically → ledger.
Threads fetch days ahead within a memory budget, and results come in order. A past day comes from its daily or monthly
archive. REST fills in missing rows and serves days without an archive.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from market_data_pipeline.model.outcomes import Action, DayFailure, DayOutcome

if TYPE_CHECKING:
    from market_data_pipeline.ingest.run import ingest as ingest
    from market_data_pipeline.ingest.sources import Sources as Sources

__all__ = ["Action", "DayFailure", "DayOutcome", "Sources", "ingest"]


def __getattr__(name: str) -> object:
    # Import lazily: a process that only encodes days needs neither the network nor its imports.
    if name == "ingest":
        from market_data_pipeline.ingest.run import ingest

        return ingest
    if name == "Sources":
        from market_data_pipeline.ingest.sources import Sources

        return Sources
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
