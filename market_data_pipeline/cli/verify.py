"""``market-data verify``: compare the lake with Binance's archive, or with the bytes that were written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date

import click
from rich.console import Console
from rich.table import Table

from market_data_pipeline.cli.console import aside, counted, in_bytes, out, progress_bar
from market_data_pipeline.cli.download import fetch
from market_data_pipeline.cli.selection import Chosen, choosing_series, selection, series_among
from market_data_pipeline.cli.summary import ExitCode, end
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.ledger import Ledger
from market_data_pipeline.lake.partitions import days_on_disk
from market_data_pipeline.maintenance.archive_sweep import Discovery, Kind, SweepReport, sweep
from market_data_pipeline.maintenance.scrub import LocalReport, verify_local
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.settings import Settings, cpus, load_settings
from market_data_pipeline.universe import Universe, load_universe

SHOWN = 50
"""Lines of a table; the sentence below it counts all."""

_PROCESS_MEMORY_MB = 256
"""Memory of a process that reads a day of a busy symbol's trades."""


@click.command()
@choosing_series
@click.option("--local", is_flag=True, help="Read every file instead, and compare it with the written bytes.")
@click.option("--check-only", is_flag=True, help="Report faults, and change nothing.")
@click.option(
    "--yes",
    "-y",
    is_flag=True,
    help="Do not ask before downloading more than 5 GB, or more than the disk has room for.",
)
def verify(
    markets: Sequence[str],
    data_types: Sequence[str],
    symbols: Sequence[str],
    intervals: Sequence[str],
    local: bool,
    check_only: bool,
    yes: bool,
) -> None:
    """Compare stored days with Binance's archive.

    Binance replaces archives after publication. The archive's listing names them, 500 days in one request. This command
    fetches those days again, and reports the changes. It also fetches days whose archive was published since.

    With --local it sends no request to Binance. It compares every file with the SHA-256 of its bytes on record, or with
    the checksum of its rows if there is no such record. Damaged files are marked as failed, and the next backfill or
    sync replaces them.

    Exit code 1 if a fault remains. If the new version of an archive was refused, the fault remains until Binance
    publishes another archive or checksum. An archive that vanished is reported, and is no fault of the lake. Its days
    stay, because they were verified.

      market-data verify
      market-data verify --market um --check-only
      market-data verify --local
    """
    from market_data_pipeline.lake.partitions import known_series

    settings = load_settings()
    held = known_series(Layout(settings.root))
    if not held:
        aside().print(f"Nothing is stored in {settings.root} yet, so there is nothing to verify.", soft_wrap=True)
        return
    what = selection(markets, data_types, symbols, intervals)
    advice = "`market-data status` shows what is stored."
    keys = series_among(held, what, str(settings.root), advice)
    if local:
        end(ExitCode.of(_local(settings, keys, mark=not check_only)))
    else:
        end(_listing(settings, keys, load_universe(settings.universe), mend=not check_only, yes=yes))


# --- against the listing ------------------------------------------------------------------------------------------


def _listing(settings: Settings, keys: Sequence[SeriesKey], universe: Universe, *, mend: bool, yes: bool) -> ExitCode:
    from market_data_pipeline.sources.binance.archive import ArchiveClient

    archive = ArchiveClient(settings)
    try:
        with progress_bar(len(keys), "series", "comparing", aside()) as bar:
            report = sweep(settings, keys, archive, mark=mend, at_once=True, on_progress=lambda _: bar.advance(1))
    finally:
        archive.close()
    console = aside()
    if report.discoveries:
        out().print(_discoveries(report))
    console.print(_said_of(report), soft_wrap=True)
    _tell_troubles(report.troubles, console)
    if report.not_reached:
        console.print(report.said_of_not_reached(), soft_wrap=True, style="red")
    wanted, refused = report.to_fetch, report.of(Kind.REFUSED)
    if refused:
        console.print(_said_of_refused(refused), soft_wrap=True)
    well = not refused and not report.troubles
    if not wanted:
        return ExitCode.of(well)
    if not mend:
        console.print("`market-data verify` fetches those that changed or are new.")
        return ExitCode.FAILED
    chosen = _that_can_be_brought(wanted, universe)
    for note in chosen.notes:
        console.print(note, soft_wrap=True)
    code = fetch(settings, Chosen(chosen.wanted), yes=yes) if chosen.wanted else ExitCode.FAILED
    _tell_changes(Layout(settings.root), report, console)
    return code if well and not chosen.notes else ExitCode.FAILED


def _discoveries(report: SweepReport) -> Table:
    table = Table(title="Archives that are not as the lake has them", title_justify="left", box=None, pad_edge=False)
    for name in ("what", "series", "days", "archive"):
        table.add_column(name, no_wrap=True)
    for found in report.discoveries[:SHOWN]:
        table.add_row(
            found.kind.value,
            found.key.short,
            _days(found.days),
            found.archive.rsplit("/", 1)[-1],
            style=_style(found),
        )
    return table


