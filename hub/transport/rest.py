"""REST: every declared command with an `http` line, under `/api/v1`.

A request becomes the same mapping a socket would send, runs down the same road, and its answer becomes a response.
"""

from __future__ import annotations

import asyncio
import functools
import operator
import re
import types
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin
from uuid import UUID

import msgspec
from aiohttp import hdrs, web

from db import calls
from db import errors as db_errors
from hub.commands import Command
from hub.context import NOBODY, Actor, Context, Hub, Visitor
from hub.dispatch import Answer, Dispatcher, invalid
from hub.protocol import errors
from hub.protocol.errors import FieldError
from hub.state.visits import host_of
from hub.transport import auth
from hub.transport.address import Network, client_address, network_of, networks
from hub.transport.middleware import COMMAND, REQUEST_ID, read_body

BASE: Final = "/api/v1"

_FORM_TYPES = frozenset({"text/plain", "application/x-www-form-urlencoded", "multipart/form-data"})
_BODY_METHODS = frozenset({"POST", "PATCH", "PUT"})
_ROOM_NAME = re.compile(r"room_[a-z0-9]+_\d{1,20}")
_IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,128}")


def setup(app: web.Application, dispatcher: Dispatcher, hub: Hub, *, proxies: Iterable[str] = ()) -> None:
    """Add the route of every declared command. `proxies`: networks whose X-Forwarded-For is believed."""
    trusted = networks(proxies)
    # `/files/upload` is nobody's `/files/{id}`, whatever the method.
    written_out: dict[str, set[str]] = defaultdict(set)
    for command in dispatcher.commands:
        if command.http is not None and not command.http.fields:
            written_out[BASE + command.http.path].add(command.http.method)
    for command in dispatcher.commands:
        if command.http is not None and not command.http.form:
            path, handler = BASE + command.http.path, _handler(command, dispatcher, hub, trusted)
            if command.http.fields:
                handler = _but_not(written_out, handler)
            app.router.add_route(command.http.method, path, handler)
            if command.http.method == hdrs.METH_GET:
                app.router.add_route(hdrs.METH_HEAD, path, handler)


