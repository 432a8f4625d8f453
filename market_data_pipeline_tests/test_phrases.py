"""The count of words that are not part of our voice: in prose, not in code."""

from __future__ import annotations

from tools.phrases import in_python, in_text


def test_phrases_are_found_in_prose_with_their_line() -> None:
    assert list(in_text("Nothing here.\nDays that are held, and days that it brings.")) == [(2, "held"), (2, "brings")]


def test_code_and_links_are_left_out() -> None:
    assert list(in_text("`held` and [a page](held.md).\n\n```\nkeep it\n```\nkept")) == [(6, "kept")]


def test_prose_in_python_counts_but_names_and_sql_do_not() -> None:
    """Docstrings, comments and messages are prose."""
    source = '''"""Whether it is told."""
HELD = "held"
QUERY = "SELECT kept FROM held"
raise ValueError(f"{HELD} is not there")  # nobody says so
'''
    found = [(1, "Whether … (first word)"), (1, "told"), (4, "is not there"), (4, "says")]
    assert sorted(in_python(source)) == found
