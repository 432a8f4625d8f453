"""``market-data demo``: the whole pipeline on made-up data, without network."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import click

from market_data_pipeline import clock
from market_data_pipeline.cli.console import aside, out
from market_data_pipeline.cli.download import fetch
from market_data_pipeline.cli.selection import Selection, choose
from market_data_pipeline.cli.signals import LAST_SECONDS
from market_data_pipeline.cli.sql import run_query
from market_data_pipeline.cli.status import all_series, print_status
from market_data_pipeline.cli.summary import end
from market_data_pipeline.lake import storage
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.settings import Settings, load_settings
from market_data_pipeline.universe import load_universe

_DAYS = 35
_HOSTS = ("vision_url", "vision_listing_url", "spot_url", "um_url", "cm_url")

_UNIVERSE = """\
# Written by `market-data demo`: {days} days of made-up data, today among them.
collect:
  - market: spot
    symbols: [BTCUSDT, ETHUSDT, SOLUSDT]
    klines: {{intervals: [1m, 1h], from: {first}}}
    aggTrades: {{from: {first}}}
  - market: um
    symbols: [BTCUSDT]
    klines: {{intervals: [1m, 1h], from: {first}}}
    aggTrades: {{from: {first}}}
"""

_QUERIES = (
    (
        "The last five days of spot BTCUSDT, made of its hourly candles",
        """\
SELECT open_time::DATE AS day, first(open ORDER BY open_time) AS open, max(high) AS high, min(low) AS low,
       last(close ORDER BY open_time) AS close, round(sum(volume), 3) AS volume, count(*) AS candles
FROM binance_spot.klines
WHERE symbol = 'BTCUSDT' AND interval = '1h' AND open_time >= current_date - 4
GROUP BY day ORDER BY day""",
    ),
    (
        "Yesterday's trades by symbol: number, volume-weighted price, share bought by takers",
        """\
SELECT symbol, count(*) AS agg_trades, round(sum(price * quantity) / sum(quantity), 2) AS vwap,
       round(sum(quantity) FILTER (NOT is_buyer_maker) / sum(quantity), 3) AS taker_buy_share
FROM binance_spot.agg_trades
WHERE transact_time >= current_date - 1 AND transact_time < current_date
GROUP BY symbol ORDER BY symbol""",
    ),
)


_SERVED_AT = "http://127.0.0.1:8000"
_REQUEST = "/api/v1/market/candles/BTCUSDT/1h?limit=3&columns=open,high,low,close,volume&format=csv"


@click.command()
@click.option("--ui", "then_ui", is_flag=True, help="Afterwards run Dagster's UI over the demo's data, until Ctrl-C.")
@click.option("--port", default=3000, show_default=True, type=click.IntRange(1, 65535), help="Port of the UI.")
def demo(then_ui: bool, port: int) -> None:
    """Run the pipeline on made-up data.

    Needs no network. Starts the sandbox on a free port, runs a backfill through Dagster, shows what is stored, runs two
    queries, and requests candles from the server. Its data is in the folder demo below MARKET_DATA_DIR, apart from
    yours. A second run downloads only new days.
    """
    from market_data_pipeline.sandbox import Sandbox

    began = time.monotonic()
    console, root = aside(), load_settings().root / "demo"
    universe, first = root / "universe.yaml", clock.today() - timedelta(days=_DAYS - 1)
    storage.put(universe, _UNIVERSE.format(days=_DAYS, first=first).encode())
    with Sandbox() as sandbox:
        settings = load_settings(dir=root, universe=universe, **dict.fromkeys(_HOSTS, sandbox.url))
        chosen = choose(load_universe(universe), Selection())
        console.print(
            f"A made-up Binance answers at {sandbox.url}. Dagster fetches {_DAYS} days of {len(chosen.wanted)} series "
            f"to {root}."
        )
        code = fetch(settings, chosen, yes=True, everything=True)
        click.echo()
        print_status(all_series(settings, load_universe(universe)), str(root), out())
        for title, query in _QUERIES:
            click.echo(f"\n{title}:\n\n{query}\n")
            run_query(settings, query)
        _show_server(settings, root)
        console.print(f"Done in {time.monotonic() - began:.0f} s.")
        if then_ui:
            _run_ui(settings, port, sandbox.settings_env())
            return
    command = as_typed()
    click.echo(
        "\nThe same in Dagster's UI, with the made-up Binance beside it:\n"
        f"  {command} demo --ui\n"
        "More questions:\n"
        f'  MARKET_DATA_DIR={shlex.quote(_short(root))} {command} sql "FROM quality.coverage LIMIT 5"\n'
        "The real Binance, into ./data:\n"
        f"  {command} backfill BTCUSDT 1h --from 2024-01 --through 2024-01"
    )
    end(code)


def _show_server(settings: Settings, root: Path) -> None:
    """Serve the data for one request, and show how to repeat it."""
    serve = f"MARKET_DATA_DIR={shlex.quote(_short(root))} {as_typed()} serve"
    try:
        from market_data_pipeline.server.app import build_app
        from market_data_pipeline.server.run import serving
    except ModuleNotFoundError:
        click.echo(f'\nOver HTTP: pip install "market-data-pipeline[server]", then {serve}')
        return
    import requests

    with serving(build_app(settings)) as address, requests.Session() as session:
        session.trust_env = False  # no proxy for loopback
        answer = session.get(address + _REQUEST, timeout=60)
        answer.raise_for_status()
    click.echo(
        f'\nThe last three hours over HTTP, while `{serve}` runs:\n\ncurl "{_SERVED_AT}{_REQUEST}"\n\n{answer.text}'
    )


def _run_ui(settings: Settings, port: int, sandbox: dict[str, str]) -> None:
    from market_data_pipeline.defs.platform.home import dagster_dev_command, end_all_with_this_process, prepare_ui

    prepare_ui(Layout(settings.root), port=port, allowed_hosts=settings.ui_host_names)
    aside().print(f"Dagster's UI comes up at http://127.0.0.1:{port}, until Ctrl-C.")
    end_all_with_this_process()
    ours = {"MARKET_DATA_DIR": str(settings.root), "MARKET_DATA_UNIVERSE": str(settings.universe)}
    environment = {**os.environ, **sandbox, **ours}
    with subprocess.Popen(dagster_dev_command(port=port), env=environment) as running:  # noqa: S603 - our own command
        try:
            running.wait()
        except KeyboardInterrupt:
            running.terminate()  # it ends the processes that it has started
            with suppress(subprocess.TimeoutExpired):
                running.wait(LAST_SECONDS / 2)
            running.kill()
            raise


def as_typed() -> str:
    """Return the command as this shell finds it: its name if that is on the PATH, else its path."""
    installed = Path(sys.executable).with_name("market-data")
    by_name = shutil.which("market-data")
    if not installed.exists() or (by_name is not None and Path(by_name).resolve() == installed.resolve()):
        return "market-data"
    return shlex.quote(_short(installed))


def _short(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
