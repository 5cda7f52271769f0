"""How many may come in: on this node, from one address, of one user. And how often somebody may be wrong."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Hashable

from hub.protocol import errors
from hub.state.bucket import Bucket
from hub.transport.socketio.options import EdgeOptions

_ADDRESSES = 10_000


class Admission:
    """Counts of this node. Raises ServerBusy, TooManyConnections or RateLimited."""

    def __init__(self, options: EdgeOptions) -> None:
        self._options = options
        self._connections = 0
        self._addresses: Counter[Hashable] = Counter()
        self._users: Counter[Hashable] = Counter()
        self._wrong: OrderedDict[str, Bucket] = OrderedDict()

    def connect(self, address: str) -> None:
        if self._connections >= self._options.max_connections:
            raise errors.ServerBusy(retry_after_ms=5000)
        if address and self._addresses[address] >= self._options.max_connections_per_address:
            raise errors.TooManyConnections("too many connections from this address", retry_after_ms=5000)
        self._connections += 1
        self._addresses[address] += 1

    def disconnect(self, address: str) -> None:
        self._connections -= 1
        _less(self._addresses, address)

    def enter(self, user: Hashable) -> None:
        if self._users[user] >= self._options.max_connections_per_user:
            raise errors.TooManyConnections("too many connections of this user", retry_after_ms=5000)
        self._users[user] += 1

    def leave(self, user: Hashable) -> None:
        _less(self._users, user)

    def wrong(self, address: str, now: float) -> None:
        """A token from `address` did not verify. Raises RateLimited once that happens too often."""
        bucket = self._wrong.get(address)
        if bucket is None:
            while len(self._wrong) >= _ADDRESSES:
                self._wrong.popitem(last=False)
            burst = self._options.bad_tokens_burst
            bucket = self._wrong[address] = Bucket(burst, per_s=float(burst))
        self._wrong.move_to_end(address)
        wait_ms = bucket.take(now)
        if wait_ms:
            raise errors.RateLimited("too many bad tokens", retry_after_ms=wait_ms)


def _less(counter: Counter[Hashable], key: Hashable) -> None:
    counter[key] -= 1
    if counter[key] <= 0:
        del counter[key]
