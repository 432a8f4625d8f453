"""Store a complete, verified copy of Binance's market history in Parquet, and query it with SQL and Python.

Code does not belong here: importing the package must be cheap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from market_data_pipeline import errors
from market_data_pipeline.errors import *  # noqa: F403 - the tree of errors, by its __all__

if TYPE_CHECKING:
    from market_data_pipeline.client import MarketData as MarketData

__all__ = ["MarketData"]
__all__ += errors.__all__
__version__ = "0.2.0"


def __getattr__(name: str) -> object:
    # Import on first use: a Dagster run process needs neither the client nor its imports.
    if name == "MarketData":
        from market_data_pipeline.client import MarketData

        return MarketData
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
