"""The one road of a command, from a socket or from REST: look up → limit → decode → claim → permit → run → answer.

Whatever happens, the caller gets an answer: the command's own, or a refusal with a code. What escapes an action and is
no refusal is a bug: logged with its traceback, answered as `internal`.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec
import structlog

from db import errors as db_errors
from db import idempotency
from hub import metrics
from hub.commands import Command, Commands
from hub.context import TELL_S, Context, Hub, Member
from hub.eager import Rest, bounded, within
from hub.policy import Permission
from hub.protocol import errors
from hub.protocol.errors import FieldError, HubError, Problem
from hub.protocol.fields import IN_WORDS
from hub.protocol.plain import closed, loaded, plain
from hub.state.bucket import Bucket
from storage import errors as storage_errors

log = structlog.get_logger("hub.dispatch")
# Asked before a line is put together that nobody wants.
_level = logging.getLogger("hub.dispatch")

Authorize = Callable[[Context, UUID, Permission | None], Awaitable[Member]]
"""The actor as a member of the call, allowed to do that; raises NotFound, NotInRoom, Banned or Forbidden."""

# A command that is in flight elsewhere under the same op_id is waited for this long, then `timeout` (retryable).
_IN_FLIGHT_S = 2.0
_BUCKETS = 20_000


class Ack(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a socket command is answered with. `data` is the answer's struct, or its JSON where it is a replay."""

    ok: bool = msgspec.field()
    data: Any = None
    error: Problem | None = None
    replayed: bool = False


class Answer(msgspec.Struct, frozen=True):
    """`replayed`: it is the JSON of the answer of the first time."""

    data: Any
    replayed: bool = False


