"""A process that answers one query, for the SQL route. The server ends it if it exceeds a limit.

DuckDB looks at its limits between two pieces of work, and one piece can take hours or all memory. So a query never runs
in the process of the server. Input: JSON on stdin. Output: an Arrow stream, or JSON with the error, on stdout.
"""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from typing import Any, NoReturn

_MB = 1_000_000
_BESIDE_DUCKDB_MB = 1500
"""Address space of the libraries and of the answer, in addition to DuckDB's own limit."""

READY = b"!"
"""Written before the query runs: the limit of time begins then."""

ANSWERED, WRONG_QUERY, OVER_A_LIMIT = b"A", b"R", b"O"
"""First byte after it: an Arrow stream follows, or a sentence about a wrong query, or about a limit."""


def answer_query(asked: dict[str, Any]) -> NoReturn:
    """Run a query and write its answer to stdout.

    Args:
        asked: ``root``, ``query``, ``params``, ``limit`` (most rows), ``memory_mb``, ``disk_mb`` and ``seconds``.
    """
    import pyarrow as pa

    from market_data_pipeline.client.session import Limits, Views
    from market_data_pipeline.errors import MarketDataError, QueryLimitError
    from market_data_pipeline.lake.layout import Layout
    from market_data_pipeline.model.places import place_of

    out: Any = sys.stdout.buffer
    _limit_memory(int(asked["memory_mb"]) + _BESIDE_DUCKDB_MB)
    views = Views(Layout(place_of(asked["root"])), Limits(asked["memory_mb"], asked["disk_mb"], asked["seconds"]))
    limit = int(asked["limit"])
    out.write(READY)
    out.flush()

    def take(rows: Any) -> pa.Table:
        return views.bounded(rows.limit(limit + 1))

    try:
        table = views.within(take, asked["query"], asked.get("params"))
    except QueryLimitError as error:
        _end(OVER_A_LIMIT, str(error))
    except MarketDataError as error:
        _end(WRONG_QUERY, str(error))
    except MemoryError:
        _end(OVER_A_LIMIT, "The query needs more memory than it may take.")
    except Exception as error:  # noqa: BLE001 - DuckDB's message on the query is for its author
        _end(WRONG_QUERY, str(error).partition("\n")[0])
    out.write(ANSWERED)
    with pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table)
    out.flush()
    sys.exit(0)


def _end(kind: bytes, text: str) -> NoReturn:
    sys.stdout.buffer.write(kind + text.encode("utf-8", "replace"))
    sys.stdout.buffer.flush()
    sys.exit(0)


def _limit_memory(megabytes: int) -> None:
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (megabytes * _MB, megabytes * _MB))


if __name__ == "__main__":
    answer_query(json.load(sys.stdin))