def _but_not(
    written_out: Mapping[str, set[str]], handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def handle(request: web.Request) -> web.StreamResponse:
        methods = written_out.get(request.path)
        if methods is not None:
            raise web.HTTPMethodNotAllowed(request.method, methods)
        return await handler(request)

    return handle


def _handler(
    command: Command, dispatcher: Dispatcher, hub: Hub, trusted: tuple[Network, ...]
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    kinds = {field.encode_name: kind_given(field.type) for field in msgspec.structs.fields(command.message)}

    async def handle(request: web.Request) -> web.StreamResponse:
        request[COMMAND] = command
        # First of all: who is not let in learns nothing about bodies and fields.
        if command.needs == "public" and hdrs.AUTHORIZATION not in request.headers:
            actor = NOBODY
        else:
            actor = await authenticate(request, hub)
        fields = await _fields(request, command, kinds, actor, hub)
        ctx = Context(
            hub=hub,
            actor=actor,
            request_id=request[REQUEST_ID],
            op_key=_op_key(request, command),
            if_match=_if_match(request),
            client=client_of(request),
            visitor=visitor_of(request, trusted) if command.needs == "public" else Visitor(),
        )
        # A client that hangs up takes its work along; but what is decided is told to the others.
        answer = await dispatcher.run_for(ctx, command, fields, door="rest")
        return respond(command, answer, redirects=fields.get("redirect", True))

    return handle


async def authenticate(request: web.Request, hub: Hub) -> Actor:
    """The actor of the bearer token. Raises Unauthenticated, TokenInvalid or TokenExpired."""
    token = auth.bearer(request.headers.get(hdrs.AUTHORIZATION))
    if token is None:
        raise errors.Unauthenticated()
    return await hub.tokens.verify(token)


async def _fields(
    request: web.Request, command: Command, kinds: Mapping[str, Any], actor: Actor, hub: Hub
) -> dict[str, Any]:
    """The message as a mapping: from the path, and the query or the body."""
    assert command.http is not None
    if command.http.method in _BODY_METHODS:
        if request.query:
            raise unknown(next(iter(request.query)))
        given = await _body(request)
    else:
        given = {name: _query(request, name, kinds, command.message) for name in dict.fromkeys(request.query)}
    for name in command.http.fields:
        if name in given:
            raise unknown(name)
    for name in ("op_id", "traceparent"):
        # A socket has no headers and sends these along; here they are Idempotency-Key and traceparent.
        if name in given:
            raise unknown(name)
    for name in command.http.fields:
        given[name] = await _part(name, request.match_info[name], kinds[name], command, actor, hub)
    return given


async def _part(name: str, text: str, kind: Any, command: Command, actor: Actor, hub: Hub) -> Any:
    """A part of the path. What cannot name anything is `not_found`, as what names nothing."""
    if name == "call_id" and _ROOM_NAME.fullmatch(text):
        return await _call_of(text, command, actor, hub)
    if "\x00" in text or len(text) > 512:
        raise errors.NotFound()
    try:
        return read_text(text, kind)
    except msgspec.ValidationError:
        raise errors.NotFound() from None


async def _call_of(room_name: str, command: Command, actor: Actor, hub: Hub) -> UUID:
    try:
        async with asyncio.timeout(command.deadline_s), hub.db.tenant(actor.tenant_id, actor.user_id) as tx:
            call = await calls.by_room_name(tx, room_name)
    except db_errors.DatabaseUnavailable as error:
        raise errors.DatabaseUnavailable(retry_after_ms=1000) from error
    except TimeoutError as error:
        raise errors.Timeout() from error
    if call is None:
        raise errors.NotFound()
    return call.id


async def _body(request: web.Request) -> dict[str, Any]:
    """The JSON object of the body; an empty body is an empty object."""
    if request.headers.get(hdrs.CONTENT_ENCODING, "identity") != "identity":
        raise errors.UnsupportedMediaType("bodies are not compressed")
    json = hdrs.CONTENT_TYPE in request.headers and request.content_type == "application/json"
    # A foreign page can send a form's types without asking, so these are refused even when they are empty; other
    # types of nothing are harmless, and some clients set one.
    if not json and request.content_type in _FORM_TYPES and hdrs.CONTENT_TYPE in request.headers:
        raise errors.UnsupportedMediaType("bodies are application/json")
    raw = await read_body(request)
    if not raw:
        return {}
    if not json:
        raise errors.UnsupportedMediaType("bodies are application/json")
    try:
        value = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise errors.BadRequest(f"the body is not JSON: {str(error)[:200]}") from None
    if not isinstance(value, dict):
        raise errors.ValidationFailed("the body must be one object", errors=[FieldError("", "expected an object")])
    return value


def _query(request: web.Request, name: str, kinds: Mapping[str, Any], message: type[Any]) -> Any:
    """One query parameter as its field's type. A list may be repeated, or comma-separated."""
    if name not in kinds:
        raise unknown(name)
    values = request.query.getall(name)
    kind = kinds[name]
    given: Any = values[0]
    if _mentions(kind, list, tuple, set, frozenset):
        given = [part for value in values for part in value.split(",")]
    elif len(values) > 1:
        raise errors.ValidationFailed(f"{name}: given twice", errors=[FieldError(name, "given twice")])
    try:
        return read_text(given, kind)
    except msgspec.ValidationError as error:
        raise invalid(f"{str(error).partition(' - at ')[0]} - at `$.{name}`", message) from None


def kind_given(kind: Any) -> Any:
    """A field's type without its "not there": in a query, `null` is a word of four letters."""
    if get_origin(kind) is Annotated:
        inner, *notes = get_args(kind)
        return Annotated[(kind_given(inner), *notes)]
    if get_origin(kind) in (Union, types.UnionType):
        left = [part for part in get_args(kind) if part not in (types.NoneType, msgspec.UnsetType)]
        return functools.reduce(operator.or_, left)
    return kind


def _mentions(kind: Any, *wanted: type) -> bool:
    """Whether a field may hold one of these, itself or inside."""
    origin = get_origin(kind)
    if (origin or kind) in wanted:
        return True
    parts = get_args(kind)[:1] if origin is Annotated else () if origin is Literal else get_args(kind)
    return any(_mentions(part, *wanted) for part in parts)


def read_text(text: str | list[str], kind: Any) -> Any:
    """Text as a field. Only numbers and claims are read leniently, or `7` would be a time and `null` nothing."""
    return msgspec.convert(text, kind, strict=not _mentions(kind, int, float, bool))


def unknown(name: str) -> errors.ValidationFailed:
    name = name[:200]
    return errors.ValidationFailed(f"{name}: unknown field", errors=[FieldError(name, "unknown field")])


def _op_key(request: web.Request, command: Command) -> str | None:
    key = request.headers.get("Idempotency-Key")
    if key is None or request.method != hdrs.METH_POST or not command.mutates:
        return None
    # The draft writes it as a quoted string; most clients send it bare. Both are the same key.
    key = key[1:-1] if len(key) >= 2 and key[0] == key[-1] == '"' else key
    if not _IDEMPOTENCY_KEY.fullmatch(key):
        raise errors.BadRequest("Idempotency-Key: 1 to 128 visible ASCII characters")
    return f"idem:{key}"


def _if_match(request: web.Request) -> str | None:
    """The quoted tag as it came. `*` asks for nothing that a 404 does not say already."""
    tag = request.headers.get(hdrs.IF_MATCH, "").strip()
    if len(tag) > 256:
        raise errors.BadRequest("If-Match: at most 256 characters")
    return None if tag in ("", "*") else tag


def visitor_of(request: web.Request, trusted: tuple[Network, ...]) -> Visitor:
    # A proxy may append a line of its own: several are one list.
    forwarded_for = ",".join(request.headers.getall("X-Forwarded-For", ()))
    address = client_address(request.remote or "", forwarded_for, trusted)
    early = request.headers.get("Sec-Purpose", request.headers.get("Purpose", ""))
    return Visitor(
        network=network_of(address),
        agent=request.headers.get(hdrs.USER_AGENT, "")[:512],
        referrer=host_of(request.headers.get(hdrs.REFERER, "")),
        opens=request.method != hdrs.METH_HEAD and "prefetch" not in early,
    )


def client_of(request: web.Request) -> str:
    agent = request.headers.get(hdrs.USER_AGENT, "")
    return "".join(char for char in agent[:128] if char.isprintable())


def respond(command: Command, answer: Answer, *, redirects: bool = True) -> web.Response:
    assert command.http is not None
    data = answer.data
    if isinstance(data, msgspec.Raw):
        data = _again(command, data)
    headers = {"Idempotency-Replayed": "true"} if answer.replayed else {}
    etag = getattr(data, "etag", None)
    if isinstance(etag, str) and etag:
        headers[hdrs.ETAG] = etag if etag.endswith('"') else f'"{etag}"'
    if command.http.location is not None:
        headers[hdrs.LOCATION] = _location(command.http.location, data)
    if data is None or command.http.status == 204:
        return web.Response(status=204, headers=headers)
    if command.http.redirect is not None and redirects:
        headers[hdrs.LOCATION] = getattr(data, command.http.redirect)
        return web.Response(status=302, headers=headers)
    return web.Response(
        status=command.http.status,
        body=msgspec.json.encode(data) if command.http.content == "application/json" else data.body,
        content_type=command.http.content,
        headers=headers,
    )


def _again(command: Command, raw: msgspec.Raw) -> Any:
    """A kept answer as its struct, for the headers made of it; as plain JSON where an older version kept it."""
    if bytes(raw) == b"null":
        return None
    try:
        return msgspec.json.decode(raw, type=command.answer)
    except msgspec.ValidationError:
        return msgspec.json.decode(raw)


def _location(template: str, data: Any) -> str:
    """`/rooms/{call_id}` with the answer's fields; `{call.call_id}` reaches into one."""

    def value(match: re.Match[str]) -> str:
        found = data
        for name in match[1].split("."):
            found = found.get(name) if isinstance(found, Mapping) else getattr(found, name)
        return str(found)

    path = re.sub(r"{([\w.]+)}", value, template)
    return path if path.startswith(BASE) else BASE + path
