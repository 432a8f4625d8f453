"""``constraints.txt``: what ``make`` installs, each file by its hash."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parents[1]
TEXT = (PROJECT / "constraints.txt").read_text("utf-8")
PINNED = re.compile(
    r"^([A-Za-z0-9_.-]+)==(\S+)(?: ; [^\\\n]+)? \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", re.MULTILINE
)


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_requirement_has_a_version_and_hashes() -> None:
    rest = PINNED.sub("", TEXT)
    assert [line for line in rest.splitlines() if not line.startswith("#")] == []
    assert "://" not in TEXT  # no index of somebody's own


def test_every_dependency_and_what_builds_the_package_is_pinned() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text("utf-8"))
    wanted = project["project"]["dependencies"] + project["project"]["optional-dependencies"]["dev"]
    names = {plain(re.split(r"[^A-Za-z0-9_.-]", one)[0]) for one in wanted + project["build-system"]["requires"]}
    assert names <= {plain(found[1]) for found in PINNED.finditer(TEXT)}


def test_make_installs_by_hash() -> None:
    makefile = (PROJECT / "Makefile").read_text("utf-8")
    installs = [line for line in makefile.splitlines() if "$(BIN)/python -m pip install" in line]
    assert [("--require-hashes" in line, "--no-deps" in line) for line in installs] == [(True, True), (False, True)]
