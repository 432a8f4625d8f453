"""Console output: numbers and tables for people, JSON for programs, and the progress of a backfill.

Columns of a single command do not belong here.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from datetime import time as time_of_day
from pathlib import Path
from typing import Any, TypeVar

import click
from rich import filesize
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from market_data_pipeline.model.outcomes import Action, DayFailure, DayOutcome
from market_data_pipeline.model.series import SeriesKey

logger = logging.getLogger("market_data_pipeline.cli")

_F = TypeVar("_F", bound=Callable[..., Any])

_WIDE = 200
"""Columns of a table that does not go to a screen."""


def out() -> Console:
    """Return the console for results (stdout). It prints brackets as they are, because paths and reasons have some."""
    # Do not cut lines of a file or a pipe to the width of a screen.
    return Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else _WIDE)


def aside() -> Console:
    """Return the console for progress, notes and failures (stderr). The terminal wraps its lines."""
    return Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


def in_bytes(number: float) -> str:
    """Format a size for people, in decimal units.

    >>> in_bytes(512), in_bytes(1_234_567), in_bytes(5.5e9)
    ('512 bytes', '1.2 MB', '5.5 GB')
    """
    return filesize.decimal(round(number))


def counted(number: int, thing: str) -> str:
    """Format a number with its noun.

    >>> counted(1, "day"), counted(12_345, "day")
    ('1 day', '12,345 days')
    """
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def red(text: str) -> Text:
    """Return text in red, for faults."""
    return Text(text, style="red")


def table(title: str, *columns: str, right: Collection[str] = (), fold: str = "") -> Table:
    """Return an empty table without lines. Columns ``right`` are numbers, and ``fold`` is wrapped instead of cut."""
    made = Table(title=title or None, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for name in columns:
        made.add_column(
            name,
            justify="right" if name in right else "left",
            no_wrap=name != fold,
            overflow="fold" if name == fold else "ellipsis",
        )
    return made


json_option = click.option("--json", "as_json", is_flag=True, help="Print a JSON array of flat objects.")


def html_option(text: str) -> Callable[[_F], _F]:
    """Return the option ``--html`` with a help text. It sets ``page`` to the path of a file."""
    return click.option("--html", "page", type=click.Path(dir_okay=False, path_type=Path), help=text)


def print_json(rows: Iterable[Mapping[str, object]]) -> None:
    """Print a JSON array to stdout, with an object on each line.

    Days and times are in ISO 8601. NaN and infinity are null, because JSON does not know them.
    """
    before = "[\n"
    for row in rows:
        click.echo(f"{before}  {json.dumps(_plain(row), ensure_ascii=False)}", nl=False)
        before = ",\n"
    click.echo("[]" if before == "[\n" else "\n]")


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(_plain(name)): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, date | time_of_day):
        return value.isoformat()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)


ProgressBar = Callable[..., None]
"""Advances a progress bar by a number of things, and shows the current work and its rate."""


@contextmanager
def progress_bar(total: int, things: str, doing: str, console: Console) -> Iterator[ProgressBar]:
    """Show a bar with the number of things done and the time left, if the console is a terminal.

    ``things`` is their noun, e.g. ``days``, and ``doing`` the first work.
    """
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn(things),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(doing, total=total, rate="")
        yield lambda number, doing=None, rate="": progress.update(task, advance=number, description=doing, rate=rate)


@dataclass
class Tally:
    """Results of one series so far."""

    days: int
    actions: Counter[Action] = field(default_factory=Counter)
    failed: int = 0
    rows: int = 0
    downloaded: int = 0
    seconds: float = 0.0

    @property
    def done(self) -> int:
        """Days that are done, for good or ill."""
        return self.failed + sum(self.actions.values())

    def line(self, key: SeriesKey) -> str:
        """Return the log line of the series."""
        words = {
            Action.HELD: "stored before",
            Action.FETCHED: "fetched",
            Action.EXTENDED: "resumed",
            Action.EMPTY: "empty",
            Action.NOT_LISTED: "not listed",
        }
        parts = [f"{self.actions[action]:,} {word}" for action, word in words.items() if self.actions[action]]
        parts += [f"{self.failed:,} failed"] if self.failed else []
        return (
            f"{key}: {counted(self.days, 'day')}, {', '.join(parts) or 'none done'}; "
            f"{counted(self.rows, 'row')}, {in_bytes(self.downloaded)} downloaded, {self.seconds:.1f} s"
        )


class Watch:
    """Receive the result of each day, advance the bar, and log a line when a series is done."""

    def __init__(self, wanted: Mapping[SeriesKey, Sequence[date]], bar: ProgressBar) -> None:
        self.tallies = {key: Tally(len(days)) for key, days in wanted.items()}
        self.failures: list[DayFailure] = []
        self.rows = 0
        self._bar = bar
        self._began = self._series_began = time.monotonic()

    def __call__(self, result: DayOutcome | DayFailure) -> None:
        """Take in the result of one day."""
        tally = self.tallies.setdefault(result.key, Tally(1))
        tally.downloaded += result.downloaded
        if isinstance(result, DayFailure):
            self.failures.append(result)
            tally.failed += 1
        else:
            tally.actions[result.action] += 1
            if result.action in (Action.FETCHED, Action.EXTENDED):
                self.rows += result.row.rows
                tally.rows += result.row.rows
        now = time.monotonic()
        self._bar(1, result.key.short, rate=f"{self.rows / max(now - self._began, 1e-3):,.0f} rows/s")
        if tally.done == tally.days:
            tally.seconds = now - self._series_began
            self._series_began = now
            logger.info(tally.line(result.key))


class _OnConsole(logging.Handler):
    """Print log lines. Of warnings with the same text but for its values, print the first, and count the others."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.INFO)
        self._console = console
        self.repeated: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        if record.args:
            self.repeated[record.msg] += 1
        if not record.args or self.repeated[record.msg] == 1:
            self._console.print(Text(record.getMessage()))

    def tell_repeated(self) -> None:
        for template, number in self.repeated.items():
            if number > 1:
                text = template.replace("%s", "…").strip("…: ")
                self._console.print(f"{counted(number - 1, 'more warning')} like this: {text}.")


@contextmanager
def watching(wanted: Mapping[SeriesKey, Sequence[date]], console: Console) -> Iterator[Watch]:
    """Show a bar with days, rows per second and time left during a fetch. Yield the receiver of its results."""
    handler = _OnConsole(console)
    package = logging.getLogger("market_data_pipeline")
    level, propagate = logger.level, package.propagate
    package.addHandler(handler)
    package.propagate = False
    logger.setLevel(logging.INFO)
    try:
        with progress_bar(sum(map(len, wanted.values())), "days", "starting", console) as bar:
            yield Watch(wanted, bar)
    finally:
        handler.tell_repeated()
        package.removeHandler(handler)
        package.propagate = propagate
        logger.setLevel(level)
