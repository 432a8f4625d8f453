"""``market-data worker``: execute runs of a team on this host."""

from __future__ import annotations

import os
import socket

import click

from market_data_pipeline.cli.console import aside
from market_data_pipeline.settings import load_settings
from market_data_pipeline.universe import load_universe


@click.command()
@click.option(
    "--queue",
    "queues",
    multiple=True,
    metavar="NAME",
    help="Take runs from this queue only: runs, or trades (days of trades need more memory). Default: both.",
)
@click.option("--slots", default=1, show_default=True, type=click.IntRange(1, 64), help="Runs at the same time.")
@click.option("--name", default=None, help="Name of the worker in the UI. Default: the process and its host.")
def worker(queues: tuple[str, ...], slots: int, name: str | None) -> None:
    """Run the days of a team on this host.

    One host runs `market-data ui`. Any number of hosts run workers, with the same version, universe.yaml,
    MARKET_DATA_POSTGRES and MARKET_DATA_BROKER, and the same data folder. Each slot may use MARKET_DATA_MEMORY_MB.

    Ctrl-C or SIGTERM ends the worker after its runs in progress; a second signal interrupts them. If a worker is
    killed, its runs start again on another one.
    """
    from market_data_pipeline.defs.platform.queues import QUEUES
    from market_data_pipeline.defs.worker import run_worker

    settings = load_settings()
    load_universe(settings.universe)  # report a mistake here, not in each run
    called = name or f"worker-{os.getpid()}"
    called = called if "@" in called else f"{called}@{socket.gethostname()}"
    chosen = queues or QUEUES
    aside().print(f"{called} takes runs from {', '.join(chosen)}, {slots} at a time, until Ctrl-C.")
    run_worker(settings, called, chosen, slots)
