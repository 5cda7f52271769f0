"""The admin REST of a running hub, for the commands that operate one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Annotated, Any, Self, TypeVar

import aiohttp
import cyclopts

from hub import settings
from hub.cli import environment
from hub.cli.output import fail

DEADLINE_S = 15.0

T = TypeVar("T")

Url = Annotated[str | None, cyclopts.Parameter(help="The hub's public URL; AURALINK_PUBLIC_URL if not given.")]
Token = Annotated[str | None, cyclopts.Parameter(help="A service token; made with AURALINK_JWT_SECRET if not given.")]
Json = Annotated[bool, cyclopts.Parameter(help="Print JSON.")]


class Client:
    """Calls the hub at `url` (else AURALINK_PUBLIC_URL) with `token` (else one made with AURALINK_JWT_SECRET)."""

    def __init__(self, url: str | None, token: str | None) -> None:
        loaded = environment.load()
        self.url = (url or loaded.public_url).rstrip("/")
        self.token = token or _service_token(loaded)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {self.token}"}, timeout=aiohttp.ClientTimeout(total=DEADLINE_S)
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def get(self, path: str, **query: str | int | None) -> Any:
        return await self._call(
            "GET", path, params={name: str(value) for name, value in query.items() if value is not None}
        )

    async def post(self, path: str, body: Any = None) -> Any:
        return await self._call("POST", path, json={} if body is None else body)

    async def _call(self, method: str, path: str, **options: Any) -> Any:
        assert self._session is not None
        try:
            async with self._session.request(method, self.url + path, **options) as response:
                body = await response.json(content_type=None) if response.content_length != 0 else None
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            fail(f"{self.url} does not answer as a hub: {error or type(error).__name__}")
        if response.status >= 400:
            problem = body if isinstance(body, dict) else {}
            fail(f"{method} {path}: {response.status} {problem.get('code', '')}: {problem.get('detail', '')}")
        return body


def ask(url: str | None, token: str | None, work: Callable[[Client], Awaitable[T]]) -> T:
    """Do `work` with a client; ends the command where the hub refuses or does not answer."""

    async def call() -> T:
        async with Client(url, token) as client:
            return await work(client)

    return asyncio.run(call())


def _service_token(loaded: settings.Settings) -> str:
    from hub.app import make_tokens

    try:
        return make_tokens(loaded).issue("auralink-hub-cli", role="service_role", ttl_s=300).token
    except ValueError as error:
        fail(f"{error}; give a token with --token")
