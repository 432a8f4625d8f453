"""``market-data sandbox`` and ``market-data ui``: what runs until it is stopped."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path

import click

from market_data_pipeline.cli.screen import aside
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.settings import load_settings
from market_data_pipeline.universe import load_universe


@click.command()
@click.option(
    "--port", default=8765, show_default=True, type=click.IntRange(0, 65535), help="Port; 0 takes a free one."
)
@click.option(
    "--mirror",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Serve a folder laid out as the archive (with data/… in it) in place of made-up data.",
)
@click.option("--seed", default=0, show_default=True, help="Which of many made-up histories.")
def sandbox(port: int, mirror: Path | None, seed: int) -> None:
    """Run a made-up Binance on this machine.

    For trying things out without network, until Ctrl-C. Serves the archive with its listing and the REST endpoints of
    spot, um and cm. Prints the lines that point the pipeline at it: paste them into another shell.
    """
    from market_data_pipeline.sandbox import Sandbox

    with suppress(KeyboardInterrupt), Sandbox(port=port, mirror=mirror, seed=seed) as running:
        click.echo(f"# Sandbox at {running.url}, until Ctrl-C. In another shell:")
        for name, value in running.settings_env().items():
            click.echo(f"export {name}={value}")
        click.echo("export MARKET_DATA_DIR=data/sandbox")
        threading.Event().wait()
    aside().print("The sandbox is stopped.")


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

    They run over the data folder until Ctrl-C. Backfills are started there with a click, and the schedules keep the
    data current while this runs. Dagster's own records lie in the folder dagster below MARKET_DATA_DIR, where the other
    commands put theirs too.

    The UI has no login. It refuses requests of pages that it did not serve itself. With another --host than loopback,
    anybody who reaches the port can start runs.
    """
    from market_data_pipeline.defs.home import prepare_ui, run_dagster_dev
    from market_data_pipeline.defs.listening import address_of, is_loopback

    settings = load_settings()
    load_universe(settings.universe)  # a mistake in it is told here, and not by a code location that does not load
    prepare_ui(Layout(settings.root), host, port, [*settings.ui_host_names, *allowed])
    if not is_loopback(host):
        aside().print(
            f"Warning: anybody who reaches port {port} of {host} can start and stop runs, because the UI has no login. "
            "Let only people you trust reach it, or put a proxy with a login before it.",
            soft_wrap=True,
        )
    aside().print(f"Dagster's UI comes up at {address_of(host, port)}; data lies in {settings.root}.", soft_wrap=True)
    run_dagster_dev(host, port)
