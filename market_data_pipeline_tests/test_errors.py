"""The public errors: one tree, drawn in ``errors.py`` and exported by the package."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator

import market_data_pipeline
from market_data_pipeline import clock, errors
from market_data_pipeline.errors import ChecksumError, GapError, GapWarning, MarketDataError
from market_data_pipeline.model.provenance import ChecksumStatus
from market_data_pipeline.sources.binance.archive import ArchiveFile


def tree(error: type[Exception], depth: int = 0) -> Iterator[tuple[int, str]]:
    """Yield the errors of the module below one, with their depth."""
    yield depth, error.__name__
    for below in error.__subclasses__():
        if below.__module__ == errors.__name__:
            yield from tree(below, depth + 1)


def drawn() -> list[tuple[int, str]]:
    """Return the drawing in the module's docstring, as depths and names."""
    lines = re.findall(r"^    ([│├└─ ]*)(\w+Error)$", errors.__doc__ or "", re.MULTILINE)
    return [(len(branch) // 4, name) for branch, name in lines]


def paths(nodes: Iterator[tuple[int, str]] | list[tuple[int, str]]) -> set[tuple[str, ...]]:
    """Return each node with the names above it, so that the order of siblings does not count."""
    found: set[tuple[str, ...]] = set()
    above: list[str] = []
    for depth, name in nodes:
        above = [*above[:depth], name]
        found.add(tuple(above))
    return found


def test_the_drawing_is_the_tree_of_classes() -> None:
    assert len(drawn()) == len(paths(drawn()))
    assert paths(drawn()) == paths(tree(MarketDataError))


def test_the_package_exports_the_whole_tree() -> None:
    names = {name for _, name in tree(MarketDataError)} | {GapWarning.__name__}
    assert set(errors.__all__) == names
    assert set(market_data_pipeline.__all__) == names | {"MarketData"}
    assert all(getattr(market_data_pipeline, name) is getattr(errors, name) for name in names)


def test_every_public_error_of_the_package_is_in_the_tree() -> None:
    """Errors outside of ``errors.py`` are private to their module: none is a MarketDataError."""

    def below(error: type[Exception]) -> Iterator[type[Exception]]:
        for one in error.__subclasses__():
            yield one
            yield from below(one)

    ours = [one for one in below(MarketDataError) if one.__module__.startswith("market_data_pipeline.")]
    assert {one.__module__ for one in ours} == {errors.__name__}


def test_errors_with_attributes_can_be_pickled() -> None:
    """A pool of processes sends them from one to another."""
    gap = pickle.loads(pickle.dumps(GapError("The request has 1 gap", [])))
    assert (str(gap), gap.gaps) == ("The request has 1 gap", ())
    file = ArchiveFile("https://archive.example/a.zip", b"", "ab", None, None, ChecksumStatus.VERIFIED, clock.now())
    error = pickle.loads(pickle.dumps(ChecksumError("It does not match", file, "cd")))
    assert (str(error), error.file, error.published_sha256) == ("It does not match", file, "cd")
