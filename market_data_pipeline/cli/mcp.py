"""``market-data mcp``: the lake as tools for language models."""

from __future__ import annotations

from importlib.util import find_spec

import click

from market_data_pipeline.cli.console import aside
from market_data_pipeline.errors import UsageError
from market_data_pipeline.settings import load_settings


@click.command()
@click.option("--http", is_flag=True, help="Serve over HTTP on 127.0.0.1 instead of stdin and stdout.")
@click.option("--port", default=8766, show_default=True, type=click.IntRange(1, 65535), help="Port of --http.")
@click.option(
    "--max-rows", default=5000, show_default=True, type=click.IntRange(1, 100_000), help="Most rows of an answer."
)
@click.option(
    "--seconds", default=30, show_default=True, type=click.IntRange(1), help="Time limit in seconds for a SQL query."
)
@click.option(
    "--max-files", default=5000, show_default=True, type=click.IntRange(1), help="Most files that a query may read."
)
@click.option(
    "--max-scan",
    default=100_000_000,
    show_default=True,
    type=click.IntRange(1),
    help="Most rows that a query may read, by estimate.",
)
def mcp(http: bool, port: int, max_rows: int, seconds: int, max_files: int, max_scan: int) -> None:
    """Run an MCP server for language models.

    The tools are series, coverage, condition, gaps, universe, candles, sql and cite. They only read. Every answer
    lists what is missing. SQL is one SELECT over the views, within the limits below and MARKET_DATA_SQL_MEMORY_MB.

    A client starts the command itself and talks to it over stdin and stdout:

      {"mcpServers": {"market-data": {"command": "market-data", "args": ["mcp"]}}}

    --http serves at http://127.0.0.1:PORT/mcp without a login, until Ctrl-C. It refuses requests of web pages.
    """
    if find_spec("mcp") is None:
        raise UsageError('The MCP server needs the extra mcp. Install it: pip install "market-data-pipeline[mcp]"')
    from market_data_pipeline.mcp_server.answers import AnswerLimits
    from market_data_pipeline.mcp_server.server import LOOPBACK, mcp_server, run_http

    limits = AnswerLimits(rows=max_rows, seconds=seconds, scan_files=max_files, scan_rows=max_scan)
    with mcp_server(load_settings().root, limits) as server:
        if http:
            aside().print(f"The MCP server is at http://{LOOPBACK}:{port}/mcp, until Ctrl-C.")
            run_http(server, port)
        else:
            server.run("stdio")
