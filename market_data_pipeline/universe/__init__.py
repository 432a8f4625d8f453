"""What to collect: ``universe.yaml``, written by hand, and ``universe.lock.yaml``, its symbols with their listing days.

What belongs here: reading both files, with an error that names file and line for every mistake (``reading``); the
series and the days that they ask for (``collected``); when symbols were listed, from the archive's listing
(``listing``); adding an entry without touching the rest, and writing the lock (``writing``). What does not: downloading
(``sources``), and what is inside the data (``model/datasets.py``).

Loading needs no network: patterns such as ``*USDT`` resolve against the lock, which ``market-data universe refresh``
writes.
"""

from market_data_pipeline.universe.config import load_universe, parse_lock, parse_universe
from market_data_pipeline.universe.resolved import Universe

__all__ = ["Universe", "load_universe", "parse_lock", "parse_universe"]
