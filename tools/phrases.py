"""Count words that are not part of our voice in documentation, docstrings, comments and messages.

``python -m tools.phrases`` fails if a file has more of them than ``tools/phrases.txt`` allows. ``--update`` lowers the
numbers to today's; it refuses to raise their sum, so text may move between files. ``--show PATH…`` lists each place.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PROJECT = Path(__file__).parents[1]
ALLOWED = Path(__file__).with_name("phrases.txt")
MARKDOWN = ("*.md", "docs/**/*.md", "data/*.md", "examples/*.md", ".github/**/*.md")
PYTHON = ("market_data_pipeline/**/*.py",)

PHRASES = {
    "fetch, download, ingest": r"bring|brings|bringing|brought|ask(?:s|ed|ing)? for|obtain(?:s|ed)?",
    "store, write, the lake has": r"puts?|putting|keeps?|keeping|kept|holds?|holding|lays?|laid",
    "stored, final": r"held",
    "missing": r"lacks?|lacked|lacking|(?:is|are|was|were) not there",
    "gap-filled from REST": r"healed by row",
    "verify": r"prov(?:e|es|ed|en|ing)",
    "report, log, print": r"tells?|telling|told|says?|saying|said",
    "classify": r"judg(?:e|es|ed|ing)",
    "retry, backoff, stale, duplicate, slot": r"pauses that grow|midnight that is met|anew|beside|lest|stands?|stood"
    r"|whoever|of which|save (?:for|that|what|those|one)",
    "if, when": r"where (?:there|nothing|nobody|somebody|something|one|no|none|that|all)",
    "because": r"(?<=, )as (?:it|they|there|this|that|no|nothing|these|those)",
}
"""The word to write, and the words to replace."""

FIRST_WORDS = {"What", "Whether", "Which", "How", "Who", "That", "Those", "Of"}
"""No docstring starts with one of these."""

_PHRASES = re.compile(r"\b(?:" + "|".join(f"(?:{words})" for words in PHRASES.values()) + r")\b", re.IGNORECASE)
_CODE = re.compile(r"```.*?^ *```|``[^`]+``|`[^`\n]+`|\]\([^)]*\)", re.DOTALL | re.MULTILINE)
"""Code, and the targets of links."""


class Place(NamedTuple):
    """One word in one line."""

    line: int
    word: str


def in_text(text: str, first_line: int = 1) -> Iterator[Place]:
    """Yield the phrases of a text, outside of code."""
    plain = _CODE.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), text)
    for found in _PHRASES.finditer(plain):
        yield Place(first_line + plain.count("\n", 0, found.start()), found[0])


def in_python(source: str) -> Iterator[Place]:
    """Yield the phrases of docstrings, comments and messages. A string without a space is a name, and SQL is code."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and _is_prose(node.value):
            yield from in_text(node.value, node.lineno)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            words = (ast.get_docstring(node) or "").split(maxsplit=1)
            if words and words[0] in FIRST_WORDS:
                yield Place(node.body[0].lineno, f"{words[0]} … (first word)")
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield from in_text(token.string, token.start[0])


def _is_prose(text: str) -> bool:
    return " " in text.strip() and not re.search(r"\b(?:SELECT|CREATE|INSERT|PRAGMA|FROM)\b", text)


def counted() -> dict[str, list[Place]]:
    """Return the places of each file that has any, by its path in the project."""
    found = {}
    for patterns, read in ((MARKDOWN, in_text), (PYTHON, in_python)):
        for path in sorted({path for pattern in patterns for path in PROJECT.glob(pattern)}):
            if places := sorted(read(path.read_text("utf-8"))):
                found[path.relative_to(PROJECT).as_posix()] = places
    return dict(sorted(found.items()))


def allowed() -> dict[str, int]:
    """Return how many phrases each file may have."""
    lines = ALLOWED.read_text("utf-8").splitlines() if ALLOWED.exists() else []
    return {path: int(number) for number, path in (line.split(maxsplit=1) for line in lines)}


def main() -> int:
    """Compare, or update, the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--update", action="store_true", help="lower the allowed numbers to today's")
    parser.add_argument("--show", nargs="*", metavar="PATH", help="list each place, in all files or in some")
    options = parser.parse_args()
    found, most = counted(), allowed()
    if options.show is not None:
        for path, places in found.items():
            for place in places if not options.show or path in options.show else ():
                print(f"{path}:{place.line}: {place.word}")
        return 0
    total, limit = sum(map(len, found.values())), sum(most.values())
    if options.update:
        if most and total > limit:
            print(f"{total} phrases, and {limit} are allowed. The sum may only go down.")
            return 1
        ALLOWED.write_text("".join(f"{len(places)} {path}\n" for path, places in found.items()), "utf-8")
        print(f"{total} phrases are allowed now, {limit} were.")
        return 0
    worse = [path for path, places in found.items() if len(places) > most.get(path, 0)]
    for path in worse:
        print(
            f"{path}: {len(found[path])} phrases, {most.get(path, 0)} are allowed. See the words in tools/phrases.py;"
        )
        print(f"  `python -m tools.phrases --show {path}` lists the places.")
    if not worse and total < limit:
        print(f"{total} phrases, {limit} are allowed. Run `python -m tools.phrases --update`.")
    return bool(worse)


if __name__ == "__main__":
    sys.exit(main())
