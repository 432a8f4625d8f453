"""How results are kept and shown: a table for people, JSON for comparisons over time."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.data import Scale
from benchmarks.measure import median
from market_data_pipeline import __version__

Better = Literal["lower", "higher"]
_PACKAGES = ("dagster", "duckdb", "pyarrow", "pandas", "polars")


@dataclass(frozen=True, slots=True)
class Baseline:
    """What a row is compared with.

    Attributes:
        what: The other way, in a few words.
        runs: Its measurements, in the row's unit.
    """

    what: str
    runs: list[float]


@dataclass(frozen=True, slots=True)
class Row:
    """One thing that was measured.

    Attributes:
        name: Short name, unique.
        what: What was timed, in words.
        unit: Of all its numbers.
        runs: One number for each repetition.
        target: What is to be reached at the full scale; None where there is none.
        better: Whether lower or higher numbers are better.
        baselines: Other ways to do the same, measured in the same run.
        details: Further facts, such as CPU seconds.
        remarks: What could not be measured beside it, and why.
    """

    name: str
    what: str
    unit: str
    runs: list[float]
    target: float | None = None
    better: Better = "lower"
    baselines: list[Baseline] = field(default_factory=list)
    details: dict[str, float] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    @property
    def measured(self) -> float:
        """The median."""
        return median(self.runs)

    @property
    def reached(self) -> bool | None:
        """Whether the target was reached; None where there is none."""
        if self.target is None:
            return None
        return self.measured <= self.target if self.better == "lower" else self.measured >= self.target

    def advantage(self, baseline: Baseline) -> float:
        """How many times better than a baseline."""
        other = median(baseline.runs)
        return other / self.measured if self.better == "lower" else self.measured / other

    def as_json(self) -> dict[str, Any]:
        """Everything, with what follows from it."""
        others = [
            asdict(baseline) | {"measured": median(baseline.runs), "times_better": self.advantage(baseline)}
            for baseline in self.baselines
        ]
        return asdict(self) | {"measured": self.measured, "reached": self.reached, "baselines": others}


def show(rows: list[Row], scale: Scale, console: Console) -> None:
    """Print the table."""
    table = Table(title="market_data_pipeline, measured beside simpler ways", show_lines=True, title_justify="left")
    table.add_column("row", style="bold", no_wrap=True)
    table.add_column("what")
    table.add_column("measured", justify="right")
    table.add_column("target", justify="right")
    table.add_column("baselines of the same run")
    table.add_column("")
    for row in rows:
        verdict = {True: "[green]reached", False: "[red]missed", None: ""}[row.reached if scale.judged else None]
        spread = f"\n[dim]{_number(min(row.runs))}–{_number(max(row.runs))}" if len(row.runs) > 1 else ""
        sign = "≤" if row.better == "lower" else "≥"
        target = "" if row.target is None else f"{sign} {_number(row.target)} {row.unit}"
        compared = [
            f"{baseline.what}: {_number(median(baseline.runs))} {row.unit} ({row.advantage(baseline):.2g}×)"
            for baseline in row.baselines
        ]
        beside = "\n".join([*compared, *(f"[dim]{escape(remark)}[/dim]" for remark in row.remarks)])
        table.add_row(row.name, row.what, f"{_number(row.measured)} {row.unit}{spread}", target, beside, verdict)
    console.print(table)
    console.print(
        "Medians, with the least and the greatest below them; (n×): how many times better than that. The server of the "
        f"archives runs in a process of its own on the same {os.cpu_count()} cores.",
        style="dim",
    )


def save(rows: list[Row], scale: Scale, folder: Path, load_before: float) -> Path:
    """Write the results as JSON.

    Args:
        rows: What was measured.
        scale: How much.
        folder: Where to.
        load_before: The machine's load (one minute) when the run began: other work spoils numbers.

    Returns:
        The file.
    """
    at = datetime.now(UTC)
    document = {
        "at": at.isoformat(timespec="seconds"),
        "version": __version__,
        "machine": {
            "system": platform.platform(),
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "load_before": round(load_before, 2),
            **{name: version(name) for name in _PACKAGES},
        },
        "scale": asdict(scale),
        "rows": [row.as_json() for row in rows],
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{at:%Y-%m-%dT%H%M%S}.json"
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    return path


def _number(value: float) -> str:
    if value >= 1e6:
        return f"{value / 1e6:.2f} M"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
