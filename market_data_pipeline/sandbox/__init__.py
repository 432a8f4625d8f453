r"""A Binance on loopback for demos, tests and fault injection.

One origin serves the archive, its listing and the REST endpoints of spot and futures. The data come from a seeded
generator, where klines follow exactly from aggTrades, or from a folder with the archive's layout. Code of the pipeline
does not belong here: the sandbox imitates the exchange only.

    from market_data_pipeline.sandbox import Sandbox, Status

    with Sandbox(now=datetime(2024, 3, 1, 12, tzinfo=UTC)) as sandbox:
        sandbox.faults.add(Status(path=r"BTCUSDT-1m-2024-02-03\.zip$", status=503, times=2))
        ...  # run the pipeline with sandbox.settings_env()
        assert sandbox.requests
"""

from market_data_pipeline.sandbox.disk import write_mirror
from market_data_pipeline.sandbox.faults import (
    ChangedRows,
    CutBody,
    Damage,
    DamagedArchive,
    Delay,
    Fault,
    Faults,
    FlatRows,
    LateArchive,
    MarketOutage,
    MissingChecksum,
    MissingDay,
    MissingRows,
    OtherBody,
    QuietSymbol,
    RawAnswer,
    RepeatedAtMidnight,
    ReplacedArchive,
    Reset,
    ScrambledArchive,
    ShiftedRows,
    SlowBody,
    Status,
    WrongChecksum,
)
from market_data_pipeline.sandbox.server import LoggedRequest, Sandbox, serve
from market_data_pipeline.sandbox.symbols import DEFAULT_SYMBOLS, GeneratedSymbol

__all__ = [
    "DEFAULT_SYMBOLS",
    "ChangedRows",
    "CutBody",
    "Damage",
    "DamagedArchive",
    "Delay",
    "Fault",
    "Faults",
    "FlatRows",
    "GeneratedSymbol",
    "LateArchive",
    "LoggedRequest",
    "MarketOutage",
    "MissingChecksum",
    "MissingDay",
    "MissingRows",
    "OtherBody",
    "QuietSymbol",
    "RawAnswer",
    "RepeatedAtMidnight",
    "ReplacedArchive",
    "Reset",
    "Sandbox",
    "ScrambledArchive",
    "ShiftedRows",
    "SlowBody",
    "Status",
    "WrongChecksum",
    "serve",
    "write_mirror",
]
