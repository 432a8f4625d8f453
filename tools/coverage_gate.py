"""pytest plugin: measure which lines of the package run, in all test processes, and fail below a percentage.

``pytest -p tools.coverage_gate --coverage-at-least 95``. SlipCover instruments each line once and then leaves it alone,
so a run takes 10 to 15 % longer on Python 3.11, where a tracer takes 40 to 55 % longer. Processes that tests start are
not measured.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
import slipcover

PACKAGE = "market_data_pipeline"
SHOWN = 10

_measuring = slipcover.Slipcover(source=[PACKAGE], exclude_also=[r"^\s*\.\.\.$", "@abstractmethod"])
_imports = slipcover.ImportManager(_measuring, slipcover.FileMatcher(sources=[PACKAGE]))
_imports.__enter__()  # before any conftest imports the package
_of_workers: list[dict[str, Any]] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the limit."""
    parser.addoption(
        "--coverage-at-least", type=float, default=0.0, help="fail if less of the package's lines ran, in %%"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Receive the results of worker processes, if there are any."""
    if config.pluginmanager.has_plugin("xdist"):
        config.pluginmanager.register(_Workers())


class _Workers:
    def pytest_testnodedown(self, node: Any) -> None:
        """Take a worker's result when it ends."""
        if result := getattr(node, "workeroutput", {}).get("coverage"):
            _of_workers.append(json.loads(result))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand the result to the main process, or compare it with the limit there."""
    measured: dict[str, Any] = _measuring.get_coverage()
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["coverage"] = json.dumps(measured)
        return
    for other in _of_workers:
        slipcover.merge_coverage(measured, other)
    session.config.stash[_MEASURED] = measured
    if _percent(measured) < session.config.getoption("--coverage-at-least") and not session.exitstatus:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


_MEASURED = pytest.StashKey[dict[str, Any]]()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the percentage, and below the limit the files with most missing lines."""
    measured, least = config.stash[_MEASURED], config.getoption("--coverage-at-least")
    percent = _percent(measured)
    terminalreporter.write_line(f"{percent:.1f} % of the lines of {PACKAGE} ran; at least {least:g} % must.")
    if percent < least:
        missing = {name: file["missing_lines"] for name, file in measured["files"].items()}
        for name, lines in sorted(missing.items(), key=lambda one: -len(one[1]))[:SHOWN]:
            terminalreporter.write_line(f"{len(lines):5} {name}: {', '.join(map(str, lines[:20]))}")


def _percent(measured: dict[str, Any]) -> float:
    ran = sum(len(file["executed_lines"]) for file in measured["files"].values())
    return 100 * ran / max(1, ran + sum(len(file["missing_lines"]) for file in measured["files"].values()))
