"""A bounded, thread-safe cache of values that are costly to make. Nothing specific to the exchange belongs here."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

V = TypeVar("V")


class Cache(Generic[V]):
    """Cache the values used last, up to a total size. Two threads never make the same value at once.

    Args:
        capacity: total size of the cached values, in the unit of ``size``.
        size: returns the size of one value.
    """

    def __init__(self, capacity: int, size: Callable[[V], int]) -> None:
        self._capacity = capacity
        self._size = size
        self._total = 0
        self._values: OrderedDict[Hashable, V] = OrderedDict()
        self._lock = threading.Lock()
        self._making = [threading.Lock() for _ in range(64)]

    def peek(self, key: Hashable) -> V | None:
        """Return the cached value of a key, or None."""
        with self._lock:
            value = self._values.get(key)
            if value is not None:
                self._values.move_to_end(key)
            return value

    def get(self, key: Hashable, make: Callable[[], V]) -> V:
        """Return the cached value of a key. Make and cache it first if it is missing."""
        value = self.peek(key)
        if value is not None:
            return value
        with self._making[hash(key) % len(self._making)]:
            value = self.peek(key)
            if value is not None:
                return value
            value = make()
            with self._lock:
                self._values[key] = value
                self._total += self._size(value)
                while self._total > self._capacity and len(self._values) > 1:
                    self._total -= self._size(self._values.popitem(last=False)[1])
        return value
