"""Work that nobody breaks off in the middle: from a commit to the telling of it is one step."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import structlog

T = TypeVar("T")

log = structlog.get_logger("hub.sealed")

# How long a step may go on that nobody waits for any more: a commit, and Redis at its slowest.
SEALED_S = 3.0


async def sealed(work: Coroutine[Any, Any, T], within_s: float = SEALED_S) -> T:
    """The result of `work`. A caller who is cancelled waits for its end, `within_s` at most, and is cancelled then."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        try:
            await asyncio.wait([task], timeout=within_s)
        finally:
            if not task.cancel() and not task.cancelled() and (error := task.exception()) is not None:
                log.warning("sealed_work_failed", error=repr(error))
        raise
