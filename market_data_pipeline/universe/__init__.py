"""The universe: series to collect (``universe.yaml``) and listing days of their symbols (``universe.lock.yaml``).

Loading needs no network. Patterns such as ``*USDT`` resolve against the lock, which ``market-data universe refresh``
writes. Downloads belong to ``sources``, facts about data types to ``model/datasets.py``.
"""

from market_data_pipeline.universe.config import load_universe, parse_lock, parse_universe
from market_data_pipeline.universe.resolved import Universe

__all__ = ["Universe", "load_universe", "parse_lock", "parse_universe"]
