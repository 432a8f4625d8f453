"""``market-data serve``: the lake over HTTP."""

from __future__ import annotations

import click

from market_data_pipeline.cli.console import aside
from market_data_pipeline.errors import UsageError
from market_data_pipeline.hosts import is_loopback
from market_data_pipeline.settings import load_settings


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
def serve_command(host: str, port: int, allowed: tuple[str, ...], cache_strategy: str | None) -> None:
    """Serve the lake over HTTP.

    Rows of every data type, as JSON, Arrow, Parquet or CSV, at /api/v1. Every answer names the final rows and the
    missing ones. /docs lists the routes. Runs until Ctrl-C.

    Admin routes and SQL need an API key: set MARKET_DATA_API_KEYS. On loopback, everything else needs none. With
    another --host, every request needs a key.

    It needs the extra server: pip install "market-data-pipeline[server]"

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
    aside().print(f"The lake in {settings.root} is served at {address_of(host, port)}. Routes: /docs")
    app = build_app(settings, keys=settings.api_key_list, key_for_all=open_to_all, hosts=allowed)
    run_server(app, host, port)
