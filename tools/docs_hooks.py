"""mkdocs hooks: fill in what other files say, so that no page repeats it.

A line ``<!-- settings -->`` becomes the table of settings, ``<!-- lifecycle -->`` the life of a day,
``<!-- routes -->`` the routes of the server.
A line ``<!-- file: NAME.md -->`` becomes that file of the project's root; its links to ``docs/`` are made relative to
the page.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from tools import lifecycle_reference, routes_reference, settings_reference

if TYPE_CHECKING:
    from mkdocs.structure.pages import Page

PROJECT = Path(__file__).parents[1]

GENERATED = {
    "<!-- settings -->": settings_reference.as_markdown,
    "<!-- lifecycle -->": lifecycle_reference.as_markdown,
    "<!-- routes -->": routes_reference.as_markdown,
}
"""Lines of pages, and what they become."""


def on_page_markdown(markdown: str, *, page: Page, **_: object) -> str:
    """Return the page with its markers replaced."""
    up = "../" * page.file.src_uri.count("/")
    for marker, as_markdown in GENERATED.items():
        markdown = "\n".join(as_markdown() if line == marker else line for line in markdown.split("\n"))
    return re.sub(r"^<!-- file: (\w+\.md) -->$", lambda found: _file(found[1], up), markdown, flags=re.MULTILINE)


def _file(name: str, up: str) -> str:
    text = (PROJECT / name).read_text("utf-8").replace("](docs/", f"]({up}")
    pages = {"ARCHITECTURE.md": "development/architecture.md", "CONTRIBUTING.md": "development/contributing.md"}
    for root, page in pages.items():
        text = text.replace(f"]({root}", f"]({up}{page}")
    return text
