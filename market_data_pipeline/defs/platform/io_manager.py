"""The IO manager: the lake's files as DuckDB relation, Arrow, pandas or polars, and back.

Reading and writing files does not belong here; see ``tables``.
"""

from __future__ import annotations

from datetime import date
from typing import Any

import dagster as dg

from market_data_pipeline.defs.keys import series_of
from market_data_pipeline.defs.partitions import day_of
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.model import faults
from market_data_pipeline.model.places import place_of
from market_data_pipeline.model.series import SeriesKey


class DuckDBParquetIOManager(dg.ConfigurableIOManager):
    """Load any series for one day or a range of days, as the type in the annotation of the input.

    ======================================  ======================================================
    annotation                              value
    ======================================  ======================================================
    ``duckdb.DuckDBPyRelation``, or none    a lazy relation over the days' files
    ``pyarrow.Table``                       a table
    ``pandas.DataFrame``                    a frame
    ``polars.DataFrame``, ``LazyFrame``     a frame, or a scan of the days' files
    ======================================  ======================================================

    Times are UTC without zone, as in the lake. A missing day raises ``NotStoredError`` with its date. Days on which the
    symbol was not listed or not traded have no rows and raise nothing. Provisional and incomplete days load like
    others. The footer and the ledger of a derived day mark such sources.

    The result of a derived asset (any of these types, for one day, or for a range with a column ``day``) becomes one
    file a day. ``None`` writes nothing, because assets that fetch write their own files.

    Attributes:
        root: Absolute path of the data folder.
        lock_wait_seconds: Seconds to wait for another run that writes the same series.
    """

    root: str
    lock_wait_seconds: float = 600.0

    @property
    def _layout(self) -> Layout:
        return Layout(place_of(self.root))

    def load_input(self, context: dg.InputContext) -> Any:
        """Load the partitions that a run or an asset value loader requests.

        Raises:
            NotStoredError: A day is missing.
        """
        from market_data_pipeline.defs.platform.tables import load_days

        with faults.explained():
            return load_days(self._layout, *_selection(context), context.dagster_type.typing_type)

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        """Write the result of a derived asset: one file a day, and the days' ledger rows.

        Raises:
            MarketDataError: The rows are not of the run's partitions, or the columns are not those of the series.
        """
        if obj is None:
            return
        from market_data_pipeline.defs.platform.tables import store_days
        from market_data_pipeline.sql.publish import publish_views

        parents = [series_of(dep.asset_key) for dep in context.asset_spec.deps]
        with faults.explained():
            store_days(self._layout, *_selection(context), obj, parents, self.lock_wait_seconds)
            publish_views(self._layout, context.log)


def _selection(context: dg.InputContext | dg.OutputContext) -> tuple[SeriesKey, list[date]]:
    """Return the series to load or write, and its days."""
    return series_of(context.asset_key), [day_of(name) for name in context.asset_partition_keys]
