"""``market-data import``: files of older caches into the lake, and back. The work belongs to ``imports``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from market_data_pipeline.cli.console import aside, counted, json_option, out, print_json, red, table
from market_data_pipeline.cli.summary import ExitCode, end
from market_data_pipeline.errors import UsageError
from market_data_pipeline.imports.layouts import OldLayout
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.model.series import Market, is_symbol
from market_data_pipeline.settings import load_settings
from market_data_pipeline.universe.config import listings_near

if TYPE_CHECKING:
    from market_data_pipeline.imports.run import FileReport, ImportReport

_SHOWN_FILES = 20
"""Maximum number of files that a list names."""


@click.command("import")
@click.argument("folder", metavar="[DIR]", required=False, type=click.Path(path_type=Path))
@click.option(
    "--layout",
    "form",
    type=click.Choice(["auto", *(one.value for one in OldLayout)]),
    default="auto",
    show_default=True,
    help="Read files of this layout only.",
)
@click.option(
    "--market", type=click.Choice([one.value for one in Market]), help="Market of files whose path names none."
)
@click.option("--symbol", help="Symbol of files whose path names none.")
@click.option("--dry-run", is_flag=True, help="Read and check all files, but store nothing.")
@click.option("--undo", metavar="ID", help="Remove the days that an import stored and nothing replaced since.")
@json_option
def import_command(
    folder: Path | None,
    form: str,
    market: str | None,
    symbol: str | None,
    dry_run: bool,
    undo: str | None,
    as_json: bool,
) -> None:
    """Store the files of an older cache.

    The files in DIR become days of the lake. Nothing in DIR is changed.

    Zips of the archive become final if their checksum is still the published one, which takes one small request each.
    Other rows become provisional days with the source `import`, until `sync` fetches their archive. A day that the lake
    has is compared and stays, unless it is provisional and its zip makes it final. Candles without quote volume and
    counts are compared, and not loaded. A second run changes nothing.

    --market and --symbol also select: files of other markets and symbols are left out.

    The journal is imports/ID.json below the data folder. Exit codes: 0 all files were imported, compared or known, 1
    some were refused, 2 the request is invalid.

      market-data import ~/old-cache --market spot --dry-run
      market-data import ~/old-cache --market spot
      market-data import --undo 20240601T120000
    """
    settings = load_settings()
    layout = Layout(settings.root)
    if (folder is None) == (undo is None):
        raise UsageError("Name the folder of an older cache, or pass --undo with the name of an import, not both.")
    if undo is not None:
        _undo(layout, undo, settings.lock_wait_seconds, as_json)
        return
    if folder is None:  # for the type checker
        return
    from market_data_pipeline.imports.old_files import Selected
    from market_data_pipeline.imports.run import FileState, import_folder

    if symbol is not None and not is_symbol(symbol):
        raise UsageError(f"{symbol!r} cannot be a symbol.")
    selected = Selected(None if form == "auto" else OldLayout(form), None if market is None else Market(market), symbol)
    report = import_folder(
        folder,
        selected,
        layout=layout,
        settings=settings,
        listings=listings_near(settings.universe),
        dry_run=dry_run,
    )
    if as_json:
        print_json(_objects(report))
    else:
        _print(report)
    end(ExitCode.of(all(one.state is not FileState.REFUSED for one in report.files)))


_KEYS = (
    *("import", "path", "layout", "series", "state", "rows", "final", "provisional", "known"),
    *("compared", "differing", "only_cache", "only_lake", "example", "reason", "notes"),
)
"""Keys of an object of JSON, in order."""


def _objects(report: ImportReport) -> Iterator[dict[str, object]]:
    """Yield a flat object for each file, and for each path that was left out."""
    for one in report.files:
        found = one.compared
        yield {
            "import": report.identity,
            "path": one.path,
            "layout": one.layout.value,
            "series": one.series or None,
            "state": one.state.value,
            "rows": one.rows,
            "final": one.final,
            "provisional": one.provisional,
            "known": one.known,
            "compared": found.rows,
            "differing": found.different,
            "only_cache": found.only_old,
            "only_lake": found.only_lake,
            "example": found.example or None,
            "reason": one.reason or None,
            "notes": " ".join(one.notes) or None,
        }
    for path in report.left_out:
        facts = {"import": report.identity, "path": path.path, "state": "skipped", "reason": path.reason}
        yield {name: facts.get(name) for name in _KEYS}


def _undo(layout: Layout, identity: str, wait_seconds: float, as_json: bool) -> None:
    from market_data_pipeline.imports.undo import undo_import

    done = undo_import(layout, identity, wait_seconds)
    if as_json:
        print_json([{"import": identity, "removed": done.removed, "stay": sum(map(len, done.stay.values()))}])
        return
    out().print(f"{counted(done.removed, 'day')} of import {identity} removed.")
    if done.stay:
        number = counted(sum(map(len, done.stay.values())), "day")
        out().print(f"{number} stay, because they were replaced since:", soft_wrap=True)
        for series, days in done.stay.items():
            out().print(f"  {series} {days[0]} to {days[-1]}", soft_wrap=True)


def _print(report: ImportReport) -> None:
    numbers = ("files", "final", "provisional", "known", "rows", "differing")
    title = f"{'Would import' if report.dry_run else 'Imported'} from {report.folder}"
    shown = table(title, "series", "layout", "result", *numbers, right=numbers)
    groups: dict[tuple[str, str, str], list[FileReport]] = {}
    for one in report.files:
        groups.setdefault((one.series, one.layout, one.state), []).append(one)
    for (series, layout, state), files in sorted(groups.items()):
        differing = sum(one.compared.different for one in files)
        sums = (sum(getattr(one, name) for one in files) for name in ("final", "provisional", "known", "rows"))
        counts = [f"{number:,}" for number in (len(files), *sums)]
        shown.add_row(
            series.partition("/")[2] or "?",
            layout,
            red(state) if state == "refused" else state,
            *counts,
            red(f"{differing:,}") if differing else "0",
        )
    if groups:
        out().print(shown)
    else:
        aside().print(f"No file below {report.folder} has a known layout.", soft_wrap=True)
    _print_remarks(report)
    if report.identity is not None:
        out().print(f"`market-data import --undo {report.identity}` undoes it.", soft_wrap=True)


def _print_remarks(report: ImportReport) -> None:
    """Print the reasons of refusals, remarks and examples of differences to standard error, the first ones of each."""
    remarks = [f"{one.path} is refused: {one.reason}" for one in report.files if one.reason]
    remarks += [f"{one.path}: {note}" for one in report.files for note in one.notes if note != one.reason]
    remarks += [f"{one.path} differs: {one.compared.example}." for one in report.files if one.compared.example]
    for text in remarks[:_SHOWN_FILES]:
        aside().print(text, soft_wrap=True, markup=False)
    if (more := len(remarks) - _SHOWN_FILES) > 0:
        aside().print(f"{more:,} more remarks: --json prints all.")
    for reason, number in Counter(one.reason for one in report.left_out).items():
        aside().print(f"{counted(number, 'path')} left out: {reason}.", markup=False)
