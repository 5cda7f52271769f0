"""The names of everything the hub keeps in Redis: `aura:{env}:…`, the environment written out.

All keys of a log share the hash slot of `{call_id}`, or of `{tenant:user}`, so that one script may touch them on a
Redis Cluster. Leases, rosters, sessions and people share the slot of `{presence}`: the scripts that change a roster
check the lease of the node in the same step, which only works within one slot, and they run a few times per join, not
per event.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple
from uuid import UUID

import msgspec

_encode = msgspec.json.Encoder().encode
_ENV = re.compile(r"[a-z0-9_-]{1,32}")
_ROOMS = 20_000


def text(value: UUID) -> str:
    """As `str` has it, in half the time."""
    return _encode(value)[1:-1].decode()


class LogKeys(NamedTuple):
    """Of one log: of a room, or of what is meant for a user."""

    channel: str
    channel_bytes: bytes
    head: str
    log: str


class Keys:
    def __init__(self, env: str) -> None:
        # Braces or colons in it would move hash slots and let one environment name the keys of another.
        if not _ENV.fullmatch(env):
            raise ValueError(f"not an environment name: {env!r}")
        self._prefix = f"aura:{env}:"
        self._presence = f"{self._prefix}{{presence}}:"
        # Asked for with every event.
        self.room = lru_cache(maxsize=_ROOMS)(self._room)

    def _room(self, call_id: UUID) -> LogKeys:
        return _log(f"{self._prefix}room:{{{call_id}}}")

    def user(self, tenant_id: UUID, user_id: str) -> LogKeys:
        return _log(f"{self._prefix}user:{{{text(tenant_id)}:{user_id}}}")

    # Other channels.

    def node_channel(self, node_id: str) -> str:
        return f"{self._prefix}node:{node_id}"

    def tick_channel(self, name: str) -> str:
        return f"{self._prefix}tick:{name}"

    # Presence.

    def lease(self, incarnation: str) -> str:
        return f"{self._presence}lease:{incarnation}"

    @property
    def leases(self) -> str:
        """The prefix of `lease`, for scripts that look up the lease of an entry."""
        return f"{self._presence}lease:"

    @property
    def presence(self) -> str:
        """The prefix of every presence key, for the scripts that follow entries from one key to the next."""
        return self._presence

    @property
    def nodes(self) -> str:
        return f"{self._presence}nodes"

    @property
    def lately(self) -> str:
        """Nodes by name, as they last were."""
        return f"{self._presence}lately"

    @property
    def incarnations(self) -> str:
        return f"{self._presence}incarnations"

    def roster(self, call_id: UUID) -> str:
        return f"{self._presence}roster:{text(call_id)}"

    def sessions(self, tenant_id: UUID) -> str:
        return f"{self._presence}sessions:{tenant_id}"

    @property
    def holders(self) -> str:
        """Incarnations under which devices of users are known."""
        return f"{self._presence}holders"

    def bell(self, tenant_id: UUID) -> str:
        """Rings when somebody of the tenant may look different. In the slot of presence: a script rings it."""
        return f"{self._presence}bell:{tenant_id}"

    # Everything else, each alone in its slot.

    def limit(self, key: str) -> str:
        return f"{self._prefix}limit:{key}"

    def lock(self, name: str) -> str:
        return f"{self._prefix}lock:{{{name}}}"

    def fence(self, name: str) -> str:
        return f"{self._prefix}lock:{{{name}}}:fence"


def _log(channel: str) -> LogKeys:
    return LogKeys(channel, channel.encode(), f"{channel}:head", f"{channel}:log")
