"""Load all of a catalog with NautilusTrader, and run a backtest over its bars. Prints both as JSON."""

from __future__ import annotations

import json
import sys

from nautilus_trader.backtest.engine import BacktestEngine, BacktestEngineConfig
from nautilus_trader.config import LoggingConfig
from nautilus_trader.model.currencies import USDT
from nautilus_trader.model.data import Bar, FundingRateUpdate, TradeTick
from nautilus_trader.model.enums import AccountType, OmsType
from nautilus_trader.model.identifiers import Venue
from nautilus_trader.model.objects import Money
from nautilus_trader.persistence.catalog import ParquetDataCatalog

catalog = ParquetDataCatalog(sys.argv[1])
found: dict[str, list[dict[str, object]]] = {}
for bar in catalog.query(Bar):
    found.setdefault(str(bar.bar_type), []).append(Bar.to_dict(bar))
for tick in catalog.query(TradeTick):
    found.setdefault(f"{tick.instrument_id} trades", []).append(TradeTick.to_dict(tick))
for rate in catalog.query(FundingRateUpdate):
    found.setdefault(f"{rate.instrument_id} funding", []).append(FundingRateUpdate.to_dict(rate))
instruments = {str(one.id): type(one).to_dict(one) for one in catalog.instruments()}

engine = BacktestEngine(BacktestEngineConfig(logging=LoggingConfig(bypass_logging=True)))
engine.add_venue(Venue("BINANCE"), OmsType.NETTING, AccountType.MARGIN, starting_balances=[Money(1_000_000, USDT)])
for instrument in catalog.instruments():
    engine.add_instrument(instrument)
bars = [bar for bar in catalog.query(Bar) if "-LAST-" in str(bar.bar_type)]
engine.add_data(bars)
engine.run()
print(json.dumps({"data": found, "instruments": instruments, "bars": engine.iteration}, default=str))
