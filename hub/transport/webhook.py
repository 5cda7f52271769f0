"""LiveKit's webhooks in: verify over the raw bytes, store, answer. What they mean is worked out afterwards.

200 says "kept, or had it already" and nothing else, so LiveKit may forget the event. 503 makes it try again, which it
does a few times within about 15 s; what is lost then, the sweep finds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

import structlog
from aiohttp import hdrs, web

from db import errors as db_errors
from db import inbox
from db.pool import Database
from hub import metrics
from hub.media.values import WebhookEvent
from hub.protocol import errors
from hub.transport.middleware import REQUEST_ID, read_body

log = structlog.get_logger("hub.webhook")

PATH: Final = "/webhooks/livekit"
# Metadata of a room and of a participant may be 512 KiB each, and JSON escapes make more of it.
MAX_BYTES: Final = 4 * 1024 * 1024
_STORE_DEADLINE_S = 1.0
# LiveKit gives a webhook 5 s or so: an answer after that is none.
_BODY_DEADLINE_S = 5.0

WEBHOOKS = metrics.counter("webhooks", "LiveKit webhooks by event and result", "event", "result")
LAG = metrics.histogram("webhook_lag", "From LiveKit's clock to the stored row; whole seconds at best")

_EVENTS = frozenset(
    {
        *("room_started", "room_finished", "participant_joined", "participant_left"),
        *("participant_connection_aborted", "track_published", "track_unpublished"),
        *("egress_started", "egress_updated", "egress_ended", "ingress_started", "ingress_ended"),
    }
)

Verify = Callable[[bytes, str], WebhookEvent]
"""The event in a body, given the Authorization header. Raises Unauthenticated, whatever is wrong with it."""


def setup(app: web.Application, *, verify: Verify, db: Database, wake: Callable[[], None]) -> None:
    """Add the route. `wake` tells the inbox worker that there is something to do."""

    async def receive(request: web.Request) -> web.Response:
        event = await _verified(request, verify)
        name = event.event if event.event in _EVENTS else "other"
        try:
            async with asyncio.timeout(_STORE_DEADLINE_S), db.system() as tx:
                fresh = await inbox.store(tx, event)
        except (TimeoutError, db_errors.DatabaseUnavailable) as error:
            WEBHOOKS.labels(name, "not_stored").inc()
            raise errors.DatabaseUnavailable("the event was not stored", retry_after_ms=1000) from error
        WEBHOOKS.labels(name, "stored" if fresh else "duplicate").inc()
        LAG.observe(max(0.0, time.time() - event.created_at.timestamp()))
        if fresh:
            wake()
        return web.Response(status=200)

    app.router.add_post(PATH, receive)


async def _verified(request: web.Request, verify: Verify) -> WebhookEvent:
    # A bare token, no scheme: refused before the body is read where there is none.
    authorization = request.headers.get(hdrs.AUTHORIZATION, "")
    try:
        if not authorization:
            raise errors.Unauthenticated()
        raw = await read_body(request, MAX_BYTES, _BODY_DEADLINE_S)
        return verify(raw, authorization)
    except errors.PayloadTooLarge:
        WEBHOOKS.labels("unknown", "too_large").inc()
        log.warning("webhook_too_large", request_id=request[REQUEST_ID])
        raise
    except errors.Unauthenticated as error:
        WEBHOOKS.labels("unknown", "refused").inc()
        log.warning("webhook_refused", reason=getattr(error, "reason", "missing"), request_id=request[REQUEST_ID])
        # One text for every reason.
        raise errors.Unauthenticated("the webhook does not verify") from None
