"""What the tests of files share: a room with people in it, bytes as a form brings them, where a signed URL leads."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlsplit
from uuid import UUID

import msgspec

from hub.protocol.files import FileView, PresignedFile
from storage.signing import Granted, Method
from tests.actions.conftest import SIGNER, Node, Person, Socket

PIECE = 64 * 1024


@dataclass
class Room:
    """ann owns the call; bob and cat take part in it; all three are in."""

    hub: Node
    call_id: UUID
    ann: Person
    bob: Person
    cat: Person
    ann_socket: Socket
    bob_socket: Socket
    cat_socket: Socket
    bob_id: UUID


async def shared(hub: Node, **fields: Any) -> Room:
    ann, bob, cat = (hub.person(name) for name in ("ann", "bob", "cat"))
    call_id = await ann.room(**fields)
    sockets = [await person.listening() for person in (ann, bob, cat)]
    _, bobs, _ = [await socket.join(call_id) for socket in sockets]
    for socket in sockets:
        socket.heard.clear()
    return Room(hub, call_id, ann, bob, cat, sockets[0], sockets[1], sockets[2], bobs.self.participant_id)


@dataclass
class Body:
    """`hub.context.Incoming`: bytes in pieces, as a form brings them."""

    data: bytes
    name: str = "file.bin"
    content_type: str = "application/octet-stream"
    size_bytes: int | None = None
    # The connection breaks after so many.
    breaks_after: int | None = None

    @property
    def most_bytes(self) -> int:
        return len(self.data)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for at in range(0, len(self.data), PIECE):
            if self.breaks_after is not None and at >= self.breaks_after:
                raise ConnectionResetError("the sender went away")
            yield self.data[at : at + PIECE]


async def brought(
    person: Person,
    data: bytes,
    *,
    name: str | None = "file.bin",
    body_name: str = "file.bin",
    content_type: str = "application/octet-stream",
    breaks_after: int | None = None,
    **fields: Any,
) -> FileView:
    """By a form."""
    hub = person.hub
    command = hub.dispatcher.commands.get("file:upload")
    assert command is not None
    ctx = hub.context(person.actor)
    ctx.body = Body(data, body_name, content_type, breaks_after=breaks_after)
    given = {**fields, **({"name": name} if name else {})}
    try:
        answer = await hub.dispatcher.run(ctx, command, msgspec.to_builtins(given), door="rest")
    except Exception as error:
        # The dispatcher takes what it does not know for a bug of ours.
        if isinstance(error.__cause__, ConnectionError):
            raise error.__cause__ from None
        raise
    finally:
        await hub.delivered()
    file: FileView = answer.data
    return file


def granted(method: Method, url: str) -> Granted:
    """What the URL allows; raises SignatureInvalid for one that the store did not sign."""
    parts = urlsplit(url)
    return SIGNER.granted(method, parts.path.removeprefix("/storage/"), dict(parse_qsl(parts.query)))


async def put(hub: Node, asked: PresignedFile, data: bytes) -> None:
    """As a client does with its URL."""

    allowed = granted("PUT", asked.url)
    assert allowed.size_bytes == len(data)
    await hub.store.put(allowed.key, data, content_type=allowed.content_type)


async def bytes_of(hub: Node, url: str) -> bytes:
    async with aclosing(hub.store.get(granted("GET", url).key)) as pieces:
        return b"".join([piece async for piece in pieces])
