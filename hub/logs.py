"""Logs: one JSON object a line (or a readable line for a terminal), ours and the libraries' alike.

Anything that looks like a JWT is cut out of every field, tracebacks included: LiveKit and its clients repeat tokens in
their error texts.
"""

from __future__ import annotations

import logging
import re
import sys
from typing import Any

import msgspec
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

_JWT = re.compile(r"eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*")
_SECRET_FIELDS = frozenset({"token", "password", "secret", "authorization", "signature"})
_FIELD_CHARS = 4000


def configure(*, log_format: str, level: str, node_id: str = "") -> None:
    """Set up logging for this process. `log_format`: json or console."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
        _node(node_id),
        structlog.processors.format_exc_info,
        _scrub,
    ]
    renderer: Processor = (
        structlog.processors.JSONRenderer(serializer=_json)
        if log_format == "json"
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    )
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        # A line that is not written costs nothing: there is one with each connection.
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # Their info lines repeat ours; their warnings are wanted.
    for noisy in ("aiohttp.access", "socketio", "engineio", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _node(node_id: str) -> Processor:
    def add(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
        if node_id:
            event["node_id"] = node_id
        return event

    return add


def _scrub(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    for name, value in event.items():
        if name.lower() in _SECRET_FIELDS:
            event[name] = "***"
        elif isinstance(value, str):
            event[name] = _JWT.sub("[token]", value)[:_FIELD_CHARS]
    return event


def _json(value: Any, **_: Any) -> str:
    return msgspec.json.encode(value, enc_hook=repr).decode()
