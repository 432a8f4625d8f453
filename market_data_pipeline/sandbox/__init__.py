r"""A Binance on loopback for demos, tests and fault injection.

One origin serves the archive, its listing, REST and the WebSocket streams of spot and futures. The data come from a
seeded generator, where klines follow exactly from aggTrades, or from a folder with the archive's layout. Code of the
pipeline does not belong here: the sandbox imitates the exchange only.

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
    CutSockets,
    Damage,
    DamagedArchive,
    DamagedMessages,
    Delay,
    Fault,
    Faults,
    FlatRows,
    LateArchive,
    LateClose,
    MarketOutage,
    MessageDamage,
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
    SilentSockets,
    SkewedClock,
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
    "CutSockets",
    "Damage",
    "DamagedArchive",
    "DamagedMessages",
    "Delay",
    "Fault",
    "Faults",
    "FlatRows",
    "GeneratedSymbol",
    "LateArchive",
    "LateClose",
    "LoggedRequest",
    "MarketOutage",
    "MessageDamage",
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
    "SilentSockets",
    "SkewedClock",
    "SlowBody",
    "Status",
    "WrongChecksum",
    "serve",
    "write_mirror",
]
