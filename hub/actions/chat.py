"""Chat: messages to everybody in a call or to one of them, and what is shown for a moment only."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from db import audit, calls, chat, participants
from db.calls import Call
from db.chat import Message
from db.participants import Participant
from db.pool import Transaction
from hub.actions import members, pages
from hub.commands import Commands, Empty, Event, Http, Rate
from hub.context import Context, Member
from hub.policy import Permissions
from hub.protocol import errors
from hub.protocol.chat import (
    ChatDeleted,
    ChatPosted,
    DeleteMessage,
    ListMessages,
    MessageAnswer,
    MessagePage,
    MessageView,
    PostMessage,
    ReactionSent,
    Recipient,
    SendReaction,
    SetTyping,
    TypingChanged,
)
from hub.protocol.errors import FieldError
from hub.protocol.names import shows

commands = Commands()

# What the answer to `room:join` brings along: enough to read on, and never a frame of megabytes.
_RECENT = 50
_RECENT_CHARS = 32_768


@commands.add(
    "chat:post",
    needs="chat_post",
    rate=Rate(30, per_s=15),
    emits=(ChatPosted,),
    http=Http("POST", "/rooms/{call_id}/messages"),
)
async def post(ctx: Context, message: PostMessage) -> MessageAnswer:
    """Write to everybody in the call, or to one person: then only the two of you ever see it."""
    if not shows(message.text) and not message.file_ids:
        raise _invalid("text", "nothing to be seen")
    async with ctx.deciding(message.call_id) as tx:
        call, member = await _speaker(ctx, tx, message.call_id)
        to = await _recipient(ctx, tx, call, message.to)
        await _demand_answerable(ctx, tx, message, to)
        await _demand_files(tx, message)
        me = member.participant
        sent = await chat.add(
            tx,
            call.id,
            sender_id=ctx.actor.user_id,
            participant_id=me.id if me else None,
            display_name=(me.display_name if me else None) or ctx.actor.display_name,
            recipient_id=to.user_id if to else None,
            recipient_participant_id=to.id if to else None,
            text=message.text,
            reply_to=message.reply_to,
            file_ids=message.file_ids,
        )
        answer = MessageAnswer(view(sent))
        _tell(ctx, sent, ChatPosted(answer.message))
        await ctx.keep(tx, answer)
    return answer


async def _speaker(ctx: Context, tx: Transaction, call_id: UUID) -> tuple[Call, Member]:
    """The actor under the call's lock: they may have been put out, or the chat closed, a moment ago."""
    call = await calls.lock(tx, call_id)
    if call is None:
        raise errors.NotFound()
    members.demand_open(call)
    mine = ctx.member.participant
    person = await participants.get(tx, call_id, mine.id) if mine else None
    member = members.as_member(ctx.actor, call, person, await members.taken_away(tx, ctx.actor, person))
    if not members.heads(ctx.actor, call):
        members.demand_in_call(member)
    members.demand(member, "chat_post")
    return call, member


async def _recipient(ctx: Context, tx: Transaction, call: Call, wanted: UUID | None) -> Participant | None:
    if wanted is None:
        return None
    person = await participants.get(tx, call.id, wanted)
    if person is None or person.status not in members.IN_CALL:
        raise errors.NotFound("nobody of that id is in the call", details={"to": str(wanted)})
    if person.user_id == ctx.actor.user_id:
        raise _invalid("to", "that is you")
    return person


async def _demand_answerable(ctx: Context, tx: Transaction, message: PostMessage, to: Participant | None) -> None:
    """Whoever answers a direct message to everybody would tell them that there is one."""
    if message.reply_to is None:
        return
    found = await chat.get(tx, message.call_id, message.reply_to)
    if found is None:
        raise errors.NotFound("no such message", details={"reply_to": str(message.reply_to)})
    if found.between is not None and (to is None or found.between != {ctx.actor.user_id, to.user_id}):
        raise _invalid("reply_to", "a direct message is answered between the same two")


async def _demand_files(tx: Transaction, message: PostMessage) -> None:
    if not message.file_ids:
        return
    missing = set(message.file_ids) - await chat.files_there(tx, message.call_id, message.file_ids)
    if missing:
        raise errors.NotFound("no such file in this call", details={"file_ids": sorted(map(str, missing))})


