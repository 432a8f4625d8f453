"""``market-data quarantine``: look at files that were refused, try their days again, accept a wrong checksum."""

from __future__ import annotations

import getpass
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from market_data_pipeline import clock
from market_data_pipeline.cli.console import aside, counted, in_bytes, json_option, out, print_json, table
from market_data_pipeline.cli.download import fetch
from market_data_pipeline.cli.selection import Chosen
from market_data_pipeline.cli.summary import ExitCode, end
from market_data_pipeline.errors import DamagedFileError, UsageError
from market_data_pipeline.lake import quarantine as kept
from market_data_pipeline.lake import storage
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.ledger import Ledger
from market_data_pipeline.lake.quarantine import RefusedZip
from market_data_pipeline.lake.reader import read_day
from market_data_pipeline.model.datasets import spec_of
from market_data_pipeline.model.day import HELD, OtherArchive, after
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.settings import Settings, load_settings
from market_data_pipeline.universe import Universe, load_universe

if TYPE_CHECKING:
    import pyarrow as pa

_DIGITS = 12
"""Digits of a sha256 that a list shows: enough to name an entry by."""
_WIDTH_WITH_ALL = 110
_LINES, _LINE_BYTES = 5, 500
"""Lines of a refused file that are shown, and how much of each."""
_LISTED = 20
_ETAG_UNKNOWN = "unknown"


@click.group()
def quarantine() -> None:
    """List, retry or accept refused files.

    A file that does not match its published checksum, or is malformed, is stored below quarantine/ with the reason. Its
    day fails, and other days continue. Binance corrects most of these files: retry them. You can accept a file that
    Binance never corrects. It loads with a warning that stays visible.

    NAME is a file's name, or the first digits of its sha256 as `list` shows them.

      market-data quarantine list
      market-data quarantine show BTCUSDT-1s-2021-03-04
      market-data quarantine retry --all
      market-data quarantine accept 5f0c2a9be7d1 --reason "compared with the 1m candles"
    """


@quarantine.command(name="list")
@json_option
def list_command(as_json: bool) -> None:
    """List all refused files."""
    layout = Layout(load_settings().root)
    found = kept.entries(layout)
    if as_json:
        print_json(_as_object(entry) for entry in found)
    elif found:
        out().print(_table(found, out()))
    else:
        aside().print(f"Nothing is in quarantine in {layout.root}.")


@quarantine.command("show")
@click.argument("name")
def quarantine_show_command(name: str) -> None:
    """Show why a file was refused.

    Shows both checksums, the rows of the file, and the differences from the stored day.
    """
    layout = Layout(load_settings().root)
    for entry in _named(layout, [name]):
        _show(entry, layout, out())


@quarantine.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--all", "everything", is_flag=True, help="All files except accepted ones.")
def retry(names: Sequence[str], everything: bool) -> None:
    """Fetch the days of refused files again.

    Removes files whose day has been stored from a good file since. With --all, files whose days are no longer collected
    are skipped and listed. Exit code 0 only if all days are stored.
    """
    settings = load_settings()
    layout = Layout(settings.root)
    if everything == bool(names):
        raise UsageError(f"Name the files to retry, or pass --all, not both. {_what_there_is(kept.entries(layout))}")
    if everything:
        chosen = [entry for entry in kept.entries(layout) if entry.accepted is None]
    else:
        chosen = _named(layout, names)
    if not chosen:
        aside().print("Nothing in quarantine is to be retried.")
        return
    universe = load_universe(settings.universe)
    left_out = _not_collected(universe, chosen) if everything else {}
    for entry, why in left_out.items():
        aside().print(f"{entry.name} is left out: {why}")
    code = _bring(settings, universe, [entry for entry in chosen if entry not in left_out])
    end(ExitCode.FAILED if left_out else code)


