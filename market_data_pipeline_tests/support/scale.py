"""Sizes of the examples that cost most: small by default, and as big as is worth having now and then on request."""

from __future__ import annotations

import os
from typing import TypeVar

_T = TypeVar("_T")

FULL_SIZE = "TEST_FULL_SIZE"
"""The environment variable that asks for the full sizes, with any value."""


def full_size(usual: _T, full: _T) -> _T:
    """Return the usual size, or the full one if somebody asks for it."""
    return full if os.environ.get(FULL_SIZE) else usual
