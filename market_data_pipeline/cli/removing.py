"""Common steps of ``remove`` and ``retain``: show what goes, ask, remove it from the lake and from Dagster's records.

Choosing days belongs to ``maintenance/retention.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import date

import click

from market_data_pipeline import clock
from market_data_pipeline.cli.console import aside, counted, in_bytes, out, print_json, table
from market_data_pipeline.cli.summary import tell_troubles
from market_data_pipeline.errors import UsageError
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.maintenance.retention import Removal, carry_out_removals
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.settings import Settings

unasked_option = click.option("--yes", "-y", is_flag=True, help="Do not ask.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Show what would be removed, and remove nothing.")
even_if_gone_option = click.option(
    "--even-if-gone", is_flag=True, help="Also remove days that Binance no longer has. They cannot be fetched again."
)


def show(removals: Sequence[Removal], collected: Mapping[SeriesKey, bool], *, as_json: bool) -> None:
    """Print what goes: a line for each series, or JSON.

    Args:
        removals: The days to remove, by series.
        collected: True for each series that leaves the universe.
    """
    if as_json:
        print_json(
            {
                "series": str(one.key),
                "leaves_universe": collected.get(one.key, False),
                "days": len(one.stored),
                "first": _iso(one.stored[:1]),
                "last": _iso(one.stored[-1:]),
                "bytes": one.bytes,
                "gone_days": len(one.gone),
                "gone": spans_text(one.gone),
                "trouble": one.trouble,
            }
            for one in removals
        )
        return
    shown = table("", "series", "universe", "days", "first", "last", "size", "gone", right={"days", "size", "gone"})
    for one in removals:
        shown.add_row(
            str(one.key),
            "leaves" if collected.get(one.key, False) else "",
            f"{len(one.stored):,}",
            _iso(one.stored[:1]) or "",
            _iso(one.stored[-1:]) or "",
            in_bytes(one.bytes),
            f"{len(one.gone):,}",
        )
    out().print(shown)


def tell_gone(removals: Iterable[Removal]) -> None:
    """Print the days that Binance no longer has, and the lookups that failed."""
    console = aside()
    for one in removals:
        if one.trouble:
            console.print(f"{one.key}: {one.trouble}")
        if one.gone:
            has = "may not have" if one.trouble else "no longer has"
            console.print(f"{one.key}: Binance {has} {counted(len(one.gone), 'day')}: {spans_text(one.gone)}.")


def refuse_only_copies(removals: Sequence[Removal]) -> None:
    """Refuse to remove days that Binance no longer has, if nobody is asked.

    Raises:
        UsageError: Some days are gone.
    """
    if number := sum(len(one.gone) for one in removals):
        raise UsageError(
            f"{counted(number, 'day')} cannot be fetched again. Add --even-if-gone to remove them, too. "
            "Nothing was removed."
        )


def ask(removals: Sequence[Removal], question: str, *, yes: bool, even_if_gone: bool) -> None:
    """Ask before a removal, and once more if Binance no longer has some of the days.

    Raises:
        click.Abort: The answer is no.
    """
    number = sum(len(one.gone) for one in removals)
    if not yes:
        click.confirm(question, abort=True, err=True)
        if number and not even_if_gone:
            again = f"{counted(number, 'day')} cannot be fetched again. Remove the only copy?"
            click.confirm(again, abort=True, err=True)


def carry_out(settings: Settings, removals: Sequence[Removal]) -> bool:
    """Remove days from Dagster's records and from the lake, and print the result. Return True if all of them went."""
    layout, console = Layout(settings.root), aside()
    if layout.dagster_home.exists():
        from market_data_pipeline.defs.platform.home import open_instance, recording
        from market_data_pipeline.defs.platform.wiping import wipe_days, wipe_series

        with recording(layout), open_instance(layout) as instance:
            for one in removals:
                if one.whole:
                    wipe_series(instance, one.key)
                else:
                    wipe_days(instance, one.key, one.days)
    troubles = carry_out_removals(settings, removals)
    done = [one for one in removals if one.key not in troubles]
    console.print(
        f"Removed {counted(sum(len(one.stored) for one in done), 'day')} of {len(done):,} series, "
        f"{in_bytes(sum(one.bytes for one in done))}."
    )
    tell_troubles(troubles, console)
    return not troubles


def spans_text(days: Sequence[date], most: int = 5) -> str:
    """Return runs of days, such as ``2024-01-01 to 2024-01-03, 2024-02-01``.

    >>> spans_text([date(2024, 1, 1), date(2024, 1, 2), date(2024, 2, 1)])
    '2024-01-01 to 2024-01-02, 2024-02-01'
    """
    runs: list[list[date]] = []
    for day in days:
        if runs and runs[-1][1] + clock.DAY == day:
            runs[-1][1] = day
        else:
            runs.append([day, day])
    texts = [f"{first}" if first == last else f"{first} to {last}" for first, last in runs]
    more = [f"and {len(texts) - most:,} more"] if len(texts) > most else []
    return ", ".join([*texts[:most], *more])


def _iso(days: Sequence[date]) -> str | None:
    return days[0].isoformat() if days else None