@quarantine.command("accept")
@click.argument("name")
@click.option("--reason", default="", help="Why; shown with the file from then on.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
def accept_command(name: str, reason: str, yes: bool) -> None:
    """Accept a refused file and load its day.

    You can accept a wrong checksum only, and only if the file reads as its day. The day becomes final, and its
    integrity check has a warning from then on. Another file of the same day is still refused.
    """
    settings = load_settings()
    layout = Layout(settings.root)
    entry = _the_one(layout, name)
    _refuse_unacceptable(entry)
    content = read_content(entry)
    if content.fault:
        raise UsageError(f"{entry.name} cannot be accepted: {content.fault}")
    universe = load_universe(settings.universe)
    _refuse_uncollected(universe, [entry])
    if not yes:
        _show(entry, layout, aside())
        click.confirm("Load this day although its checksum is wrong?", abort=True, err=True)
    kept.accept(layout, entry, by=_who(), at=clock.now(), reason=reason)
    aside().print(f"{entry.name} is accepted for {entry.key} {_period(entry)}.")
    end(_bring(settings, universe, [entry]))


# --- which ones -------------------------------------------------------------------------------------------------------


def _named(layout: Layout, names: Iterable[str]) -> list[RefusedZip]:
    chosen: dict[str, RefusedZip] = {}
    for name in names:
        found = kept.find(layout, name)
        if not found:
            raise UsageError(f"Nothing in quarantine is called {name!r}. {_what_there_is(kept.entries(layout))}")
        chosen.update((str(entry.path), entry) for entry in found)
    return list(chosen.values())


def _the_one(layout: Layout, name: str) -> RefusedZip:
    found = _named(layout, [name])
    if len(found) > 1:
        raise UsageError(f"{name!r} may mean {len(found)} files: name one of them. {_what_there_is(found)}")
    return found[0]


def _what_there_is(found: Sequence[RefusedZip]) -> str:
    if not found:
        return "Nothing is in quarantine."
    shown = [f"{entry.sha256[:_DIGITS]} ({entry.key.short} {_period(entry)})" for entry in found[:_LISTED]]
    more = f" and {len(found) - _LISTED:,} more" if len(found) > _LISTED else ""
    return f"There are: {', '.join(shown)}{more}."


def _refuse_unacceptable(entry: RefusedZip) -> None:
    if entry.kind != kept.CHECKSUM:
        raise UsageError(
            f"{entry.name} cannot be accepted: it was refused as {entry.kind}, and only a wrong checksum can be "
            f"accepted. {entry.reason}"
        )
    if entry.day is None and spec_of(entry.key).daily:
        raise UsageError(
            f"{entry.name} cannot be accepted: it is a monthly zip, and its days come from the daily ones where its "
            "checksum is wrong. Nothing is lost."
        )


def _refuse_uncollected(universe: Universe, found: Iterable[RefusedZip]) -> None:
    for why in _not_collected(universe, found).values():
        raise UsageError(why)


def _not_collected(universe: Universe, found: Iterable[RefusedZip]) -> dict[RefusedZip, str]:
    """Return the entries whose days cannot be fetched because the universe does not collect them, with the reason."""
    why = {}
    for entry in found:
        if entry.key not in universe:
            why[entry] = (
                f"{entry.key} is no longer in {universe.path}, so its days cannot be fetched. "
                "`market-data add` adds it again."
            )
        elif entry.days[-1] < universe.earliest(entry.key):
            why[entry] = (
                f"{entry.key} {_period(entry)} cannot be fetched: {universe.said_of_start(entry.key)}. "
                "Set an earlier `from:` there first."
            )
    return why


def _who() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container's user may have no name
        return "unknown"


# --- what is in it ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Content:
    """The content of a refused file, as far as it can be read.

    Attributes:
        table: The rows, in order; None if they are not readable as days of the series.
        fault: The reason if they are not readable; else empty.
        lines: The first lines of the CSV, or the first bytes of another file.
        names: Names of the files in the zip.
    """

    table: pa.Table | None
    fault: str
    lines: tuple[str, ...]
    names: tuple[str, ...]


def read_content(entry: RefusedZip) -> Content:
    """Read the content of a refused file."""
    from market_data_pipeline.checks.ordering import in_order
    from market_data_pipeline.errors import MalformedError
    from market_data_pipeline.sources.binance.zip_reader import read_zip

    try:
        data = entry.read()
    except DamagedFileError as error:
        return Content(None, entry.reason if entry.beginning else str(error), (str(error),), ())
    names, lines = _first_lines(data)
    try:
        table = read_zip(data, entry.key, entry.stem, entry.days[0], entry.days[-1])
    except MalformedError as error:
        return Content(None, str(error), lines, names)
    ordered, _, conflict = in_order(table, spec_of(entry.key))
    if conflict is not None:
        fault = f"two different rows have the key {conflict.key}: {conflict.rows[0]} and {conflict.rows[1]}."
        return Content(None, fault, lines, names)
    return Content(ordered, "", lines, names)


def _first_lines(data: bytes) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of the files in a zip, and its first lines; of anything else, how it begins."""
    from market_data_pipeline.sources.zips import glimpse

    names, begin = glimpse(data, _LINES * _LINE_BYTES)
    if not begin:
        return names, (repr(data[:80]),)
    lines = [line[:_LINE_BYTES].decode(errors="replace").rstrip("\r") for line in begin.split(b"\n", _LINES)[:_LINES]]
    return names, tuple(line if line.isprintable() else ascii(line) for line in lines if line)


def difference_to_held(entry: RefusedZip, content: Content, layout: Layout) -> str:
    """Return the difference of a refused file from the stored file of its day, in words; empty if none is stored."""
    from market_data_pipeline.checks.diff import difference, key_format

    if entry.day is None or content.table is None:
        return ""
    try:
        held = read_day(layout, entry.key, entry.day)
    except DamagedFileError:
        return ""
    found = difference(held, content.table, spec_of(entry.key), key_format(entry.key))
    return str(found) if found else "none: it has the same rows"


# --- what is shown ----------------------------------------------------------------------------------------------------


def _period(entry: RefusedZip) -> str:
    return entry.day.isoformat() if entry.day else f"{entry.first:%Y-%m}"


def _accepted(entry: RefusedZip) -> str:
    if entry.accepted is None:
        return "no"
    why = f": {entry.accepted.reason}" if entry.accepted.reason else ""
    return f"by {entry.accepted.by}, {entry.accepted.at:%Y-%m-%d %H:%M} UTC{why}"


def _table(found: Sequence[RefusedZip], console: Console) -> Table:
    everything = console.width >= _WIDTH_WITH_ALL
    more = ("refused (UTC)", "size") if everything else ()
    shown = table("", "name", "series", "day", "kind", *more, "accepted", right=("size",), fold="accepted")
    for entry in found:
        when = (f"{entry.at:%Y-%m-%d %H:%M}", in_bytes(entry.size)) if everything else ()
        accepted = entry.accepted.by if entry.accepted else "no"
        shown.add_row(entry.sha256[:_DIGITS], entry.key.short, _period(entry), entry.kind, *when, accepted)
    return shown


def _as_object(entry: RefusedZip) -> dict[str, object]:
    accepted = entry.accepted
    return {
        "name": entry.name,
        "series": str(entry.key),
        "day": _period(entry),
        "kind": entry.kind,
        "reason": entry.reason,
        "refused_at": entry.at,
        "bytes": entry.size,
        "sha256": entry.sha256,
        "published_sha256": entry.published_sha256,
        "accepted_by": accepted.by if accepted else None,
        "accepted_at": accepted.at if accepted else None,
        "accepted_reason": accepted.reason if accepted else None,
    }


def _show(entry: RefusedZip, layout: Layout, console: Console) -> None:
    content = read_content(entry)
    facts = {
        "series": str(entry.key),
        "day": _period(entry),
        "file": entry.file,
        "bytes": f"{in_bytes(entry.size)} in {entry.path}",
        "refused": f"{entry.at:%Y-%m-%d %H:%M} UTC, as {entry.kind}",
        "reason": entry.reason,
        "sha256": entry.sha256,
        "published": entry.published_sha256 or "not known",
        "accepted": _accepted(entry),
        "held": _held(entry, layout),
        "difference": difference_to_held(entry, content, layout),
        "content": _said_content(content),
    }
    for name, text in facts.items():
        if text:
            console.print(f"{name:<11}{text}", soft_wrap=True)
    for line in content.lines:
        console.print(f"  {line}", soft_wrap=True)
    console.print()


def _held(entry: RefusedZip, layout: Layout) -> str:
    if entry.day is None:
        return ""
    row = Ledger.read(layout.ledger(entry.key)).get(entry.day)
    if row is None or row.outcome != HELD:
        return "no"
    return f"{'final' if row.final else 'provisional'}, {counted(row.rows, 'row')} from {row.source}"


def _said_content(content: Content) -> str:
    inside = f"{', '.join(content.names)}; " if content.names else ""
    if content.table is None:
        return f"{inside}cannot be read as what it should be: {content.fault}"
    return f"{inside}{counted(content.table.num_rows, 'row')}, which read as what they should be"


# --- fetching the days ------------------------------------------------------------------------------------------------


def _bring(settings: Settings, universe: Universe, chosen: Sequence[RefusedZip]) -> ExitCode:
    """Fetch the days of entries again, and let go of those that are mended; return the exit code."""
    layout, console = Layout(settings.root), aside()
    _refuse_uncollected(universe, chosen)
    collected = {key: set(universe.days(key)) for key in {entry.key for entry in chosen}}
    # Of a month, only the collected days matter.
    days = {
        entry.path: entry.days if entry.day else [day for day in entry.days if day in collected[entry.key]]
        for entry in chosen
    }
    left = _let_go(chosen, days, layout, console)
    wanted: dict[SeriesKey, list[date]] = {}
    for entry in left:
        wanted[entry.key] = sorted({*wanted.get(entry.key, ()), *days[entry.path]})
    if not wanted:
        return ExitCode.STORED
    for key in wanted:
        _make_due(layout, key, [entry for entry in left if entry.key == key], settings.lock_wait_seconds)
    code = fetch(settings, Chosen(wanted), yes=True)
    _let_go(left, days, layout, console)
    return code


def _let_go(
    chosen: Iterable[RefusedZip], days: Mapping[Path, list[date]], layout: Layout, console: Console
) -> list[RefusedZip]:
    """Release entries whose days are stored in good files; return the others."""
    left = []
    for entry in chosen:
        if kept.is_resolved(entry, Ledger.read(layout.ledger(entry.key)), days[entry.path]):
            kept.release(entry)
            what = f"{entry.key.short} {_period(entry)}"
            console.print(f"{entry.name} is removed: {what} is stored in good files.")
        else:
            left.append(entry)
    return left


def _make_due(layout: Layout, key: SeriesKey, found: Sequence[RefusedZip], wait_seconds: float) -> None:
    """Mark stored days whose new archive was refused, so that they are fetched again."""
    with storage.only_writer(layout.lock(key), wait_seconds, str(key)):
        ledger = Ledger.read(layout.ledger(key))
        held = [
            (entry, row)
            for entry in found
            if entry.day is not None or not spec_of(key).daily
            for day in entry.days
            if (row := ledger.get(day)) and row.is_stored_final
        ]
        for entry, row in held:
            ledger.put(after(row, row.day, OtherArchive(entry.etag or _ETAG_UNKNOWN)))
        if held:
            ledger.write(layout.ledger(key))
