"""Run the notebooks of ``examples/`` and write their outputs into them: ``python -m tools.notebooks``.

Each runs in a kernel of its own and makes its own data folder. What a test expects of a notebook belongs to
``market_data_pipeline_tests/test_examples.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[1] / "examples"
SECONDS = 300
"""Longest time of one cell."""


def notebooks() -> list[Path]:
    """Return the notebooks, in order."""
    return sorted(EXAMPLES.glob("*.ipynb"))


def read(path: Path) -> Any:
    """Return a notebook as it is stored."""
    return nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]


def executed(path: Path) -> Any:
    """Run a notebook and return it with its new outputs.

    Raises:
        nbclient.exceptions.CellExecutionError: A cell failed.
    """
    notebook = read(path)
    folder = {"metadata": {"path": str(EXAMPLES)}}
    client = NotebookClient(notebook, timeout=SECONDS, kernel_name="python3", resources=folder, coalesce_streams=True)
    client.execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of the run
    return notebook


def kinds(cell: Any) -> list[str]:
    """Return what a cell shows: text of a stream, a table, a picture."""
    return [kind for output in cell.get("outputs", ()) for kind in sorted(output.get("data", {output.output_type: ""}))]


if __name__ == "__main__":
    for one in notebooks():
        nbformat.write(executed(one), one)  # type: ignore[no-untyped-call]
