# ruff: noqa: S608 - the SQL has only the project's own column names and quoted paths.
"""The SQL schema ``universe``: symbols of all markets over time. Its tables are made by ``universe/tables.py``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from market_data_pipeline.lake import storage
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.model.series import Market
from market_data_pipeline.sql.file_lists import as_pattern, quoted, read_parquet

_LISTINGS = {
    "market": "VARCHAR",
    "symbol": "VARCHAR",
    "instrument": "VARCHAR",
    "first": "DATE",
    "until": "DATE",
    "evidence": "VARCHAR",
    "predecessor": "VARCHAR",
    "ratio": "DOUBLE",
}
_VOLUMES = {
    "symbol": "VARCHAR",
    "day": "DATE",
    "volume": "DOUBLE",
    "quote_volume": "DOUBLE",
    "base_volume": "DOUBLE",
    "count": "BIGINT",
}

_EXCHANGE_INFO = {
    "symbol": "VARCHAR",
    "day": "DATE",
    "taken_at": "TIMESTAMP",
    **dict.fromkeys(("status", "base_asset", "quote_asset", "contract_type", "underlying_type"), "VARCHAR"),
    **dict.fromkeys(("tick_size", "step_size", "min_quantity", "min_notional", "contract_size"), "DOUBLE"),
    **dict.fromkeys(("onboard_date", "delivery_date"), "DATE"),
    "filters": "VARCHAR",
}

# The last listing that began before the date is the one that traded on the day before.
_MEMBERS = """members(of_market, on_date) AS TABLE
SELECT CAST(on_date AS DATE) AS "date", l.symbol AS symbol, l.instrument AS instrument, l."first" AS listed_from,
    CAST(on_date AS DATE) - l."first" AS age_days
FROM ({listings}) AS l
JOIN ({volumes}) AS v
    ON v.market = l.market AND v.symbol = l.symbol AND v.day = CAST(on_date AS DATE) - 1 AND v."count" > 0
WHERE l.market = of_market AND l."first" < CAST(on_date AS DATE)
QUALIFY row_number() OVER (PARTITION BY l.symbol ORDER BY l."first" DESC) = 1
ORDER BY l.symbol"""


def of_universe(layout: Layout, place: str) -> dict[str, str]:
    """Return the SQL that creates the views and the macro of the schema ``universe``, by name.

    Args:
        place: Condition that is true in the catalog's own folder. Empty means none.
    """
    where = f" WHERE {place}" if place else ""
    listings = _table(layout.listings, _LISTINGS)
    volumes = _of_markets(layout.daily_volumes, _VOLUMES)
    info = _of_markets(layout.exchange_info, _EXCHANGE_INFO)
    placed = {"listings": f"SELECT * FROM ({listings}){where}", "volumes": f"SELECT * FROM ({volumes}){where}"}
    return {
        "listings": f"CREATE OR REPLACE VIEW universe.listings AS {placed['listings']}",
        "daily_volumes": f"CREATE OR REPLACE VIEW universe.daily_volumes AS {placed['volumes']}",
        "exchange_info": f"CREATE OR REPLACE VIEW universe.exchange_info AS SELECT * FROM ({info}){where}",
        "members": f"CREATE OR REPLACE MACRO universe.{_MEMBERS.format(**placed)}",
    }


def _of_markets(path_of: Callable[[Market], Path], columns: Mapping[str, str]) -> str:
    return " UNION ALL BY NAME ".join(
        f"SELECT {quoted(market)} AS market, * FROM ({_table(path_of(market), columns)})" for market in Market
    )


def _table(path: Path, columns: Mapping[str, str]) -> str:
    """Return the query of a file, or of the files of a folder, that may not exist yet. Absent columns are null."""
    typed = ", ".join(f'CAST(NULL AS {type_}) AS "{name}"' for name, type_ in columns.items())
    nothing = f"SELECT {typed} WHERE false"
    pattern = as_pattern(path)
    if path.suffix != ".parquet":
        pattern += "/*.parquet"
    if not (storage.head(path) is not None if path.suffix else any(storage.list_paths(path, "*.parquet"))):
        return nothing
    names = ", ".join(f'"{name}"' for name in columns)
    stored = read_parquet(quoted(pattern), "union_by_name = true")
    return f"SELECT {names} FROM ({nothing} UNION ALL BY NAME SELECT * FROM {stored})"
