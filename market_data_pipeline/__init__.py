"""Store a complete, verified copy of Binance's market history in Parquet, and query it with SQL and Python.

Code does not belong here: importing the package must be cheap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from market_data_pipeline.client import GapError as GapError
    from market_data_pipeline.client import GapWarning as GapWarning
    from market_data_pipeline.client import MarketData as MarketData

__all__ = ["GapError", "GapWarning", "MarketData"]
__version__ = "0.2.0"


def __getattr__(name: str) -> object:
    # Import on first use: a Dagster run process needs neither the client nor its imports.
    if name in __all__:
        from market_data_pipeline import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
