"""The PostgreSQL, Valkey and LiveKit that `auralink-hub dev` and the tests start where no URL names a server."""

from hub.embedded.postgres import Postgres
from hub.embedded.process import EmbeddedError, free_port
from hub.embedded.valkey import Valkey

__all__ = ["EmbeddedError", "Postgres", "Valkey", "free_port"]
