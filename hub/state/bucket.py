"""A token bucket, as a plain value. Pure: time comes in as an argument."""

from __future__ import annotations


class Bucket:
    """`times` tokens, filled again evenly within `per_s` seconds."""

    __slots__ = ("_at", "_per_s", "_tokens", "times")

    def __init__(self, times: int, per_s: float) -> None:
        self.times = times
        self._per_s = per_s
        self._tokens = float(times)
        self._at: float | None = None

    def take(self, now: float) -> int:
        """Take one token at `now` (seconds, monotonic). 0: taken; else the milliseconds until there is one."""
        if self._at is not None:
            tokens = self._tokens + (now - self._at) * self.times / self._per_s
            self._tokens = tokens if tokens < self.times else float(self.times)
        self._at = now
        if self._tokens < 1:
            return self.wait(now)
        self._tokens -= 1
        return 0

    def wait(self, now: float) -> int:
        """How long until there is one, without taking it."""
        if self._at is not None:
            tokens = self._tokens + (now - self._at) * self.times / self._per_s
            self._tokens = tokens if tokens < self.times else float(self.times)
        self._at = now
        if self._tokens >= 1:
            return 0
        return int((1 - self._tokens) * self._per_s / self.times * 1000) + 1

    def give_back(self) -> None:
        """A token that was taken is there again."""
        self._tokens = min(self._tokens + 1, float(self.times))
