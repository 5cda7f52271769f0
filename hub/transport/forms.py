"""REST commands that are forms: a multipart body with fields and one part `file`, which is never in memory as a whole.

Where the fields come first, the bytes go on to where they are kept while they come in. Where the file comes first, as
most pages and `curl -F file=@… -F call_id=…` send it, nobody knows yet whom it is for: then it waits on this machine's
disk until they are there.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, Protocol
from uuid import UUID

import msgspec
from aiohttp import BodyPartReader, MultipartReader, hdrs, web
from aiohttp.web_protocol import RequestPayloadError

from hub.commands import Command
from hub.context import Actor, Context, Hub
from hub.dispatch import Dispatcher, invalid
from hub.protocol import errors
from hub.protocol.errors import FieldError
from hub.protocol.files import MimeType
from hub.transport import rest
from hub.transport.middleware import COMMAND, REQUEST_ID
from storage.pour import GATHER_BYTES, Spill

FILE: Final = "file"
# Of one node at once: each has a task, a socket and a file on disk, and those whose file comes first up to its size.
_MOST_AT_ONCE: Final = 64
_MOST_OF_ONE: Final = 16
_FIELD_BYTES: Final = 8 * 1024
_MOST_FIELDS: Final = 16
# What boundaries, headers and fields may add to the file.
_AROUND_BYTES: Final = 256 * 1024
# Whoever sends nothing for so long has gone, and whoever is slower than this keeps a place busy on purpose.
_IDLE_S: Final = 20.0
_SLOWEST_BYTES_S: Final = 8 * 1024
_SLOW_AFTER_S: Final = 30.0
_PLAIN_ENCODINGS: Final = frozenset({"", "binary", "8bit", "7bit"})


class Spills(Protocol):
    """Room on this machine's disk. Raises storage.errors.StorageUnavailable."""

    async def spill(self) -> Spill: ...
    async def apart(self, work: Callable[[], Any]) -> Any: ...
    def discard(self, spill: Spill) -> None: ...


def setup(app: web.Application, dispatcher: Dispatcher, hub: Hub, spills: Spills) -> None:
    """Add the route of every declared command that is a form."""
    places = _Places()
    for command in dispatcher.commands:
        if command.http is not None and command.http.form:
            handler = _handler(command, dispatcher, hub, spills, places)
            app.router.add_route(command.http.method, rest.BASE + command.http.path, handler)


class _Places:
    """Raises ServerBusy where all are taken, RateLimited where one person has too many of them."""

    def __init__(self) -> None:
        self._taken: Counter[tuple[UUID, str]] = Counter()

    @contextmanager
    def one(self, actor: Actor) -> Iterator[None]:
        who = (actor.tenant_id, actor.user_id)
        if self._taken.total() >= _MOST_AT_ONCE:
            raise errors.ServerBusy("this node has its hands full of uploads", retry_after_ms=2000)
        if self._taken[who] >= _MOST_OF_ONE:
            raise errors.RateLimited(f"at most {_MOST_OF_ONE} forms at once", retry_after_ms=2000)
        self._taken[who] += 1
        try:
            yield
        finally:
            self._taken[who] -= 1
            if not self._taken[who]:
                del self._taken[who]


