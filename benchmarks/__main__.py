"""``python -m benchmarks``: measure everything, or some of it, print a table and keep the numbers."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import click
from rich.console import Console

from benchmarks.backfills import (
    backfill,
    backfill_months,
    backfill_team,
    backfill_trades,
    backfill_types,
    load,
    yesterday,
)
from benchmarks.client import queries
from benchmarks.data import FULL, QUICK, Archives, Scale
from benchmarks.growth import growth_series, growth_years
from benchmarks.imports import import_speed
from benchmarks.ingestion import (
    ingest_klines,
    ingest_klines_from_afar,
    ingest_klines_of_months,
    ingest_single_trades,
    ingest_trades,
)
from benchmarks.live import live_messages, live_readable
from benchmarks.reconciliation import reconcile
from benchmarks.report import Row, save, show
from benchmarks.serving import serve
from benchmarks.sql import composed, sql, vwap
from benchmarks.stores import postgres
from benchmarks.universe import universe
from benchmarks.verification import verify

BENCHMARKS: Mapping[str, Callable[[Archives, Path], list[Row]]] = {
    "ingest-klines": ingest_klines,
    "ingest-far": ingest_klines_from_afar,
    "ingest-months": ingest_klines_of_months,
    "ingest-trades": ingest_trades,
    "ingest-single-trades": ingest_single_trades,
    "backfill": backfill,
    "backfill-team": backfill_team,
    "backfill-months": backfill_months,
    "backfill-trades": backfill_trades,
    "backfill-types": backfill_types,
    "yesterday": yesterday,
    "queries": queries,
    "sql": sql,
    "composed": composed,
    "vwap": vwap,
    "postgres": postgres,
    "serve": serve,
    "universe": universe,
    "reconcile": reconcile,
    "verify": verify,
    "imports": import_speed,
    "live-messages": live_messages,
    "live-readable": live_readable,
    "load": load,
    "growth-years": growth_years,
    "growth-series": growth_series,
}

PRINTED_WIDTH = 150
"""Columns where no terminal says how many there are."""

RESULTS = Path(__file__).parent / "results"

MADE = Path(__file__).parents[1] / ".bench"


def measure(
    names: Sequence[str], scale: Scale, folder: Path, results: Path, console: Console, *, tools: bool = False
) -> list[Row]:
    """Make the data (not timed), measure, print the table and keep the numbers.

    Args:
        names: Of :data:`BENCHMARKS`.
        scale: How much to measure.
        folder: Where archives are kept and lakes are written.
        results: Where the JSON goes.
        console: Where the table goes.
        tools: Whether published tools are installed and measured beside.
    """
    load_before = os.getloadavg()[0]
    archives = Archives(folder / f"archives-{scale.digest}", scale, folder / "tools" if tools else None)
    archives.folder.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    try:
        with tempfile.TemporaryDirectory(prefix="lakes-", dir=folder) as work:
            for name in names:
                with console.status(f"{name} …"):
                    rows += BENCHMARKS[name](archives, Path(work) / name)
    finally:
        # Where a benchmark breaks, what was measured before it is shown all the same.
        show(rows, scale, console)
        console.print(f"Kept in {save(rows, scale, results, load_before)}", soft_wrap=True)
    return rows


@click.command()
@click.option("--only", multiple=True, type=click.Choice(list(BENCHMARKS)), help="Measure this; may be repeated.")
@click.option("--quick", is_flag=True, help="Much less data and one repetition: to see that it works.")
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=MADE,
    show_default=True,
    help="Where archives, lakes and environments of tools are made, some 5 GB at full size; they are used again.",
)
@click.option(
    "--tools/--no-tools",
    default=None,
    help="Install published tools from PyPI, each into an environment of its own below the folder, and measure them "
    "beside. By default at full size only.",
)
@click.option(
    "--results", type=click.Path(file_okay=False, path_type=Path), default=RESULTS, help="Where the JSON goes."
)
def main(only: tuple[str, ...], quick: bool, folder: Path, tools: bool | None, results: Path) -> None:
    """Measure what the pipeline costs, beside simpler ways. Exit code 1 where a target is missed at full size."""
    scale = QUICK if quick else FULL
    folder.mkdir(parents=True, exist_ok=True)
    rows = measure(
        only or tuple(BENCHMARKS),
        scale,
        folder,
        results,
        Console(width=None if sys.stdout.isatty() else PRINTED_WIDTH),
        tools=not quick if tools is None else tools,
    )
    if scale.judged and any(row.reached is False for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
