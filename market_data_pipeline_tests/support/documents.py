"""The documentation as tests read it."""

from __future__ import annotations

import re
from pathlib import Path

PROJECT = Path(__file__).parents[2]
DOCS = PROJECT / "docs"


def blocks_of(page: Path, language: str, after: str = "") -> list[str]:
    """Return the code blocks of a language on a page, those after a heading if one is named."""
    text = page.read_text("utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text[text.index(after) :], re.DOTALL | re.MULTILINE)


def query_by_hand() -> str:
    """Return the query that reads the files of the lake without the package."""
    return blocks_of(DOCS / "reference" / "layout.md", "sql", after="## Read the files yourself")[0]


def first_cells(page: Path, after: str = "") -> set[str]:
    """Return the words in code in the first column of the tables of a page, from a heading to the next one."""
    text = page.read_text("utf-8")
    section = text[text.index(after) :] if after else text
    section = section[: section.find("\n## ", 1)] if after and "\n## " in section[1:] else section
    rows = [line.split(" | ")[0] for line in section.splitlines() if line.startswith("| `")]
    return {word for row in rows for word in re.findall(r"`([^`]+)`", row)}