class Dispatcher:
    """Runs declared commands. One per node; it owns nothing but the node-local rate buckets."""

    def __init__(self, commands: Commands, hub: Hub, authorize: Authorize) -> None:
        self.commands = commands
        self._hub = hub
        self._authorize = authorize
        self._by_name = {command.name: command for command in commands}
        self._buckets: OrderedDict[tuple[int, str, str], Bucket] = OrderedDict()
        # Commands that are decided and whose callers hung up.
        self._alone: set[asyncio.Task[Answer]] = set()
        # Of commands whose JSON can become the message without becoming a dict before.
        self._decoders = {
            command.name: msgspec.json.Decoder(command.message) for command in commands if closed(command.message)
        }
        # Commands that anybody may give, and whose rate is counted here.
        self._at_once = frozenset(
            command.name for command in commands if command.needs in ("public", "anyone") and not command.rate.shared
        )

    async def ack(self, ctx: Context, name: str, payload: Any) -> Ack:
        """Run a socket command. Never raises a refusal: it comes back as `Ack(ok=False, error=…)`.

        `payload`: decoded, or the JSON itself, valid and not nested too deep, as `msgspec.Raw`. Where its time is
        over and what it decided is still being told, `ctx.overdue` is called, once, before this returns.
        """
        command = self._by_name.get(name)
        if command is None or not command.socket or ctx.namespace not in command.namespaces:
            return Ack(
                ok=False, error=errors.UnknownEvent(f"there is no command {name[:64]!r}").problem(ctx.request_id)
            )
        started = time.perf_counter()
        try:
            # The same as `within`, and a coroutine shorter: most commands do not wait.
            work = self._begin(ctx, command, payload)
            try:
                waits_for = work.send(None)
            except StopIteration as done:
                data = done.value
            else:
                # The log has a deadline of its own, and a timer for each event costs more than the event.
                rest = Rest(work, waits_for) if ctx.telling else None
                data = await (rest or bounded(command.deadline_s, work, waits_for, ctx.time_to_tell))
        except Exception as error:
            refusal = _refusal(ctx, command, error)
            _record(ctx, command, payload, started, "socket", refusal.code)
            return Ack(ok=False, error=refusal.problem(ctx.request_id))
        _record(ctx, command, payload, started, "socket", "ok")
        if type(data) is Answer:
            return Ack(ok=True, data=data.data, replayed=data.replayed)
        return Ack(ok=True, data=data)

    async def run(self, ctx: Context, command: Command, payload: Mapping[str, Any], *, door: str) -> Answer:
        """Run `command` for `ctx.actor`. Raises a HubError for any refusal, bugs included (`internal`)."""
        started = time.perf_counter()
        try:
            answer = await within(command.deadline_s, self._run(ctx, command, payload), ctx.time_to_tell)
        except Exception as error:
            refusal = _refusal(ctx, command, error)
            _record(ctx, command, payload, started, door, refusal.code)
            if refusal is error:
                raise
            raise refusal from error
        _record(ctx, command, payload, started, door, "ok")
        return answer

    async def run_for(self, ctx: Context, command: Command, payload: Mapping[str, Any], *, door: str) -> Answer:
        """The same for a caller who may be cancelled: what is undecided ends with them, what is decided goes on."""
        work = asyncio.ensure_future(self.run(ctx, command, payload, door=door))
        overdue = asyncio.Event()
        ctx.overdue = overdue.set
        waiting = asyncio.ensure_future(overdue.wait())
        try:
            await asyncio.wait((work, waiting), return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                self._leave(work)
                raise too_late(command)
            return work.result()
        except asyncio.CancelledError:
            if ctx.decided:
                self._leave(work)
            else:
                work.cancel()
            raise
        finally:
            waiting.cancel()

    def _leave(self, work: asyncio.Task[Answer]) -> None:
        if not work.done():
            self._alone.add(work)
            work.add_done_callback(self._left)

    def _left(self, work: asyncio.Task[Answer]) -> None:
        self._alone.discard(work)
        if not work.cancelled():
            # Nobody waits for it, and it is logged.
            work.exception()

    async def finish(self) -> None:
        """Until those are done that nobody waits for any more."""
        if self._alone:
            await asyncio.wait(self._alone, timeout=TELL_S)

    def _begin(self, ctx: Context, command: Command, payload: Any) -> Coroutine[Any, Any, Any]:
        """What there is to do for a command: where nobody has to be asked first, the action itself. An Answer, or the
        action's own answer."""
        if command.name not in self._at_once or not isinstance(payload, msgspec.Raw):
            return self._run(ctx, command, payload)
        self._limit(ctx, command)
        message = self._directly(ctx, command, payload)
        if message is not None:
            return command.run(ctx, message)
        return self._decoded(ctx, command, payload)

    async def _run(self, ctx: Context, command: Command, payload: Mapping[str, Any] | msgspec.Raw) -> Answer:
        if ctx.actor.nobody and command.needs != "public":
            # A door asks for a token before it comes to this; it holds for doors that do not.
            raise errors.Unauthenticated()
        if command.rate.shared:
            wait_ms = await self._shared_wait(ctx, command)
            if wait_ms:
                raise _too_often(command, wait_ms)
        else:
            self._limit(ctx, command)
        if isinstance(payload, msgspec.Raw):
            message = self._directly(ctx, command, payload)
            if message is not None:
                await self._permit(ctx, command, message)
                return Answer(await command.run(ctx, message))
        return await self._decoded(ctx, command, payload)

    async def _decoded(self, ctx: Context, command: Command, payload: Mapping[str, Any] | msgspec.Raw) -> Answer:
        if isinstance(payload, msgspec.Raw):
            payload = _loaded(payload)
        if not isinstance(payload, Mapping):
            raise errors.ValidationFailed(
                "the payload must be one object", errors=[FieldError("", "expected an object")]
            )
        fields = plain(payload)
        op_id = fields.pop("op_id", None)
        fields.pop("traceparent", None)
        if command.mutates and op_id is not None:
            ctx.op_key = f"op:{_uuid('op_id', op_id)}"
        message = decode(command.message, fields)
        if ctx.op_key is None or not command.mutates:
            await self._permit(ctx, command, message)
            return Answer(await command.run(ctx, message))
        return await self._once(ctx, command, fields, message)

    def _directly(self, ctx: Context, command: Command, payload: msgspec.Raw) -> Any:
        """The message, or None where there is more to it: an op_id, a number written as 2.0, an error to be told."""
        decoder = self._decoders.get(command.name)
        # A NUL can only be written like that.
        if decoder is None or ctx.op_key is not None or b"\\u00" in bytes(payload):
            return None
        try:
            return decoder.decode(payload)
        except msgspec.DecodeError:
            return None

    async def _shared_wait(self, ctx: Context, command: Command) -> int:
        key = f"{command.name}:{ctx.actor.tenant_id}:{_who(ctx, command)}"
        verdict = await self._hub.limits.allow(key, command.rate.times, command.rate.per_s)
        return 0 if verdict.allowed else verdict.retry_after_ms

    def _limit(self, ctx: Context, command: Command) -> None:
        """Count one use. Raises RateLimited."""
        key, buckets = (ctx.actor.tenant_id.int, _who(ctx, command), command.name), self._buckets
        bucket = buckets.get(key)
        if bucket is None:
            # The oldest bucket goes: one that was not used for 20,000 others is full again, or next to it.
            while len(buckets) >= _BUCKETS:
                buckets.popitem(last=False)
            bucket = buckets[key] = Bucket(command.rate.times, command.rate.per_s)
        else:
            buckets.move_to_end(key)
        wait_ms = bucket.take(time.monotonic())
        if wait_ms:
            raise _too_often(command, wait_ms)

    async def _permit(self, ctx: Context, command: Command, message: Any) -> None:
        match command.needs:
            case "public" | "anyone":
                return
            case "user":
                if ctx.actor.role == "guest":
                    raise errors.Forbidden("guests may not do this")
            case "admin":
                if not ctx.actor.admin:
                    raise errors.Forbidden("this needs an admin")
            case "operator":
                if not ctx.actor.operator:
                    raise errors.Forbidden("this is about all tenants: it needs an operator of the installation")
            case "owner":
                ctx._member = await self._authorize(ctx, message.call_id, None)
                if not ctx.actor.admin and ctx.actor.user_id != ctx.member.call.owner_id:
                    raise errors.Forbidden("only the owner may do this")
            case "member":
                ctx._member = await self._authorize(ctx, message.call_id, None)
            case permission:
                ctx._member = await self._authorize(ctx, message.call_id, permission)

    async def _once(self, ctx: Context, command: Command, fields: Mapping[str, Any], message: Any) -> Answer:
        """Exactly one effect under `ctx.op_key`, on whatever node the repeats arrive.

        A kept answer comes before the permission: what it answers was permitted, and may be why it is no more.
        """
        assert ctx.op_key is not None
        # Without a password: a plain hash of one would lie in the database.
        told = {name: value for name, value in fields.items() if name != "password"}
        digest = hashlib.sha256(msgspec.json.encode([command.name, told], order="deterministic")).digest()
        answer = await self._claim(ctx, command, digest)
        if answer is not None:
            return Answer(msgspec.Raw(answer), replayed=True)
        try:
            await self._permit(ctx, command, message)
            data = await command.run(ctx, message)
        except BaseException:
            # Nothing happened: a repeat may try. Shielded, since the deadline may be what ended it.
            if not ctx.kept:
                await asyncio.shield(self._release(ctx))
            raise
        if not ctx.kept:
            async with ctx.transaction() as tx:
                await ctx.keep(tx, data)
        return Answer(data)

    async def _claim(self, ctx: Context, command: Command, digest: bytes) -> bytes | None:
        """None: ours to run. Bytes: the answer of the one that ran."""
        assert ctx.op_key is not None
        give_up = time.monotonic() + _IN_FLIGHT_S
        while True:
            async with ctx.transaction() as tx:
                claim = await idempotency.claim(
                    tx, ctx.actor.user_id, ctx.op_key, command.name, digest, lease_s=command.deadline_s + 2
                )
            match claim:
                case idempotency.Fresh():
                    return None
                case idempotency.Replay(answer):
                    return answer
                case idempotency.Conflict():
                    raise errors.OpIdConflict()
            if time.monotonic() > give_up:
                raise errors.Timeout("the same op_id is still running", retry_after_ms=1000)
            await asyncio.sleep(0.05)

    async def _release(self, ctx: Context) -> None:
        assert ctx.op_key is not None
        try:
            async with ctx.transaction() as tx:
                await idempotency.release(tx, ctx.actor.user_id, ctx.op_key)
        except db_errors.DatabaseUnavailable:
            # The lease ends by itself.
            log.warning("claim_not_released", request_id=ctx.request_id)


def _too_often(command: Command, wait_ms: int) -> errors.RateLimited:
    rate = command.rate
    return errors.RateLimited(f"{rate.times} {command.name} per {rate.per_s:g} s", retry_after_ms=wait_ms)


def _who(ctx: Context, command: Command) -> str:
    """Whose uses are counted together: the public is told apart by where it is."""
    return ctx.visitor.network if command.needs == "public" else ctx.actor.user_id


def decode(message: type[Any], fields: Mapping[str, Any]) -> Any:
    """`fields` as a `message` struct. Raises ValidationFailed that names the field."""
    try:
        found = msgspec.convert(fields, message)
    except msgspec.ValidationError as error:
        raise invalid(str(error), message) from None
    for field in msgspec.structs.fields(found):
        at = getattr(found, field.name)
        if isinstance(at, datetime):
            _demand_calendar(field.encode_name, at)
    return found


def _demand_calendar(path: str, at: datetime) -> None:
    try:
        at.astimezone(UTC)
    except OverflowError:
        # Within the calendar where it was written, and beyond it in UTC.
        text = "beyond the calendar"
        raise errors.ValidationFailed(f"{path}: {text}", errors=[FieldError(path, text)]) from None


def too_late(command: Command) -> errors.Timeout:
    return errors.Timeout(f"{command.name} took longer than {command.deadline_s:g} s")


def _loaded(payload: msgspec.Raw) -> Any:
    try:
        return loaded(payload)
    except msgspec.ValidationError as error:
        # A number that not even Python holds.
        raise invalid(str(error)) from None
    except (ValueError, RecursionError):
        raise errors.ValidationFailed("the payload is not JSON", errors=[FieldError("", "not JSON")]) from None


def _refusal(ctx: Context, command: Command, error: Exception) -> HubError:
    """What the caller is told of `error`."""
    match error:
        case HubError():
            return error
        case db_errors.DatabaseUnavailable():
            return errors.DatabaseUnavailable(retry_after_ms=1000)
        case storage_errors.StorageUnavailable():
            return errors.StorageUnavailable(retry_after_ms=1000)
        case storage_errors.StorageRefused():
            # A matter of configuration, which only an operator can help.
            log.error("store_refuses", command=command.name, error=str(error)[:200], request_id=ctx.request_id)
            return errors.StorageUnavailable(retry_after_ms=10_000)
        case TimeoutError():
            return too_late(command)
    log.exception("command_crashed", command=command.name, request_id=ctx.request_id)
    return errors.Internal()


def _record(
    ctx: Context, command: Command, payload: Mapping[str, Any] | msgspec.Raw, started: float, door: str, outcome: str
) -> None:
    elapsed = time.perf_counter() - started
    metrics.COMMANDS.add(elapsed, (command.name, door, outcome))
    if _level.isEnabledFor(logging.INFO):
        log.info(
            "command",
            command=command.name,
            door=door,
            outcome=outcome,
            ms=round(elapsed * 1000, 2),
            request_id=ctx.request_id,
            session_id=ctx.session.id if ctx.session else None,
            call_id=_call_id(payload),
            user_id=ctx.actor.user_id,
        )


def _call_id(payload: Mapping[str, Any] | msgspec.Raw) -> str | None:
    """For the log."""
    try:
        fields = msgspec.json.decode(payload) if isinstance(payload, msgspec.Raw) else payload
    except ValueError:
        return None
    return str(fields.get("call_id") or "")[:36] or None if isinstance(fields, Mapping) else None


_AT = re.compile(r"^(?P<text>.*?)(?: - at `\$(?P<path>.*)`)?$", re.DOTALL)
_NAMED = re.compile(r"(?:missing required|unknown) field `(?P<field>[^`]*)`")


def invalid(text: str, message: type[Any] | None = None) -> errors.ValidationFailed:
    """The refusal for one of msgspec's messages, as in "Expected `int`, got `str` - at `$.max_participants`".

    `message`: what was to be decoded, to name what its field may be.
    """
    match = _AT.match(text)
    assert match is not None
    path, reason = (match["path"] or "").lstrip("."), match["text"].replace("Object", "object")
    named = _NAMED.search(reason)
    if named:
        path = f"{path}.{named['field']}".lstrip(".")
        reason = "unknown field" if "unknown" in reason else "required"
    elif "matching regex" in reason:
        words = (words for pattern, words in IN_WORDS.items() if repr(pattern) in reason)
        reason = next(words, "has characters that are not allowed")
    elif reason.startswith("Invalid enum value") and message is not None:
        reason = f"one of {', '.join(_choices(message, path))}"
    path = path[:200]
    return errors.ValidationFailed(f"{path}: {reason}" if path else reason, errors=[FieldError(path, reason)])


def _choices(message: type[Any], path: str) -> list[str]:
    """The words that the field at `path` may be."""
    kinds = [msgspec.inspect.type_info(message)]
    for name in re.findall(r"[^.\[\]]+", path):
        kinds = [part for kind in kinds for part in _parts(kind, name)]
    while kinds and not any(isinstance(kind, msgspec.inspect.LiteralType) for kind in kinds):
        kinds = [part for kind in kinds for part in _parts(kind, "")]
    literals = [kind for kind in kinds if isinstance(kind, msgspec.inspect.LiteralType)]
    return [str(value) for kind in literals for value in kind.values]


def _parts(kind: msgspec.inspect.Type, name: str) -> list[msgspec.inspect.Type]:
    """The kinds of what `kind` holds under `name`, or of its items."""
    match kind:
        case msgspec.inspect.StructType():
            held = [field.type for field in kind.fields if field.encode_name == name]
        case msgspec.inspect.CollectionType():
            held = [kind.item_type]
        case msgspec.inspect.DictType():
            held = [kind.value_type]
        case _:
            return []
    return [plain for each in held for plain in _opened(each)]


def _opened(kind: msgspec.inspect.Type) -> list[msgspec.inspect.Type]:
    if isinstance(kind, msgspec.inspect.Metadata):
        return _opened(kind.type)
    if isinstance(kind, msgspec.inspect.UnionType):
        return [each for part in kind.types for each in _opened(part)]
    return [kind]


def _uuid(field: str, value: object) -> UUID:
    try:
        return UUID(str(value))
    except ValueError:
        raise errors.ValidationFailed(
            f"{field}: expected a UUID", errors=[FieldError(field, "expected a UUID")]
        ) from None