def _style(found: Discovery) -> str:
    return {Kind.REPLACED: "yellow", Kind.REFUSED: "red", Kind.VANISHED: "red"}.get(found.kind, "")


def _said_of(report: SweepReport) -> str:
    archives = sum(report.archives.values())
    numbers = ", ".join(f"{len(report.of(kind)):,} {words}" for kind, words in _WORDS.items())
    unproven = (
        f" {counted(report.without_etag, 'day')} cannot be compared: no ETag is on record."
        if report.without_etag
        else ""
    )
    stays = " What vanished from the archive stays in the lake." if report.of(Kind.VANISHED) else ""
    return (
        f"{counted(archives, 'archive')} of {len(report.archives):,} series compared in "
        f"{counted(report.requests, 'request')}: {numbers}.{unproven}{stays}"
    )


_WORDS = {
    Kind.REPLACED: "replaced",
    Kind.PUBLISHED: "published since",
    Kind.REFUSED: "refused",
    Kind.VANISHED: "vanished",
}


def _said_of_refused(refused: Sequence[Discovery]) -> str:
    number = sum(len(found.days) for found in refused)
    return (
        f"{counted(number, 'day')} {'is' if number == 1 else 'are'} held as before, since the archive that is there "
        "now was refused. It is fetched again when Binance publishes another one, or another checksum. "
        'The reasons: `market-data sql "FROM quality.coverage WHERE failure IS NOT NULL"`.'
    )


def _that_can_be_brought(wanted: Mapping[SeriesKey, Sequence[date]], universe: Universe) -> Chosen:
    first = universe.first_day()
    there, notes = {}, []
    for key, days in wanted.items():
        if key not in universe:
            notes.append(
                f"{key} is no longer collected, so {counted(len(days), 'day')} of it stayed as it was. "
                "`market-data add` collects it."
            )
        elif left := [day for day in days if day >= first]:
            there[key] = left
        if key in universe and days[0] < first:
            notes.append(f"{key}: days before {first}, when collecting begins, were not fetched again.")
    return Chosen(there, tuple(notes))


def _tell_changes(layout: Layout, report: SweepReport, console: Console) -> None:
    told = 0
    for key, days in report.to_fetch.items():
        rows = Ledger.read(layout.ledger(key)).rows
        for day in days:
            for finding in rows[day].findings_list() if day in rows else ():
                if finding.rule in ("replaced", "became_final") and (told := told + 1) <= SHOWN:
                    console.print(f"{key.short} {day}: {finding.message}", soft_wrap=True)
    if told > SHOWN:
        console.print(f"and {told - SHOWN:,} more; see quality.findings.")


# --- against the footers ------------------------------------------------------------------------------------------


def _local(settings: Settings, keys: Sequence[SeriesKey], *, mark: bool) -> bool:
    layout = Layout(settings.root)
    total = sum(len(days_on_disk(layout, key)) for key in keys)
    processes = max(1, min(cpus(), settings.memory_mb // _PROCESS_MEMORY_MB))
    with progress_bar(total, "files", "reading", aside()) as bar:
        report = verify_local(settings, keys, mark=mark, processes=processes, on_progress=bar.advance)
    console = aside()
    if report.faults:
        out().print(_faults(report))
    number = sum(map(len, report.faults.values()))
    console.print(
        f"{counted(sum(report.files.values()), 'file')} of {len(report.files):,} series with "
        f"{counted(report.rows, 'row')} ({in_bytes(report.bytes)}) read in {report.seconds:.1f} s "
        f"({report.rows / max(report.seconds, 1e-3):,.0f} rows/s): {number:,} damaged.",
        soft_wrap=True,
    )
    if number and mark:
        console.print("They are noted as failed. `market-data sync`, or a backfill of those days, replaces them.")
    _tell_troubles(report.troubles, console)
    return report.all_well


def _faults(report: LocalReport) -> Table:
    table = Table(title="Files that are not as they were written", title_justify="left", box=None, pad_edge=False)
    table.add_column("series", no_wrap=True)
    table.add_column("day", no_wrap=True)
    table.add_column("reason", overflow="fold")
    faults = [(key, day, reason) for key, days in report.faults.items() for day, reason in sorted(days.items())]
    for key, day, reason in faults[:SHOWN]:
        table.add_row(key.short, str(day), reason)
    return table


# --- words --------------------------------------------------------------------------------------------------------


def _tell_troubles(troubles: Mapping[SeriesKey, str], console: Console) -> None:
    for key, reason in list(troubles.items())[:SHOWN]:
        console.print(f"{key.short}: {reason}", soft_wrap=True, style="red")


def _days(days: Sequence[date]) -> str:
    return str(days[0]) if len(days) == 1 else f"{days[0]} to {days[-1]} ({len(days)})"
