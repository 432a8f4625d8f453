"""A bounded memory of things that are costly to make, for threads."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

V = TypeVar("V")


class Cache(Generic[V]):
    """Remembers what was used last, up to a total size; two threads never make the same thing at once."""

    def __init__(self, capacity: int, size: Callable[[V], int]) -> None:
        self._capacity = capacity
        self._size = size
        self._total = 0
        self._held: OrderedDict[Hashable, V] = OrderedDict()
        self._lock = threading.Lock()
        self._making = [threading.Lock() for _ in range(64)]

    def peek(self, key: Hashable) -> V | None:
        """What is remembered under a key, or None."""
        with self._lock:
            value = self._held.get(key)
            if value is not None:
                self._held.move_to_end(key)
            return value

    def get(self, key: Hashable, make: Callable[[], V]) -> V:
        """What is remembered under a key, made now if it is not."""
        value = self.peek(key)
        if value is not None:
            return value
        with self._making[hash(key) % len(self._making)]:
            value = self.peek(key)
            if value is not None:
                return value
            value = make()
            with self._lock:
                self._held[key] = value
                self._total += self._size(value)
                while self._total > self._capacity and len(self._held) > 1:
                    self._total -= self._size(self._held.popitem(last=False)[1])
        return value