def _handler(
    command: Command, dispatcher: Dispatcher, hub: Hub, spills: Spills, places: _Places
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    kinds = {field.encode_name: rest.kind_given(field.type) for field in msgspec.structs.fields(command.message)}

    async def handle(request: web.Request) -> web.StreamResponse:
        request[COMMAND] = command
        actor = await rest.authenticate(request, hub)
        most_bytes = _demand_form(request, hub.rules.file_bytes)
        with places.one(actor):
            form = _Form(request, kinds, command.message, most_bytes)
            fields, file = await form.begin()
            ctx = Context(hub=hub, actor=actor, request_id=request[REQUEST_ID], client=rest.client_of(request))
            if fields:
                ctx.body = _Live(form, file, request.content_length or most_bytes)
                return rest.respond(command, await dispatcher.run_for(ctx, command, fields, door="rest"))
            spill = await spills.spill()
            try:
                size_bytes = await _spill(form, file, spill, spills)
                ctx.body = _Spilled(file, spill, spills, size_bytes)
                fields = await form.rest()
                return rest.respond(command, await dispatcher.run_for(ctx, command, fields, door="rest"))
            finally:
                spills.discard(spill)

    return handle


def _demand_form(request: web.Request, file_bytes: int) -> int:
    """The most bytes that the file may have. Raises UnsupportedMediaType; FileTooLarge before anything is read."""
    if request.content_type != "multipart/form-data" or not request.content_type.isascii():
        raise errors.UnsupportedMediaType("bodies are multipart/form-data")
    if request.headers.get(hdrs.CONTENT_ENCODING, "identity") != "identity":
        raise errors.UnsupportedMediaType("bodies are not compressed")
    if request.query:
        raise rest.unknown(next(iter(request.query)))
    if (request.content_length or 0) > file_bytes + _AROUND_BYTES:
        raise too_large(file_bytes)
    return file_bytes


def too_large(limit_bytes: int) -> errors.FileTooLarge:
    return errors.FileTooLarge(f"at most {limit_bytes} bytes", details={"limit_bytes": limit_bytes})


class _Form:
    """The parts of a form, read once and in order. Raises BadRequest for what is no form, ValidationFailed, Timeout."""

    def __init__(self, request: web.Request, kinds: Mapping[str, Any], message: type[Any], most_bytes: int) -> None:
        self._request, self._kinds, self._message = request, kinds, message
        self.most_bytes = most_bytes
        self._reader: MultipartReader | None = None
        self._fields: dict[str, Any] = {}
        self._parts = 0
        self._started_at = time.monotonic()
        self._got = 0

    async def begin(self) -> tuple[dict[str, Any], BodyPartReader]:
        """The fields before the file, and the file."""
        try:
            self._reader = await self._request.multipart()
        except (ValueError, AssertionError) as error:
            raise errors.BadRequest("the form cannot be read") from error
        file = await self._until_file()
        if file is None:
            raise errors.ValidationFailed("file: required", errors=[FieldError(FILE, "required")])
        return self._fields, file

    async def more(self) -> bool:
        """Whether fields come after the file as well."""
        before = len(self._fields)
        return len(await self.rest()) > before

    async def rest(self) -> dict[str, Any]:
        """The fields after the file."""
        if await self._until_file() is not None:
            raise errors.ValidationFailed("file: given twice", errors=[FieldError(FILE, "given twice")])
        return self._fields

    async def _until_file(self) -> BodyPartReader | None:
        while (part := await self._next()) is not None:
            self._parts += 1
            if self._parts > _MOST_FIELDS or not isinstance(part, BodyPartReader):
                raise errors.BadRequest("the form cannot be read: too many parts, or parts of parts")
            if part.headers.get(hdrs.CONTENT_TRANSFER_ENCODING, "").lower() not in _PLAIN_ENCODINGS:
                raise errors.UnsupportedMediaType("parts are sent as they are")
            if part.name == FILE:
                return part
            await self._field(part)
        return None

    async def _next(self) -> BodyPartReader | MultipartReader | None:
        assert self._reader is not None
        part: BodyPartReader | MultipartReader | None = await self._in_time(self._reader.next())
        return part

    async def _field(self, part: BodyPartReader) -> None:
        name = part.name or ""
        if name not in self._kinds:
            raise rest.unknown(name)
        if name in self._fields:
            raise errors.ValidationFailed(f"{name}: given twice", errors=[FieldError(name, "given twice")])
        raw = bytearray()
        while piece := await self.piece(part):
            raw += piece
            if len(raw) > _FIELD_BYTES:
                raise errors.PayloadTooLarge(f"{name}: at most {_FIELD_BYTES} bytes")
        try:
            self._fields[name] = rest.read_text(raw.decode(), self._kinds[name])
        except UnicodeDecodeError:
            raise errors.ValidationFailed(f"{name}: not UTF-8", errors=[FieldError(name, "not UTF-8")]) from None
        except msgspec.ValidationError as error:
            raise invalid(f"{str(error).partition(' - at ')[0]} - at `$.{name}`", self._message) from None

    async def piece(self, part: BodyPartReader) -> bytes:
        """The next bytes of a part; none at its end."""
        data = await self._in_time(part.read_chunk(GATHER_BYTES))
        # A part may give nothing before its end: where a boundary may have begun.
        while not data and not part.at_eof():
            data = await self._in_time(part.read_chunk(GATHER_BYTES))
        self._got += len(data)
        spent_s = time.monotonic() - self._started_at
        if spent_s > _SLOW_AFTER_S and self._got < spent_s * _SLOWEST_BYTES_S:
            raise errors.Timeout(f"slower than {_SLOWEST_BYTES_S} bytes a second")
        return bytes(data)

    async def _in_time(self, reading: Awaitable[Any]) -> Any:
        try:
            async with asyncio.timeout(_IDLE_S):
                return await reading
        except TimeoutError:
            raise errors.Timeout(f"nothing came for {_IDLE_S:g} s") from None
        except (web.HTTPException, ConnectionError):
            raise
        except (RequestPayloadError, ValueError, AssertionError) as error:
            raise errors.BadRequest("the form cannot be read") from error


async def _spill(form: _Form, file: BodyPartReader, spill: Spill, spills: Spills) -> int:
    """The file on disk; its size."""
    at, gathered = 0, bytearray()
    while piece := await form.piece(file):
        gathered += piece
        if at + len(gathered) > form.most_bytes:
            raise too_large(form.most_bytes)
        if len(gathered) >= GATHER_BYTES:
            await spills.apart(partial(spill.write, at, bytes(gathered)))
            at, gathered = at + len(gathered), bytearray()
    await spills.apart(partial(spill.write, at, bytes(gathered)))
    return at + len(gathered)


class _Live:
    """A file that is still coming, behind the fields."""

    def __init__(self, form: _Form, part: BodyPartReader, most_bytes: int) -> None:
        self._form, self._part = form, part
        self.name = part.filename or ""
        self.content_type = content_type_of(part)
        self.size_bytes: int | None = None
        self.most_bytes = min(most_bytes, form.most_bytes)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while piece := await self._form.piece(self._part):
            yield piece
        if await self._form.more():
            # They were too late to be heeded: better refused than half done.
            raise errors.ValidationFailed(
                "the fields come all before the file or all after it", errors=[FieldError(FILE, "between fields")]
            )


class _Spilled:
    """A file that was before its fields, and is here by now."""

    def __init__(self, part: BodyPartReader, spill: Spill, spills: Spills, size_bytes: int) -> None:
        self._spill, self._spills = spill, spills
        self.name = part.filename or ""
        self.content_type = content_type_of(part)
        self.size_bytes: int | None = size_bytes
        self.most_bytes = size_bytes

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for at in range(0, self.most_bytes, GATHER_BYTES):
            length = min(GATHER_BYTES, self.most_bytes - at)
            yield await self._spills.apart(partial(self._spill.read, at, length))


def content_type_of(part: BodyPartReader) -> str:
    """What the part says of itself, where that is a type at all."""
    said = part.headers.get(hdrs.CONTENT_TYPE, "").partition(";")[0].strip().lower()
    try:
        return msgspec.convert(said, MimeType, strict=True)
    except msgspec.ValidationError:
        return "application/octet-stream"
