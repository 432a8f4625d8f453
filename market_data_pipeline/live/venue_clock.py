"""The exchange's clock, counted from its own answers. This machine's clock may be wrong by any amount."""

from __future__ import annotations

import time

from market_data_pipeline import clock


class VenueClock:
    """The exchange's time in microseconds since 1970 (UTC).

    Args:
        speed: Seconds of the exchange in a real second. Only a sandbox has another speed than 1.
    """

    def __init__(self, speed: float = 1.0) -> None:
        self.speed = speed
        self._at_us, self._counted_from = clock.to_us(clock.now()), time.monotonic()

    def set(self, server_us: int, counted_from: float) -> None:
        """Take the server's time.

        Args:
            counted_from: Monotonic time at which the server had it.
        """
        self._at_us, self._counted_from = server_us, counted_from

    def now_us(self) -> int:
        """Return the exchange's time."""
        return self._at_us + int((time.monotonic() - self._counted_from) * self.speed * 1e6)

    def real(self, seconds: float) -> float:
        """Convert seconds of the exchange to real seconds."""
        return seconds / self.speed
