"""``market-data sandbox``: a made-up Binance on this machine."""

from __future__ import annotations

import threading
from pathlib import Path

import click


@click.command()
@click.option(
    "--port", default=8765, show_default=True, type=click.IntRange(0, 65535), help="Port; 0 takes a free one."
)
@click.option(
    "--mirror",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Serve a folder with the layout of the archive (data/…) instead of made-up data.",
)
@click.option("--seed", default=0, show_default=True, help="Number of the made-up history.")
@click.option(
    "--speed", default=1.0, show_default=True, type=click.FloatRange(1, 3600), help="How fast the sandbox's clock runs."
)
def sandbox(port: int, mirror: Path | None, seed: int, speed: float) -> None:
    """Run a made-up Binance on this machine.

    Use it for trials without network. It serves the archive with its listing, and the REST endpoints and WebSocket
    streams of spot, um and cm, until Ctrl-C. It prints the lines that point the pipeline at it. Paste them into another
    shell.
    """
    from market_data_pipeline.sandbox import Sandbox

    with Sandbox(port=port, mirror=mirror, seed=seed, speed=0.0 if speed == 1 else speed) as running:
        click.echo(f"# Sandbox at {running.url}, until Ctrl-C. In another shell:")
        for name, value in running.settings_env().items():
            click.echo(f"export {name}={value}")
        click.echo("export MARKET_DATA_DIR=data/sandbox")
        threading.Event().wait()
