"""The names: those of tests are short, and no public name of the package has two meanings."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

import market_data_pipeline
import market_data_pipeline_tests

PACKAGE = Path(market_data_pipeline.__file__).parent
TESTS = Path(market_data_pipeline_tests.__file__).parent

MOST_CHARACTERS = 60
OWN = {"logger"}
"""Names that each module has for itself: logging asks for a logger per module, and nobody imports another's."""


def names_of_tests(path: Path) -> list[str]:
    tree = ast.parse(path.read_text("utf-8"))
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return [function.name for function in functions if function.name.startswith("test_")]


def public_names(statements: Iterable[ast.stmt]) -> Iterator[str]:
    """Yield the public functions, classes and constants that a module defines. Imported names are defined elsewhere."""
    for node in statements:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                names = [name]
            case ast.Assign() | ast.AnnAssign() | ast.AugAssign():
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                stored = (one for target in targets for one in ast.walk(target) if isinstance(one, ast.Name))
                names = [one.id for one in stored if isinstance(one.ctx, ast.Store)]
            case ast.If() | ast.Try() | ast.With():
                inner = [*node.body, *getattr(node, "orelse", []), *getattr(node, "finalbody", [])]
                handled = [one for handler in getattr(node, "handlers", []) for one in handler.body]
                names = list(public_names([*inner, *handled]))
            case _:
                names = []
        yield from (name for name in names if not name.startswith("_") and name not in OWN)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("def read(): ...\nasync def fetch(): ...\nclass Day: ...", ["read", "fetch", "Day"]),
        ("FIRST, (SECOND, *REST) = 1, (2, 3)\nTHIRD: int = 3", ["FIRST", "SECOND", "REST", "THIRD"]),
        (
            "if True:\n    A = 1\nelse:\n    B = 1\ntry:\n    C = 1\nexcept ImportError:\n    D = 1",
            ["A", "B", "C", "D"],
        ),
        ("import os\nfrom os import path as p\n_own = 1\nlogger = 2\nos.name = x[KEY] = 3\nfor i in (): pass", []),
        ("class Day:\n    LONG = 1\n    def read(self): INNER = 2", ["Day"]),
    ],
)
def test_public_names_are_the_definitions_of_a_module(source: str, found: list[str]) -> None:
    assert list(public_names(ast.parse(source).body)) == found


def test_test_names_have_at_most_60_characters() -> None:
    names = [(path, name) for path in sorted(TESTS.rglob("test_*.py")) for name in names_of_tests(path)]
    assert (Path(__file__), "test_test_names_have_at_most_60_characters") in names
    long = [f"{path.relative_to(TESTS)}: {name}" for path, name in names if len(name) > MOST_CHARACTERS]
    assert long == [], "shorten them, and write the story into the docstring"


def test_no_public_name_is_defined_in_two_modules() -> None:
    """The sandbox counts, too: a reader who searches for a name finds one meaning."""
    modules: defaultdict[str, set[str]] = defaultdict(set)
    for path in sorted(PACKAGE.rglob("*.py")):
        for name in public_names(ast.parse(path.read_text("utf-8")).body):
            modules[name].add(path.relative_to(PACKAGE).as_posix())
    assert modules["MarketData"] == {"client/market_data.py"}
    twice = {name: sorted(found) for name, found in modules.items() if len(found) > 1}
    assert twice == {}, "rename one, make it private, or delete the twin"
