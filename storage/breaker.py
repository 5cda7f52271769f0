"""Stops asking a store that has failed several times in a row; lets one try through now and then."""

from __future__ import annotations

from storage.errors import StorageUnavailable


class Breaker:
    """Fed with what came of calls, `now` being any clock that only goes forward."""

    def __init__(self, *, failures: int = 5, retry_s: float = 1.0) -> None:
        self._limit = failures
        self._retry_s = retry_s
        self._failures = 0
        self._next_try = 0.0

    def admit(self, now: float) -> None:
        """Raise StorageUnavailable while open, but for one caller every `retry_s`."""
        if self._failures < self._limit:
            return
        if now < self._next_try:
            raise StorageUnavailable("the store failed several times in a row; not asked again yet")
        self._next_try = now + self._retry_s

    def succeeded(self) -> None:
        self._failures = 0

    def failed(self, now: float) -> None:
        self._failures += 1
        # Not later than a try that is on its way has set it: one failing try must not lock the next one out.
        if self._failures == self._limit:
            self._next_try = now + self._retry_s
