"""The notebooks of ``examples/``: each runs offline, without an error, and shows what its stored outputs show."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.notebooks import executed, kinds, notebooks, read

MOST_BYTES = 200_000
NOTEBOOKS = notebooks()


def named(path: Path) -> str:
    return path.stem


def test_readme_lists_every_notebook() -> None:
    text = NOTEBOOKS[0].with_name("README.md").read_text("utf-8")
    assert len(NOTEBOOKS) >= 2
    assert [path.name for path in NOTEBOOKS if f"]({path.name})" not in text] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=named)
def test_stored_outputs_are_complete_and_small(path: Path) -> None:
    """After a change, run ``python -m tools.notebooks``."""
    code = [cell for cell in read(path).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    shown = {kind for cell in code for kind in kinds(cell)}
    assert {"stream", "text/html", "image/png"} <= shown
    assert "error" not in shown
    assert path.stat().st_size <= MOST_BYTES


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=named)
def test_notebook_runs_and_shows_the_same_kinds(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # nothing but loopback can be reached
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    stored = [kinds(cell) for cell in read(path).cells]
    assert [kinds(cell) for cell in executed(path).cells] == stored
