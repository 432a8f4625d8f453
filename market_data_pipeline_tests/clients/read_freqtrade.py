"""Load all of a data folder with freqtrade's own loader. Prints the data and the log as JSON."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

from freqtrade.data.history import load_pair_history
from freqtrade.data.history.datahandlers import get_datahandler
from freqtrade.enums import CandleType, TradingMode
from freqtrade.exchange import Exchange


class Log(logging.Handler):
    """Collect what freqtrade logs as a warning or an error."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.levelname} {record.getMessage()}")


def rows(frame):
    return json.loads(frame.to_json(orient="records", date_format="iso", double_precision=15))


log = Log()
logging.getLogger().addHandler(log)
folder = Path(sys.argv[1])
handler = get_datahandler(folder, "feather")
found, frames = {}, {}
for mode in (TradingMode.SPOT, TradingMode.FUTURES):
    for pair, timeframe, kind in handler.ohlcv_get_available_data(folder, mode):
        frame = load_pair_history(
            pair, timeframe, folder, fill_up_missing=False, drop_incomplete=False, candle_type=kind
        )
        frames[pair, kind] = frame
        found[f"{pair} {timeframe} {kind.value}"] = rows(frame)
    for pair in handler.trades_get_available_data(folder, mode):
        found[f"{pair} trades"] = rows(handler.trades_load(pair, mode))
fees = {}
for pair, kind in frames:
    if kind is CandleType.FUNDING_RATE:
        rates, marks = frames[pair, kind], frames[pair, CandleType.MARK]
        fees[pair] = rows(Exchange.combine_funding_and_mark(rates, marks)[["date", "open_mark", "open_fund"]])
print(json.dumps({"data": found, "fees": fees, "log": log.lines}))
