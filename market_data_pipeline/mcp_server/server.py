"""The tools as a server of the Model Context Protocol. Answers belong to ``tools.py``."""

from __future__ import annotations

import functools
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.transport_security import TransportSecuritySettings
from mcp.types import ToolAnnotations

from market_data_pipeline import __version__
from market_data_pipeline.client import MarketData
from market_data_pipeline.errors import MarketDataError
from market_data_pipeline.mcp_server.answers import AnswerLimits, ToolAnswer
from market_data_pipeline.mcp_server.query_process import QueryProcess
from market_data_pipeline.mcp_server.tools import Tools
from market_data_pipeline.model import faults

LOOPBACK = "127.0.0.1"

_INSTRUCTIONS = """\
Market history of Binance, verified and stored on this machine. All tools only read. Times are UTC.
Begin with `series`. Before you draw a conclusion from rows, read `missing`, `provisional` and `truncated` of the
answer, and report them. Cite data with `cite`.
"""


class _Server(MCPServer[Any]):
    """A server that refuses arguments which a tool does not have. The SDK drops them silently."""

    async def call_tool(self, name: str, arguments: dict[str, Any], context: Context[Any, Any] | None = None) -> Any:
        """Call a tool.

        Raises:
            ToolError: The tool has no such argument.
        """
        for tool in await self.list_tools():
            known = tool.input_schema["properties"]
            unknown = [one for one in arguments if one not in known]
            if tool.name == name and unknown:
                raise ToolError(f"{name} has no argument {', '.join(unknown)}. There are: {', '.join(known)}.")
        return await super().call_tool(name, arguments, context)


@contextmanager
def mcp_server(root: Path, limits: AnswerLimits) -> Iterator[MCPServer[Any]]:
    """Yield a server over a data folder. Its process for SQL ends with it.

    Raises:
        UsageError: A setting in the environment is wrong.
    """
    process = QueryProcess(root, limits)
    tools = Tools(MarketData(root), process, limits)
    server = _Server(
        "market-data",
        title="Binance market history",
        instructions=_INSTRUCTIONS,
        version=__version__,
        log_level="ERROR",
    )
    read_only = ToolAnnotations(
        read_only_hint=True, destructive_hint=False, idempotent_hint=True, open_world_hint=False
    )
    for tool in tools.every_tool():
        server.add_tool(_explained(tool), annotations=read_only)
    try:
        yield server
    finally:
        process.close()


def run_http(server: MCPServer[Any], port: int) -> None:
    """Serve over HTTP on loopback. Requests with another name in Host, and those of web pages, are refused.

    Raises:
        OSError: The port is in use.
    """
    with socket.socket() as probe:  # the SDK ends the process without a sentence
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((LOOPBACK, port))
    server.run("streamable-http", host=LOOPBACK, port=port, stateless_http=True, transport_security=security(port))


def security(port: int) -> TransportSecuritySettings:
    """Return which requests the server accepts: to this machine by name, and from no web page."""
    names = (LOOPBACK, "localhost")
    return TransportSecuritySettings(
        enable_dns_rebinding_protection=True, allowed_hosts=[f"{name}:{port}" for name in names], allowed_origins=[]
    )


def _explained(tool: Callable[..., ToolAnswer]) -> Callable[..., ToolAnswer]:
    """Return a tool whose foreseeable errors are answers for the model."""

    @functools.wraps(tool)
    def call(*args: Any, **kwargs: Any) -> ToolAnswer:
        try:
            return tool(*args, **kwargs)
        except MarketDataError as error:
            raise ToolError(str(error)) from error
        except Exception as error:
            text = faults.sentence(error)
            if text is None:
                raise
            raise ToolError(text) from error

    return call
