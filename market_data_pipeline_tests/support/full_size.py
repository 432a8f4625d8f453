"""Two sizes of tests: the one that every run has, and a bigger one to try now and then."""

from __future__ import annotations

import os
from typing import TypeVar

_T = TypeVar("_T")

FULL_SIZE = "FULL_SIZE"
"""Name of the environment variable that asks for the bigger size."""


def sized(usual: _T, full: _T) -> _T:
    """Return one of two sizes, such as numbers of random examples."""
    return full if os.environ.get(FULL_SIZE) else usual
