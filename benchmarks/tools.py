"""Published tools over the same archives, from the same server, each in an environment of its own.

None of them can be told another address, by argument, setting or environment: where they spell Binance's, a line of the
script that starts them puts the server's in its place. Nothing else of theirs is touched, and their imports are not
timed. What they do and do not do beside downloading is said in ``docs/development/performance.md``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from benchmarks.data import Archives
from benchmarks.report import Baseline
from market_data_pipeline.model.series import SeriesKey

_INSTALL_SECONDS, _RUN_SECONDS = 1200, 600


@dataclass(frozen=True, slots=True)
class Tool:
    """A published tool.

    Attributes:
        name: As PyPI has it.
        packages: What pip is asked for; pinned.
        makes: What it leaves on the disk.
        script: A script that brings 1m klines of spot. It is given the server's URL, the symbol, the first and the last
            day and a folder; the last line that it prints has the seconds that it took and the rows that it brought.
    """

    name: str
    packages: tuple[str, ...]
    makes: str
    script: str


_HEAD = """
import sys, time
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
url, symbol, first, last, folder = sys.argv[1:]
VISION = "https://data.binance.vision"
"""

SYNCER = Tool(
    "binance-syncer",
    ("binance-syncer==4.0.1", "pandas==3.1.1", "pyarrow==26.0.1"),
    "Parquet",
    _HEAD
    + """
import asyncio
import pyarrow.parquet as pq
from binance_syncer import utils
from binance_syncer.constant import DataType, KlineInterval, MarketType
from binance_syncer.syncer import Syncer
utils.BASE_URL = url
Syncer.LOCAL_PREFIX = folder
syncer = Syncer(MarketType.SPOT, DataType.KLINES, KlineInterval.M1)
began = time.perf_counter()
asyncio.run(syncer.sync([symbol]))
seconds = time.perf_counter() - began
print(seconds, sum(pq.read_metadata(path).num_rows for path in Path(folder).rglob("*.parquet")))
""",
)

BULK = Tool(
    "binance-bulk-downloader",
    ("binance-bulk-downloader==1.1.0.1", "requests==2.34.2", "rich==15.0.0"),
    "CSV as it is in the zip",
    _HEAD
    + """
from binance_bulk_downloader.downloader import BinanceBulkDownloader
BinanceBulkDownloader._BINANCE_DATA_S3_BUCKET_URL = BinanceBulkDownloader._BINANCE_DATA_DOWNLOAD_BASE_URL = url
bulk = BinanceBulkDownloader(folder, "klines", "1m", "spot", "daily", [symbol])
began = time.perf_counter()
bulk.run_download()
seconds = time.perf_counter() - began
print()
print(seconds, sum(path.read_bytes().count(b"\\n") for path in Path(folder).rglob("*.csv")))
""",
)

HISTORY = Tool(
    "binance-history",
    # Its pandas was built for the numpy of its time.
    ("binance-history==0.1.7", "pandas==1.5.3", "numpy==1.26.4"),
    "pickled frames",
    _HEAD
    + """
from binance_history import config, fetch_klines, utils
config.CACHE_DIR = Path(folder)
spelled = utils.gen_data_url
utils.gen_data_url = lambda *args, **kwargs: spelled(*args, **kwargs).replace(VISION, url)
began = time.perf_counter()
frame = fetch_klines(symbol, first, f"{last} 23:59", "1m", tz="UTC")
print(time.perf_counter() - began, len(frame))
""",
)

FREQTRADE = Tool(
    "freqtrade",
    ("freqtrade==2026.9", "pandas==3.1.1", "pyarrow==26.0.1"),
    "Feather, six columns",
    _HEAD
    + """
