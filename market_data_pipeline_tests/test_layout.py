"""The layout: every module lies in a room, and the tests mirror the package. ``make lint`` checks who imports whom."""

from __future__ import annotations

from pathlib import Path

import market_data_pipeline
import market_data_pipeline_tests

PACKAGE = Path(market_data_pipeline.__file__).parent
TESTS = Path(market_data_pipeline_tests.__file__).parent

TOP = {"__init__", "clock", "definitions", "errors", "hosts", "settings"}
ROOMS = {
    *("model", "universe", "sources", "checks", "lake", "sql", "ingest", "live"),
    *("maintenance", "reconciliation", "coverage", "derived", "defs"),
    *("client", "export", "iceberg", "imports", "mcp_server", "server", "stores", "cli", "sandbox", "team"),
}


def folders(root: Path) -> set[str]:
    return {path.parent.relative_to(root).as_posix() for path in root.rglob("*.py")} - {"."}


def test_every_module_lies_in_a_room() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} == TOP
    assert {folder.split("/")[0] for folder in folders(PACKAGE)} == ROOMS


def test_tests_mirror_the_package() -> None:
    assert folders(TESTS) - folders(PACKAGE) == {
        "support",
        "support/quick_daemon",
        "integration",
        "releases",
        "clients",
    }
