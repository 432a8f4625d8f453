"""One series of an older cache as a table, without an import. Storing it does not belong here (``run.py``)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from market_data_pipeline.checks.ordering import ints
from market_data_pipeline.errors import MalformedError, UsageError
from market_data_pipeline.imports.layouts import OldLayout
from market_data_pipeline.imports.old_files import Selected, old_files
from market_data_pipeline.imports.old_rows import OLD_PRICES, opened_rows
from market_data_pipeline.model.datasets import spec_of
from market_data_pipeline.model.series import DataType, Market

_LAYOUTS = {"auto": None, **{one.value: one for one in OldLayout}}


def read_old_series(folder: Path, symbol: str, interval: str | None, market: str | None, layout: str) -> pa.Table:
    """Return the rows of one series in all files of a cache, ordered by key, each key once.

    Args:
        interval: Interval of candles. None means aggTrades.
        market: Market of files whose path names none. None if all paths name the same.
        layout: ``auto``, or the name of a layout.

    Raises:
        UsageError: An argument is unknown, or the cache has no such file, or files of several markets.
        MalformedError: A file is damaged, or its rows do not match its name.
    """
    if layout not in _LAYOUTS:
        raise UsageError(f"There is no layout {layout!r}. There are: {', '.join(_LAYOUTS)}.")
    if market is not None and market not in [one.value for one in Market]:
        raise UsageError(f"There is no market {market!r}. There are: {', '.join(one.value for one in Market)}.")
    selected = Selected(_LAYOUTS[layout], None if market is None else Market(market), symbol)
    data_type = DataType.AGG_TRADES if interval is None else DataType.KLINES
    root = folder.expanduser().absolute()
    found, _ = old_files(root, selected)
    files = [file for file in found if (file.data_type, file.interval) == (data_type, interval)]
    keys = {file.key(selected.market, symbol) for file in files}
    if len(keys) > 1:
        raise UsageError(f"{folder} has {symbol} in several markets: {', '.join(sorted(map(str, keys)))}. Name one.")
    if not keys:
        raise UsageError(f"{folder} has no file of {' '.join(filter(None, (symbol, interval or data_type)))}.")
    [key] = keys
    tables: list[pa.Table] = []
    complete = True
    for file in files:
        try:
            with opened_rows(root.resolve(), file, key) as rows:
                tables += [day.table for day in rows]
                complete &= rows.complete
        except MalformedError as error:
            raise MalformedError(f"{file.path}: {error}") from error
    spec = spec_of(key)
    names = [column.name for column in spec.columns if column.kind != "ignore"] if complete else list(OLD_PRICES)
    table = pa.concat_tables([one.select(names) for one in tables])
    _, first = np.unique(ints(table, spec.key), return_index=True)
    return table.take(first)
