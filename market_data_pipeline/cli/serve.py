"""``market-data serve``: the lake over HTTP."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import click

from market_data_pipeline.cli.console import aside
from market_data_pipeline.cli.live import current_series, show_followed
from market_data_pipeline.errors import UsageError
from market_data_pipeline.hosts import is_loopback
from market_data_pipeline.settings import Settings, load_settings

if TYPE_CHECKING:
    from market_data_pipeline.server.live_hub import LiveHub


@click.command("serve")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(1, 65535), help="Port.")
@click.option(
    "--allow-host",
    "allowed",
    multiple=True,
    metavar="NAME",
    help="A name under which clients reach the server, for example that of a proxy; with :PORT only that port.",
)
@click.option(
    "--cache-strategy",
    type=click.Choice(["cache_only", "auto"]),
    help="What requests do without cache_strategy: read the lake alone, or fetch missing days. Default: the setting.",
)
@click.option(
    "--live",
    "with_feed",
    is_flag=True,
    help="Run the live feed in this process, and serve its streams as server-sent events and as Binance's sockets.",
)
@click.option(
    "--speed",
    default=1.0,
    show_default=True,
    type=click.FloatRange(1, 3600),
    help="With --live: speed of the clock of a sandbox (`market-data sandbox --speed`). Binance has 1.",
)
def serve_command(
    host: str, port: int, allowed: tuple[str, ...], cache_strategy: str | None, with_feed: bool, speed: float
) -> None:
    """Serve the lake over HTTP.

    Rows of every data type, as JSON, Arrow, Parquet or CSV, at /api/v1. Every answer names the final rows and the
    missing ones. /docs lists the routes. Runs until Ctrl-C.

    Admin routes and SQL need an API key: set MARKET_DATA_API_KEYS. On loopback, everything else needs none. With
    another --host, every request needs a key.

    It needs the extra server: pip install "market-data-pipeline[server]". With --live, it runs the feed of
    `market-data live`, too, and needs the extra live.

      market-data serve
      curl "http://127.0.0.1:8000/api/v1/market/candles/BTCUSDT/1h?limit=5"
    """
    try:
        from market_data_pipeline.server.app import build_app
        from market_data_pipeline.server.run import run_server
    except ModuleNotFoundError as error:
        raise UsageError(
            f"The server needs {error.name}, which is not installed. Install it: "
            'pip install "market-data-pipeline[server]"'
        ) from None
    from market_data_pipeline.defs.platform.listening import address_of, check_address

    chosen = {} if cache_strategy is None else {"serve_cache_strategy": cache_strategy}
    settings = load_settings(**chosen)
    open_to_all = not is_loopback(host)
    if open_to_all and not settings.api_key_list:
        raise UsageError(
            f"{host} is not loopback, so others can reach the server. Set MARKET_DATA_API_KEYS to one or more keys, or "
            "leave --host out."
        )
    check_address(host, port)
    if open_to_all:
        aside().print("Every request needs an API key, because others can reach this address. The data is Binance's.")
    with ExitStack() as stack:
        hub = stack.enter_context(_feed(settings, speed)) if with_feed else None
        aside().print(f"The lake in {settings.root} is served at {address_of(host, port)}. Routes: /docs")
        app = build_app(settings, keys=settings.api_key_list, key_for_all=open_to_all, hosts=allowed, hub=hub)
        run_server(app, host, port)


@contextmanager
def _feed(settings: Settings, speed: float) -> Iterator[LiveHub]:
    """Run the live feed for the duration of the block.

    Raises:
        MarketDataError: It cannot start.
        UsageError: A package is missing, or no series can be followed.
    """
    from market_data_pipeline.server.live_hub import LiveHub

    try:
        from market_data_pipeline.live.feed import Feed
        from market_data_pipeline.live.in_thread import FeedThread
    except ModuleNotFoundError as error:
        raise UsageError(
            f"--live needs {error.name}, which is not installed. Install it: "
            'pip install "market-data-pipeline[server,live]"'
        ) from None
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    keys = current_series(settings)
    followed = Feed(settings, keys, speed).series
    hub = LiveHub(followed)
    with FeedThread(Feed(settings, followed, speed, hub), hub):
        show_followed(followed, settings)
        yield hub
