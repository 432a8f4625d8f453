"""``market-data verify``: compare the lake with Binance's archive, or with the bytes that were written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from datetime import date

import click
from rich.console import Console

from market_data_pipeline.cli.console import aside, counted, in_bytes, json_option, out, print_json, progress_bar, table
from market_data_pipeline.cli.download import fetch, yes_option
from market_data_pipeline.cli.selection import Chosen, Selection, choosing, series_among
from market_data_pipeline.cli.summary import ExitCode, end, tell_troubles
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.ledger import Ledger
from market_data_pipeline.lake.partitions import day_files
from market_data_pipeline.maintenance.archive_sweep import ArchiveChange, Discovery, SweepReport, sweep
from market_data_pipeline.maintenance.scrub import verify_local
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.settings import Settings, cpus, load_settings
from market_data_pipeline.universe import Universe, load_universe

_SHOWN = 50
"""Lines of a table; the sentence below it counts all."""

_PROCESS_MEMORY_MB = 256
"""Memory of a process that reads a day of a busy symbol's trades."""


@click.command()
@choosing()
@click.option("--local", is_flag=True, help="Read every file instead, and compare it with the written bytes.")
@click.option("--check-only", is_flag=True, help="Report faults, and change nothing.")
@yes_option
@json_option
def verify(what: Selection, local: bool, check_only: bool, yes: bool, as_json: bool) -> None:
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
        aside().print(f"Nothing is stored in {settings.root} yet, so there is nothing to verify.")
        if as_json:
            print_json([])
        return
    keys = series_among(held, what, str(settings.root), "`market-data status` shows what is stored.")
    if local:
        end(ExitCode.of(_local(settings, keys, mark=not check_only, as_json=as_json)))
    else:
        universe = load_universe(settings.universe)
        end(_listing(settings, keys, universe, mend=not check_only, yes=yes, as_json=as_json))


# --- against the listing ------------------------------------------------------------------------------------------


def _listing(
    settings: Settings, keys: Sequence[SeriesKey], universe: Universe, *, mend: bool, yes: bool, as_json: bool
) -> ExitCode:
    from market_data_pipeline.sources.binance.archive import ArchiveClient

    with closing(ArchiveClient(settings)) as archive, progress_bar(len(keys), "series", "comparing", aside()) as bar:
        report = sweep(settings, keys, archive, mark=mend, at_once=True, on_progress=lambda _: bar(1))
    console = aside()
    found = [(one.kind.value, one.key, one.days, one.archive.rsplit("/", 1)[-1]) for one in report.discoveries]
    _list("Archives that are not as the lake has them", "archive", found, as_json=as_json)
    console.print(_said_of(report))
    tell_troubles(report.troubles, console)
    if report.not_reached:
        console.print(report.said_of_not_reached(), style="red")
    wanted, refused = report.to_fetch, report.of(ArchiveChange.REFUSED)
    if refused:
        console.print(_said_of_refused(refused))
    well = not refused and not report.troubles
    if not wanted:
        return ExitCode.of(well)
    if not mend:
        console.print("`market-data verify` fetches those that changed or are new.")
        return ExitCode.FAILED
    chosen = _that_can_be_brought(wanted, universe)
    for note in chosen.notes:
        console.print(note)
    code = fetch(settings, Chosen(chosen.wanted), yes=yes) if chosen.wanted else ExitCode.FAILED
    _tell_changes(Layout(settings.root), report, console)
    return code if well and not chosen.notes else ExitCode.FAILED


def _said_of(report: SweepReport) -> str:
    archives = sum(report.archives.values())
    words = {ArchiveChange.PUBLISHED: "published since"}
    numbers = ", ".join(f"{len(report.of(kind)):,} {words.get(kind, kind)}" for kind in ArchiveChange)
    unproven = f" {counted(report.without_etag, 'day')} cannot be compared: no ETag is on record."
    unproven = unproven if report.without_etag else ""
    stays = " What vanished from the archive stays in the lake." if report.of(ArchiveChange.VANISHED) else ""
    return (
        f"{counted(archives, 'archive')} of {len(report.archives):,} series compared in "
        f"{counted(report.requests, 'request')}: {numbers}.{unproven}{stays}"
    )


