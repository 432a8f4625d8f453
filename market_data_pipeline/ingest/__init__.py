"""Days of one series become files of the lake. Knows nothing of Dagster.

For each day: bytes or JSON → verified Arrow table with its origin → findings → one Parquet file, atomically, then
the ledger. Threads fetch days ahead, within a bound of memory, and results come back in order. A day that is over
comes from its daily or monthly archive. REST fills in missing rows and serves days that have no archive yet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from market_data_pipeline.model.outcomes import Action, DayFailure, DayOutcome

if TYPE_CHECKING:
    from market_data_pipeline.ingest.run import ingest as ingest
    from market_data_pipeline.ingest.sources import Sources as Sources

__all__ = ["Action", "DayFailure", "DayOutcome", "Sources", "ingest"]


def __getattr__(name: str) -> object:
    # Imported when asked for: a process that only encodes days needs no network, nor what that imports.
    if name == "ingest":
        from market_data_pipeline.ingest.run import ingest

        return ingest
    if name == "Sources":
        from market_data_pipeline.ingest.sources import Sources

        return Sources
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
