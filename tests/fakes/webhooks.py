"""LiveKit's webhook sender as it behaves: one queue a room and URL, five attempts, an age limit, nothing kept."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import aiohttp
from google.protobuf import json_format
from livekit.protocol import webhook

from hub.media.webhooks import sign

WAITS_S = (1.0, 2.0, 4.0, 8.0)
MAX_AGE_S = 30.0
MAX_DEPTH = 200
# The real sender has no timeout at all; a test must end.
REQUEST_TIMEOUT_S = 120.0


@dataclass
class WebhookFaults:
    """`drop`: names of events that are lost on the way, "*" for all. `reorder`: two in a row of a room swap places."""

    drop: set[str] = field(default_factory=set)
    duplicate: bool = False
    delay_s: float = 0.0
    reorder: bool = False


@dataclass
class Delivery:
    """What became of one event at one URL. `outcome`: sent, refused (a status that is not retried), given_up, too_old,
    overflow, dropped (by a fault), lost (in a crash) or pending."""

    url: str
    event: webhook.WebhookEvent
    body: bytes
    queued_at: float
    attempts: int = 0
    statuses: list[int] = field(default_factory=list)
    outcome: str = "pending"


class WebhookSender:
    """`scale` shortens every wait and the age limit alike: 0.01 turns LiveKit's 15 s of retries into 150 ms."""

    def __init__(self, api_key: str, api_secret: str, *, scale: float = 1.0) -> None:
        self.urls: list[str] = []
        self.faults = WebhookFaults()
        self.deliveries: list[Delivery] = []
        self._key, self._secret, self._scale = api_key, api_secret, scale
        self._session: aiohttp.ClientSession | None = None
        self._queues: dict[tuple[str, str], asyncio.Queue[Delivery]] = {}
        self._workers: set[asyncio.Task[None]] = set()
        self._held: dict[str, webhook.WebhookEvent] = {}

    async def start(self) -> None:
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S))

    async def stop(self) -> None:
        """As a crash does it: whatever waits is lost."""
        workers = list(self._workers)
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        self._workers.clear()
        self._queues.clear()
        self._held.clear()
        for delivery in self.deliveries:
            if delivery.outcome == "pending":
                delivery.outcome = "lost"
        if self._session:
            await self._session.close()

    def notify(self, event: webhook.WebhookEvent) -> None:
        event.id = f"EV_{secrets.token_hex(6)}"
        event.created_at = int(time.time())
        room = event.room.name
        if not self.faults.reorder:
            self._enqueue(event)
        elif (held := self._held.pop(room, None)) is not None:
            self._enqueue(event)
            self._enqueue(held)
        else:
            self._held[room] = event
            # Nothing may follow: then it goes on alone.
            asyncio.get_running_loop().call_later(0.2, self._let_go, room, event)

    async def settled(self, timeout_s: float = 10.0) -> None:
        """Until nothing waits any more. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            # Two places to look at and no hurry: not worth an Event.
            while self._held or any(  # noqa: ASYNC110
                delivery.outcome == "pending" for delivery in self.deliveries
            ):
                await asyncio.sleep(0.005)

    def _let_go(self, room: str, event: webhook.WebhookEvent) -> None:
        if self._held.get(room) is event:
            del self._held[room]
            self._enqueue(event)

    def _enqueue(self, event: webhook.WebhookEvent) -> None:
        body = json.dumps(json_format.MessageToDict(event), separators=(",", ":")).encode()
        for url in self.urls:
            for _ in range(2 if self.faults.duplicate else 1):
                self._enqueue_for(Delivery(url, event, body, asyncio.get_running_loop().time()))

    def _enqueue_for(self, delivery: Delivery) -> None:
        self.deliveries.append(delivery)
        if self.faults.drop & {delivery.event.event, "*"}:
            delivery.outcome = "dropped"
            return
        key = (delivery.url, delivery.event.room.name)
        if key not in self._queues:
            self._queues[key] = asyncio.Queue(MAX_DEPTH)
            worker = asyncio.create_task(self._work(self._queues[key]), name=f"webhooks of {key[1]}")
            self._workers.add(worker)
        try:
            self._queues[key].put_nowait(delivery)
        except asyncio.QueueFull:
            delivery.outcome = "overflow"

    async def _work(self, queue: asyncio.Queue[Delivery]) -> None:
        while True:
            delivery = await queue.get()
            # The age is looked at once, before the first attempt.
            if asyncio.get_running_loop().time() - delivery.queued_at > MAX_AGE_S * self._scale:
                delivery.outcome = "too_old"
                continue
            if self.faults.delay_s:
                await asyncio.sleep(self.faults.delay_s)
            delivery.outcome = await self._deliver(delivery)

    async def _deliver(self, delivery: Delivery) -> str:
        authorization = sign(delivery.body, self._key, self._secret)
        for wait_s in (*WAITS_S, None):
            delivery.attempts += 1
            status, retry_after_s = await self._post(delivery, authorization)
            delivery.statuses.append(status)
            if 200 <= status < 300:
                return "sent"
            if status and status != 429 and (status < 500 or status == 501):
                return "refused"
            if wait_s is not None:
                await asyncio.sleep((retry_after_s or wait_s) * self._scale)
        return "given_up"

    async def _post(self, delivery: Delivery, authorization: str) -> tuple[int, float | None]:
        """Status (0: no answer) and the seconds of a Retry-After."""
        assert self._session is not None
        headers = {
            "Authorization": authorization,
            "Content-Type": "application/webhook+json",
            "User-Agent": "LiveKit",
        }
        try:
            async with self._session.post(
                delivery.url, data=delivery.body, headers=headers, allow_redirects=False
            ) as answer:
                after = answer.headers.get("Retry-After", "") if answer.status in (429, 503) else ""
                return answer.status, float(after) if after.isdigit() else None
        except (aiohttp.ClientError, TimeoutError):
            return 0, None


def names(deliveries: list[Delivery], wanted: Callable[[Delivery], bool] = lambda _: True) -> list[str]:
    """The events' names, in the order they were queued."""
    return [delivery.event.event for delivery in deliveries if wanted(delivery)]
