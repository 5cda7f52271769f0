"""The PostgreSQL, Valkey and LiveKit that `auralink-hub dev` and the tests start where no URL names a server."""

from hub.embedded.livekit import LiveKit
from hub.embedded.livekit_build import find_livekit, livekit_binary, livekit_binary_in_background
from hub.embedded.postgres import Postgres
from hub.embedded.process import EmbeddedError, free_port
from hub.embedded.valkey import Valkey

__all__ = [
    "EmbeddedError",
    "LiveKit",
    "Postgres",
    "Valkey",
    "find_livekit",
    "free_port",
    "livekit_binary",
    "livekit_binary_in_background",
]