def _said_of_refused(refused: Sequence[Discovery]) -> str:
    number = sum(len(found.days) for found in refused)
    return (
        f"{counted(number, 'day')} {'is' if number == 1 else 'are'} held as before, since the archive that is there "
        "now was refused. It is fetched again when Binance publishes another one, or another checksum. "
        'The reasons: `market-data sql "FROM quality.coverage WHERE failure IS NOT NULL"`.'
    )


def _that_can_be_brought(wanted: Mapping[SeriesKey, Sequence[date]], universe: Universe) -> Chosen:
    there, notes = {}, []
    for key, days in wanted.items():
        if key not in universe:
            notes.append(
                f"{key} is no longer collected, so {counted(len(days), 'day')} of it stayed as it was. "
                "`market-data add` collects it."
            )
            continue
        first = universe.earliest(key)
        if left := [day for day in days if universe.takes(key, day)]:
            there[key] = left
        if days[0] < first:
            notes.append(f"{key}: days before {first}, when collecting begins, were not fetched again.")
    return Chosen(there, tuple(notes))


def _tell_changes(layout: Layout, report: SweepReport, console: Console) -> None:
    told = 0
    for key, days in report.to_fetch.items():
        rows = Ledger.read(layout.ledger(key)).rows
        for day in days:
            for finding in rows[day].findings_list() if day in rows else ():
                if finding.rule in ("replaced", "became_final") and (told := told + 1) <= _SHOWN:
                    console.print(f"{key.short} {day}: {finding.message}")
    if told > _SHOWN:
        console.print(f"and {told - _SHOWN:,} more; see quality.findings.")


# --- against the footers ------------------------------------------------------------------------------------------


def _local(settings: Settings, keys: Sequence[SeriesKey], *, mark: bool, as_json: bool) -> bool:
    layout = Layout(settings.root)
    total = sum(len(day_files(layout, key)) for key in keys)
    processes = max(1, min(cpus(), settings.memory_mb // _PROCESS_MEMORY_MB))
    with progress_bar(total, "files", "reading", aside()) as bar:
        report = verify_local(settings, keys, mark=mark, processes=processes, on_progress=bar)
    console = aside()
    faults = [
        ("damaged", key, (day,), reason) for key, days in report.faults.items() for day, reason in sorted(days.items())
    ]
    _list("Files that are not as they were written", "reason", faults, as_json=as_json)
    number = len(faults)
    console.print(
        f"{counted(sum(report.files.values()), 'file')} of {len(report.files):,} series with "
        f"{counted(report.rows, 'row')} ({in_bytes(report.bytes)}) read in {report.seconds:.1f} s "
        f"({report.rows / max(report.seconds, 1e-3):,.0f} rows/s): {number:,} damaged."
    )
    if number and mark:
        console.print("They are noted as failed. `market-data sync`, or a backfill of those days, replaces them.")
    tell_troubles(report.troubles, console)
    return report.all_well


# --- the list of faults -----------------------------------------------------------------------------------------------


_COLORS = {
    ArchiveChange.REPLACED.value: "yellow",
    ArchiveChange.REFUSED.value: "red",
    ArchiveChange.VANISHED.value: "red",
}


def _list(
    title: str, last: str, faults: Sequence[tuple[str, SeriesKey, Sequence[date], str]], *, as_json: bool
) -> None:
    """Print kinds, series, days and texts of faults, as a table or as JSON. The column ``last`` has the texts."""
    if as_json:
        print_json(
            {"kind": kind, "series": str(key), "first": days[0], "last": days[-1], "days": len(days)}
            | {"archive": None, "reason": None, last: text}
            for kind, key, days, text in faults
        )
    elif faults:
        shown = table(title, "what", "series", "days", last, fold="reason")
        for kind, key, days, text in faults[:_SHOWN]:
            when = str(days[0]) if len(days) == 1 else f"{days[0]} to {days[-1]} ({len(days)})"
            shown.add_row(kind, key.short, when, text, style=_COLORS.get(kind, ""))
        out().print(shown)
