"""``constraints.txt`` and ``constraints-dev.txt``: what ``make`` installs, each file by its hash."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
RUN, DEV = (PROJECT / name for name in ("constraints.txt", "constraints-dev.txt"))
PINNED = re.compile(
    r"^([A-Za-z0-9_.-]+)==(\S+)((?: ; [^\\\n]+)?) \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", re.MULTILINE
)
DECLARED = tomllib.loads((PROJECT / "pyproject.toml").read_text("utf-8"))
NEEDED = DECLARED["project"]["dependencies"] + DECLARED["build-system"]["requires"]
EXTRAS = DECLARED["project"]["optional-dependencies"]


def names(requirements: list[str]) -> set[str]:
    """Return the names of requirements, as PyPI compares them."""
    return {re.sub(r"[-_.]+", "-", re.split(r"[^A-Za-z0-9_.-]", one)[0]).lower() for one in requirements}


def pinned(path: Path) -> dict[str, tuple[str, str]]:
    """Return each pinned name with its version and its hashes."""
    return {found[1]: (found[2], found[4]) for found in PINNED.finditer(path.read_text("utf-8"))}


def dry_run(*targets: str) -> str:
    """Return the commands that make would run in a fresh clone."""
    made = ["make", "--dry-run", "--always-make", *targets]
    return subprocess.run(made, cwd=PROJECT, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("path", [RUN, DEV], ids=lambda path: path.name)
def test_every_requirement_has_a_version_and_hashes(path: Path) -> None:
    text = path.read_text("utf-8")
    assert [line for line in PINNED.sub("", text).splitlines() if not line.startswith("#")] == []
    assert "://" not in text  # no index of somebody's own


def test_everything_declared_is_pinned() -> None:
    assert names(NEEDED) <= set(pinned(RUN))
    assert names(NEEDED + EXTRAS["dev"] + EXTRAS["docs"]) <= set(pinned(DEV))


def test_users_and_developers_run_the_same_versions() -> None:
    assert pinned(RUN).items() <= pinned(DEV).items()


def test_users_get_no_tool_of_development() -> None:
    tools = names(EXTRAS["dev"] + EXTRAS["docs"]) - names(NEEDED)
    assert {"pytest", "ruff", "mypy", "mkdocs"} <= tools
    come_with_others = {"alembic", "psutil", "typing-extensions"}  # psutil on Windows only
    assert tools & set(pinned(RUN)) == come_with_others


@pytest.mark.parametrize("target", ["install", "demo", "dev"])
def test_targets_for_users_install_what_runs(target: str) -> None:
    """Each also prints in one line what it installs."""
    commands = dry_run(target)
    assert commands.count("--require-hashes --no-deps --requirement constraints.txt\n") == 1
    assert "constraints-dev.txt" not in commands
    assert [line for line in commands.splitlines() if "echo" in line and "constraints.txt" in line]


@pytest.mark.parametrize("target", ["test", "lint", "docs", "bench"])
def test_targets_for_developers_add_their_tools(target: str) -> None:
    commands = dry_run(target)
    assert commands.count("--require-hashes --no-deps --requirement constraints.txt\n") == 1
    assert commands.count("--require-hashes --no-deps --requirement constraints-dev.txt\n") == 1
    assert [line for line in commands.splitlines() if "echo" in line and "constraints-dev.txt" in line]
