"""The documentation as tests read it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).parents[2]
DOCS = PROJECT / "docs"

RUNNABLE = frozenset({"bash", "console", "python", "sql"})
"""Languages of blocks that tests run."""

_BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^\n]+) -->\n)?```(?P<language>[^\n]*)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class Block:
    """A code block of a page.

    Attributes:
        page: The page's path in the project.
        line: The number of its first line of code.
        language: The word after the backquotes; empty if there is none.
        code: The code.
        reason: Why tests do not run it, from a comment ``<!-- not run: … -->`` on the line above; None if they do.
        output: The block ``text`` that follows after at most one paragraph; None if there is none.
    """

    page: str
    line: int
    language: str
    code: str
    reason: str | None
    output: str | None

    @property
    def runs(self) -> bool:
        """True if tests run it."""
        return self.language in RUNNABLE and self.reason is None


def pages() -> list[Path]:
    """Return all pages of the documentation, those of the root among them."""
    found = [path for folder in (PROJECT, PROJECT / "data", PROJECT / "examples") for path in folder.glob("*.md")]
    return sorted([*found, *DOCS.rglob("*.md")])


def blocks(page: Path) -> list[Block]:
    """Return all code blocks of a page, in order."""
    text = page.read_text("utf-8")
    found = list(_BLOCK.finditer(text))
    blocks = []
    for one, following in zip(found, [*found, None][1:], strict=True):
        shown = following and following["language"] == "text" and text[one.end() : following.start()].count("\n\n") <= 2
        blocks.append(
            Block(
                page=page.relative_to(PROJECT).as_posix(),
                line=text.count("\n", 0, one.start("code")) + 1,
                language=one["language"],
                code=one["code"],
                reason=one["reason"],
                output=following["code"] if following and shown else None,
            )
        )
    return blocks


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
