"""Make pictures of the docs from generated data: ``python -m tools.pictures``. Needs Chromium, except for candles.

Screenshots of Dagster's UI in ``docs/images`` are made by hand.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import matplotlib.pyplot as plt

from market_data_pipeline import MarketData
from market_data_pipeline.coverage.candles import DOWN, UP
from market_data_pipeline.sandbox import MarketOutage, MissingRows, Sandbox, WrongChecksum
from market_data_pipeline_tests.support.browser import opened_page

IMAGES = Path(__file__).parents[1] / "docs" / "images"
TODAY = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
SYMBOLS = ("BTCUSDT", "ETHUSDT")
DAYS = 330
PORT = 18_765
LOADED = (
    "document.documentElement.dataset.loaded === 'yes' && document.querySelector('#chart').dataset.candles > 0"
    " && document.querySelector('#calendar').dataset.years > 0"
)
"""JavaScript that is true when the page shows everything."""
SHOTS = (("desktop", 1280, 2150, False), ("dark", 1280, 870, True), ("phone", 390, 1500, False))
"""Pictures of the page: name, width and height in CSS pixels, and the colour scheme."""


def faults() -> list[MarketOutage | MissingRows | WrongChecksum]:
    """Return one fault for each color of the calendar."""
    halt, hole = TODAY - timedelta(days=120, hours=-10), TODAY - timedelta(days=77, hours=-5)
    refused = (TODAY - timedelta(days=9)).date()  # of older days there are monthly zips
    return [
        MarketOutage(start=halt, end=halt + timedelta(hours=3)),
        MissingRows(start=hole, end=hole + timedelta(hours=6), series="BTCUSDT", where="archive"),
        WrongChecksum(path=f"ETHUSDT-1h-{refused}"),
    ]


def collect(root: Path) -> None:
    """Fetch the days that the pictures show into a data folder."""
    for symbol in SYMBOLS:
        # One day is refused, so the command ends with 1.
        run(root, "add", symbol, "1h", "--from", f"{DAYS} days ago", "--yes", allowed=(0, 1))


def run(root: Path, *arguments: str, allowed: tuple[int, ...] = (0,)) -> None:
    """Run ``market-data`` in the folder above the data folder."""
    ended = subprocess.run([sys.executable, "-m", "market_data_pipeline.cli", *arguments], cwd=root.parent, check=False)
    if ended.returncode not in allowed:
        sys.exit(f"market-data {' '.join(arguments)} ended with {ended.returncode}.")


def draw_calendar(root: Path, target: Path) -> None:
    """Write the top of the coverage page as a picture."""
    page = root.parent / "coverage.html"
    run(root, "coverage", "--html", str(page))
    text = page.read_text("utf-8").replace(str(root), "data")
    text = re.sub(r"<form.*?</form>", "", text, flags=re.DOTALL).replace("</style>", "svg{zoom:1.35}</style>", 1)
    page.write_text(text, "utf-8")
    chromium = shutil.which("chromium") or shutil.which("google-chrome") or sys.exit("Chromium is not on the PATH.")
    shot = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=960,515"]
    subprocess.run([*shot, f"--screenshot={target}", page.as_uri()], check=True, capture_output=True)


def photograph_page(root: Path) -> None:
    """Write pictures of the page that ``market-data serve`` has: on a desktop, in the dark, and on a phone."""
    command = [sys.executable, "-m", "market_data_pipeline.cli", "serve", "--port", str(PORT)]
    with subprocess.Popen(command, cwd=root.parent, stderr=subprocess.PIPE, text=True) as server:
        try:
            print(server.stderr.readline() if server.stderr else "")
            for name, width, height, dark in SHOTS:
                _photograph(root.parent / name, IMAGES / f"page-{name}.png", width, height, dark=dark)
        finally:
            server.terminate()


def _photograph(profile: Path, target: Path, width: int, height: int, *, dark: bool) -> None:
    phone = width < 600
    with opened_page(profile, scale=2 if phone else 1) as page:
        page.size(width, height, dark=dark, phone=phone)
        for _ in range(60):  # the server may still start
            page.open(f"http://127.0.0.1:{PORT}/#candles=spot/klines/ETHUSDT/1h")
            if page.value("Boolean(document.querySelector('#chart'))"):
                break
            page.value("new Promise(done => setTimeout(done, 500))")
        page.until(f"{LOADED} && document.querySelector('#gaps tbody tr')")
        for _ in range(4 if phone else 1):
            page.value("document.querySelector('#wider').click()")
        page.value("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        page.photograph(target)


def draw_candles(root: Path, target: Path) -> None:
    """Write two weeks of candles with their volume as a picture."""
    market = MarketData(root)
    rows = market.klines("BTCUSDT", "1h", TODAY - timedelta(days=14), TODAY).df().set_index("open_time")
    color = (rows["close"] >= rows["open"]).map({True: UP, False: DOWN})
    figure, (prices, volumes) = plt.subplots(
        2, 1, figsize=(9, 4), dpi=100, sharex=True, height_ratios=(4, 1), layout="constrained"
    )
    prices.vlines(rows.index, rows["low"], rows["high"], color=color, linewidth=0.7)
    prices.vlines(rows.index, rows["open"], rows["close"], color=color, linewidth=1.7)
    prices.set_title("BTCUSDT 1h (generated data)", loc="left", fontsize=10)
    volumes.vlines(rows.index, 0, rows["volume"], color=color, linewidth=1.7)
    volumes.set_ylabel("volume", fontsize=9)
    for axes in (prices, volumes):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    figure.savefig(target)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, Sandbox() as sandbox:
        for fault in faults():
            sandbox.faults.add(fault)
        os.environ |= sandbox.settings_env()
        data = Path(folder) / "data"
        collect(data)
        draw_calendar(data, IMAGES / "calendar.png")
        draw_candles(data, IMAGES / "candles.png")
        photograph_page(data)