@commands.add(
    "chat:delete",
    needs="member",
    rate=Rate(30, per_s=15),
    emits=(ChatDeleted,),
    http=Http("DELETE", "/rooms/{call_id}/messages/{message_id}", 204),
)
async def delete(ctx: Context, message: DeleteMessage) -> Empty:
    """Delete a message of yours; as a moderator anybody's that you see. It is gone for good."""
    if not members.heads(ctx.actor, ctx.member.call):
        members.demand_in_call(ctx.member)
    async with ctx.deciding(message.call_id) as tx:
        if await calls.lock(tx, message.call_id) is None:
            raise errors.NotFound()
        found = await chat.get(tx, message.call_id, message.message_id)
        if found is None:
            raise errors.NotFound()
        if found.sender_id != ctx.actor.user_id:
            members.demand(ctx.member, "chat_delete")
            await _note(ctx, tx, found)
        await chat.delete(tx, message.call_id, found.id)
        _tell(ctx, found, ChatDeleted(found.id))
        await ctx.keep(tx, Empty())
    return Empty()


async def _note(ctx: Context, tx: Transaction, found: Message) -> None:
    await audit.add(
        tx,
        actor=ctx.actor.user_id,
        action="chat:delete",
        target_type="message",
        target_id=str(found.id),
        reason=None,
        details={"call_id": str(found.call_id), "user_id": found.sender_id, "sent_at": found.sent_at.isoformat()},
    )


@commands.add(
    "chat:list",
    needs="chat_read",
    http=Http("GET", "/rooms/{call_id}/messages"),
    rate=Rate(30, per_s=10),
    mutates=False,
)
async def list_(ctx: Context, message: ListMessages) -> MessagePage:
    """What was written before, newest first: to everybody, to you, and by you."""
    async with ctx.transaction() as tx:
        found = await chat.page(tx, message.call_id, after=pages.row(message.cursor), limit=message.limit + 1)
    return _page(found, message.limit)


async def recent(tx: Transaction, call_id: UUID, may: Permissions) -> MessagePage:
    """For whoever comes in: the newest messages, the oldest of them first, and the cursor to what is older."""
    if "chat_read" not in may:
        return MessagePage([], None)
    found = await chat.page(tx, call_id, limit=_RECENT + 1)
    page = _page(found, _fitting(found[:_RECENT]))
    return MessagePage(page.items[::-1], page.next_cursor)


def _fitting(found: Sequence[Message]) -> int:
    """How many of them, from the first, are short enough together."""
    chars = 0
    for count, message in enumerate(found):
        chars += len(message.text)
        if chars > _RECENT_CHARS:
            return count
    return len(found)


def _page(found: Sequence[Message], limit: int) -> MessagePage:
    items, more = found[:limit], len(found) > limit
    return MessagePage(
        items=[view(message) for message in items],
        next_cursor=pages.cursor(items[-1].sent_at, items[-1].id) if more else None,
    )


def view(message: Message) -> MessageView:
    to = None
    if message.recipient_id is not None and message.recipient_participant_id is not None:
        to = Recipient(message.recipient_participant_id, message.recipient_id)
    return MessageView(
        message_id=message.id,
        call_id=message.call_id,
        participant_id=message.participant_id,
        user_id=message.sender_id,
        display_name=message.display_name,
        text=message.text,
        reply_to=message.reply_to,
        file_ids=message.file_ids,
        to=to,
        sent_at=message.sent_at,
    )


def _tell(ctx: Context, message: Message, event: Event) -> None:
    """The room; of what is between two people, only those two."""
    if message.between is None:
        ctx.due(message.call_id, [event])
    else:
        ctx.due_to_users((user_id, event) for user_id in sorted(message.between))


@commands.add("chat:typing", needs="chat_post", rate=Rate(10, per_s=5), emits=(TypingChanged,), mutates=False)
async def typing(ctx: Context, message: SetTyping) -> Empty:
    """Say that you write, or no longer do. Everybody but you sees it; nothing is kept."""
    mine = members.demand_in_call(ctx.member)
    event = TypingChanged(mine.id, mine.user_id, message.typing)
    await ctx.hub.bus.to_room(
        message.call_id,
        event.name,
        event,
        recorded=False,
        by=ctx.by(),
        skip_session=ctx.session.id if ctx.session else None,
    )
    return Empty()


@commands.add("reaction:send", needs="reaction_send", rate=Rate(20, per_s=10), emits=(ReactionSent,), mutates=False)
async def react(ctx: Context, message: SendReaction) -> Empty:
    """Show everybody an emoji for a moment."""
    mine = members.demand_in_call(ctx.member)
    await ctx.tell(message.call_id, ReactionSent(mine.id, mine.user_id, message.emoji))
    return Empty()


def _invalid(path: str, text: str) -> errors.ValidationFailed:
    return errors.ValidationFailed(f"{path}: {text}", errors=[FieldError(path, text)])
