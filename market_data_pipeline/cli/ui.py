"""``market-data ui``: Dagster's UI and daemon."""

from __future__ import annotations

import click

from market_data_pipeline.cli.console import aside
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.settings import load_settings
from market_data_pipeline.universe import load_universe


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=3000, show_default=True, type=click.IntRange(1, 65535), help="Port of the UI.")
@click.option(
    "--allow-host",
    "allowed",
    multiple=True,
    metavar="NAME",
    help="A name under which browsers reach the UI, for example that of a proxy; with :PORT only that port.",
)
def ui(host: str, port: int, allowed: tuple[str, ...]) -> None:
    """Run Dagster's UI and daemon.

    Both use the data folder, and run until Ctrl-C. You can start backfills in the UI, and the schedules update the data
    while this runs. Dagster's records are in the folder dagster below MARKET_DATA_DIR. All commands share them.

    The UI has no login. It refuses requests from pages that it did not serve itself. If --host is not loopback,
    anybody who reaches the port can start runs.
    """
    from market_data_pipeline.defs.platform.home import prepare_ui, run_dagster_dev
    from market_data_pipeline.defs.platform.listening import address_of
    from market_data_pipeline.hosts import is_loopback

    settings = load_settings()
    load_universe(settings.universe)  # report a mistake here, not in a code location that fails to load
    prepare_ui(Layout(settings.root), host, port, [*settings.ui_host_names, *allowed])
    if not is_loopback(host):
        aside().print(
            f"Warning: anybody who reaches port {port} of {host} can start and stop runs, because the UI has no login. "
            "Let only people you trust reach it, or put a proxy with a login before it."
        )
    aside().print(f"Dagster's UI comes up at {address_of(host, port)}; data lies in {settings.root}.")
    run_dagster_dev(host, port)