import asyncio
from freqtrade.enums import CandleType
from freqtrade.exchange import binance_public_data as archive
spelled = archive.binance_vision_ohlcv_zip_url
archive.binance_vision_ohlcv_zip_url = lambda *args: spelled(*args).replace(VISION, url)
start, end = (datetime.fromisoformat(day).replace(tzinfo=timezone.utc) for day in (first, last))
ms = [int(moment.timestamp() * 1000) for moment in (start, end + timedelta(days=1))]
Path(folder).mkdir(parents=True, exist_ok=True)
began = time.perf_counter()
frame = asyncio.run(
    archive.download_archive_ohlcv(
        CandleType.SPOT, "COIN/USDT", "1m", since_ms=ms[0], until_ms=ms[1], markets={"COIN/USDT": {"id": symbol}}
    )
)
frame.reset_index(drop=True).to_feather(Path(folder) / "1m.feather", compression_level=9, compression="lz4")
print(time.perf_counter() - began, len(frame))
""",
)

DAILY_TOOLS = (SYNCER, FREQTRADE, BULK)
"""They take daily zips, where a month has no zip of its own."""

MONTHLY_TOOLS = (HISTORY,)
"""It takes monthly zips, and daily ones of the last two months only; of times, milliseconds only."""


def beside(
    tools: Sequence[Tool],
    archives: Archives,
    key: SeriesKey,
    days: Sequence[date],
    url: str,
    work: Path,
    rows: int,
) -> tuple[list[Baseline], list[str]]:
    """Measure published tools that fetch days of 1m klines.

    Args:
        tools: Which.
        archives: Says where their environments are kept, if they are wanted.
        key: The series.
        days: Its days, all that the server has.
        url: The server of the archives, and of their listing.
        work: Where they write to.
        rows: Rows that there are.

    Returns:
        The speed of each, and a remark on each that could not be measured.
    """
    if archives.tools is None:
        return [], []
    baselines, remarks = [], []
    for tool in tools:
        try:
            python = _installed(tool, archives.tools / tool.name)
            seconds, brought = _run(python, tool, [url, key.symbol, str(days[0]), str(days[-1])], work / tool.name)
        except (OSError, RuntimeError) as error:
            remarks.append(f"{tool.name}: {error}")
            continue
        if brought == rows:
            baselines.append(Baseline(f"{tool.name} ({tool.makes})", [rows / seconds]))
        else:
            remarks.append(f"{tool.name}: brought {brought:,} of {rows:,} rows")
    return baselines, remarks


def _installed(tool: Tool, folder: Path) -> Path:
    """Return the Python of an environment with the tool, which is made if it is missing."""
    python, done = folder / "bin" / "python", folder / "installed"
    if not done.exists() or done.read_text() != repr(tool.packages):
        _answer([sys.executable, "-m", "venv", "--clear", str(folder)], "not installed", _INSTALL_SECONDS)
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--retries", "1"]
        _answer([*install, *tool.packages], "not installed", _INSTALL_SECONDS)
        done.write_text(repr(tool.packages))
    return python


def _run(python: Path, tool: Tool, arguments: Sequence[str], folder: Path) -> tuple[float, int]:
    """Seconds and rows."""
    home = folder / "home"  # some keep settings or what they fetched there
    home.mkdir(parents=True)
    command = [str(python), "-c", tool.script, *arguments, str(folder / "brought")]
    printed = _answer(command, "failed", _RUN_SECONDS, {"HOME": str(home), "TERM": "dumb"})
    seconds, rows = printed.splitlines()[-1].split()
    return float(seconds), int(rows)


def _answer(command: Sequence[str], fault: str, seconds: float, env: dict[str, str] | None = None) -> str:
    """Return the output of a command.

    Raises:
        RuntimeError: it failed, or took too long.
    """
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds, env=os.environ | (env or {}), check=False
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"{fault} (not done after {seconds:g} s)") from None
    if done.returncode:
        reason = ((done.stderr.strip() or done.stdout.strip()).splitlines() or ["without a word"])[-1]
        raise RuntimeError(f"{fault} ({reason[:160]})")
    return done.stdout
