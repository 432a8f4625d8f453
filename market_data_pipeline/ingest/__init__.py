"""Days of one series become files of the lake. Knows nothing of Dagster.

For each day: bytes or JSON → verified Arrow table with its origin → findings → one Parquet file, atomically; then the
series' ledger. Days are fetched ahead by threads, within a bound of memory, and come back in order.

A day that is over comes from the daily archive, or from a monthly zip where the run covers the whole month and the
month has the day complete. What the archive lacks of a day is asked from REST, row by row. A day that the archive does
not have at all comes from REST and is provisional.

=================  =====================================================================================
``run.py``         one run on one series: which days are settled, threads ahead, results in order, ledger
``archived.py``    a day's rows from the archive's zips, daily or monthly
``asked.py``       a day's rows from REST
``healing.py``     what the archive lacks and REST has, filled in by row
``midnight.py``    ids that lack, or stand twice, between two days
``encoding.py``    a zip's days, checked, as bytes of their files: pure, for any process
``shelf.py``       a day's rows with their findings into its file, and back
``dayrows.py``     a day's rows on their way, with where each came from
``memory.py``      the bound of memory
=================  =====================================================================================
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from market_data_pipeline.outcomes import Action, DayFailure, DayOutcome

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
