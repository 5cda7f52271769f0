"""Chat: to everybody, to one, what may be referred to, who may take it back, and what is kept of it."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from hub.background.tidy import Tidy
from hub.protocol.errors import Forbidden, HubError, NotFound, NotInRoom, ValidationFailed
from tests.actions.conftest import TENANT, Node, Socket


async def gathered(hub: Node, *names: str, **fields: Any) -> tuple[UUID, list[Socket], list[UUID]]:
    """A call of the first of them, with all of them in it; and who they are there."""
    call_id = await hub.person(names[0]).room(**fields)
    sockets = [await hub.person(name).listening() for name in names]
    ids = [(await socket.join(call_id)).self.participant_id for socket in sockets]
    return call_id, sockets, ids


async def test_a_message_is_heard_by_everybody_and_is_there_for_who_comes_later(hub: Node) -> None:
    call_id, (ann, bob), (hers, _) = await gathered(hub, "ann", "bob")
    sent = (await ann.do("chat:post", call_id=call_id, text="Hello\nall")).message
    for socket in (ann, bob):
        heard = socket.told("chat:posted")[-1]
        assert (heard["message"]["text"], heard["message"]["user_id"]) == ("Hello\nall", "ann")
        assert (heard["call_id"], heard["by"]["participant_id"]) == (str(call_id), str(hers))
        assert heard["offset"] >= 1
    second = (await hub.person("bob").do("chat:post", call_id=call_id, text="Hi", reply_to=sent.message_id)).message
    assert second.reply_to == sent.message_id
    late = await hub.person("cleo").socket().join(call_id)
    assert late.chat == [sent, second]
    assert late.chat_cursor is None
    # And it is in the room's log, for who was away for a moment.
    position = bob.positions[call_id]
    again = await bob.do("room:sync", call_id=call_id, since={"epoch": position.epoch, "offset": position.offset})
    assert [each.event for each in again.missed if each.event == "chat:posted"] == ["chat:posted"] * 2


async def test_pages_are_whole_and_without_doubles_while_people_go_on_writing(hub: Node) -> None:
    """S-193"""
    call_id, (ann, bob), _ = await gathered(hub, "ann", "bob")
    insert = (
        "INSERT INTO chat_messages (tenant_id, call_id, sender_id, display_name, text)"
        " SELECT $1, $2, 'ann', 'Ann', n::text FROM generate_series(1, 70) n"
    )
    await hub.rows(insert, TENANT, call_id)
    joined = await hub.person("cleo").socket().join(call_id)
    assert [message.text for message in joined.chat] == [str(n) for n in range(21, 71)]
    seen, cursor = [message.text for message in joined.chat[::-1]], joined.chat_cursor
    while cursor is not None:
        await ann.do("chat:post", call_id=call_id, text="more")
        page = await bob.do("chat:list", call_id=call_id, limit=7, cursor=cursor)
        seen += [message.text for message in page.items]
        cursor = page.next_cursor
    assert seen == [str(n) for n in range(70, 0, -1)]
    with pytest.raises(HubError) as refused:
        await bob.do("chat:list", call_id=call_id, cursor="bm8")
    assert refused.value.code == "invalid_cursor"


async def test_two_who_write_at_once_are_listed_in_the_order_in_which_it_was_told(hub: Node) -> None:
    call_id, sockets, _ = await gathered(hub, "ann", "bob")
    await asyncio.gather(
        *(s.do("chat:post", call_id=call_id, text=f"{s.actor.user_id}{n}") for s in sockets for n in range(8))
    )
    told = [event["message"]["text"] for event in sockets[0].told("chat:posted")]
    listed = [message.text for message in (await sockets[1].do("chat:list", call_id=call_id)).items]
    assert len(told) == 16
    assert listed == told[::-1]


async def test_what_is_between_two_is_between_two(hub: Node) -> None:
    """Not in the room, not in its log, not in anybody else's list, and not for the host."""
    call_id, (ann, bob, cleo), (_, his, hers) = await gathered(hub, "ann", "bob", "cleo")
    phone = await hub.person("cleo").listening()
    before = await hub.bus.position(call_id)
    sent = (await bob.do("chat:post", call_id=call_id, text="psst", to=hers)).message
    assert (sent.to.user_id, sent.to.participant_id) == ("cleo", hers)
    for socket in (bob, cleo, phone):
        heard = await socket.hears("chat:posted")
        assert heard["message"]["text"] == "psst"
        # Of each person's own log: it is no event of the room.
        assert "call_id" not in heard
    assert await hub.bus.position(call_id) == before
    answer = (await cleo.do("chat:post", call_id=call_id, text="yes?", to=his, reply_to=sent.message_id)).message
    for person, seen in (("bob", 2), ("cleo", 2), ("ann", 0)):
        assert len((await hub.person(person).do("chat:list", call_id=call_id)).items) == seen
    assert (await ann.join(call_id)).chat == []
    assert (await bob.join(call_id)).chat == [sent, answer]
    assert ann.told("chat:posted") == []
    boss = hub.person("boss", admin=True)
    assert (await boss.do("chat:list", call_id=call_id)).items == []
    for outsider in (ann, boss):
        with pytest.raises(NotFound):
            await outsider.do("chat:delete", call_id=call_id, message_id=sent.message_id)
        with pytest.raises(NotFound):
            await outsider.do("chat:post", call_id=call_id, text="I heard", reply_to=sent.message_id)
    # Nobody tells the others by mistake.
    for wrong in ({}, {"to": (await ann.join(call_id)).self.participant_id}):
        with pytest.raises(ValidationFailed):
            await cleo.do("chat:post", call_id=call_id, text="oh", reply_to=sent.message_id, **wrong)
    await bob.do("chat:delete", call_id=call_id, message_id=sent.message_id)
    assert (await phone.hears("chat:deleted"))["message_id"] == str(sent.message_id)
    assert ann.told("chat:deleted") == []


async def test_rows_between_two_are_closed_to_others_in_the_database_too(hub: Node) -> None:
    """S-008: row level security, whatever a statement asks for; nobody writes in another's name, or changes a word."""
    call_id, (_, bob, _), (_, _, hers) = await gathered(hub, "ann", "bob", "cleo")
    await bob.do("chat:post", call_id=call_id, text="psst", to=hers)
    for user_id, seen in (("bob", 1), ("cleo", 1), ("ann", 0), (None, 0)):
        async with hub.db.tenant(TENANT, user_id) as tx:
            assert await tx.fetchval("SELECT count(*) FROM chat_messages") == seen, user_id
    async with hub.db.tenant(TENANT, "ann") as tx:
        assert await tx.execute("DELETE FROM chat_messages") == "DELETE 0"
        for statement in (
            "INSERT INTO chat_messages (call_id, sender_id, display_name, text) SELECT id, 'bob', '', 'x' FROM calls",
            "UPDATE chat_messages SET text = 'x'",
        ):
            with pytest.raises(Exception, match=r"row-level security|permission denied"):
                async with tx.transaction():
                    await tx.execute(statement)


async def test_ones_own_is_ones_own_to_delete_and_a_moderators_all(hub: Node) -> None:
    call_id, (ann, bob, cleo), _ = await gathered(hub, "ann", "bob", "cleo")
    first, second = [(await bob.do("chat:post", call_id=call_id, text=text)).message for text in ("one", "two")]
    with pytest.raises(Forbidden):
        await cleo.do("chat:delete", call_id=call_id, message_id=first.message_id)
    await bob.do("chat:delete", call_id=call_id, message_id=first.message_id)
    assert await hub.value("SELECT count(*) FROM audit_log WHERE action = 'chat:delete'") == 0
    await ann.do("chat:delete", call_id=call_id, message_id=second.message_id)
    row = (await hub.rows("SELECT actor, target_id FROM audit_log WHERE action = 'chat:delete'"))[0]
    assert tuple(row) == ("ann", str(second.message_id))
    assert [event["message_id"] for event in cleo.told("chat:deleted")] == [
        str(each.message_id) for each in (first, second)
    ]
    assert (await cleo.do("chat:list", call_id=call_id)).items == []
    assert await hub.value("SELECT count(*) FROM chat_messages") == 0
    assert await hub.person("ann").refused("chat:delete", call_id=call_id, message_id=first.message_id) == "not_found"


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"text": ""}, "text"),
        ({"text": " \n\u200b"}, "text"),
        ({"text": "x" * 4001}, "text"),
        ({"text": "\u202egnp.exe"}, "text"),
        ({"text": "x", "file_ids": [str(UUID(int=n)) for n in range(11)]}, "file_ids"),
        ({"text": "x", "to": "bob"}, "to"),
        ({"text": "x", "colour": "red"}, "colour"),
    ],
)
async def test_a_bad_message_is_refused_by_field(hub: Node, fields: dict[str, Any], path: str) -> None:
    call_id, (ann,), _ = await gathered(hub, "ann")
    with pytest.raises(ValidationFailed) as refused:
        await ann.do("chat:post", call_id=call_id, **fields)
    assert refused.value.errors[0].path == path
    assert await hub.value("SELECT count(*) FROM chat_messages") == 0


async def test_what_a_message_refers_to_has_to_be_there(hub: Node) -> None:
    call_id, (ann, bob), (hers, _) = await gathered(hub, "ann", "bob")
    add = (
        "INSERT INTO files (tenant_id, call_id, uploader_id, name, size_bytes, mime_type, storage_key, sha256, status,"
        " access_level) VALUES ($1, $2, 'bob', 'f', 1, 'text/plain', $3, repeat('0', 64), $4, $5) RETURNING id"
    )
    ready, pending, private = [
        await hub.value(add, TENANT, call_id, key, status, level)
        for key, status, level in (
            ("k/1", "ready", "call_participants"),
            ("k/2", "pending", "call_participants"),
            ("k/3", "ready", "private"),
        )
    ]
    sent = (await ann.do("chat:post", call_id=call_id, file_ids=[ready])).message
    assert (sent.text, sent.file_ids) == ("", [ready])
    for wrong in ({"file_ids": [ready, pending]}, {"file_ids": [private]}, {"reply_to": uuid4()}, {"to": uuid4()}):
        with pytest.raises(NotFound):
            await ann.do("chat:post", call_id=call_id, text="x", **wrong)
    with pytest.raises(ValidationFailed):
        await ann.do("chat:post", call_id=call_id, text="x", to=hers)
    # Who has left is nobody to write to.
    left = (await bob.join(call_id)).self.participant_id
    await bob.do("room:leave", call_id=call_id)
    with pytest.raises(NotFound):
        await ann.do("chat:post", call_id=call_id, text="x", to=left)


async def test_chat_that_is_off_is_read_and_not_written(hub: Node) -> None:
    """S-075: by the room for everybody, by a link for whoever came by it; viewers read."""
    call_id, (ann, bob), (_, his) = await gathered(hub, "ann", "bob")
    await bob.do("chat:post", call_id=call_id, text="before")
    guest = hub.person("guest:1", guest_of=call_id, denied=("chat_post",)).socket()
    await guest.join(call_id)
    for name, fields in (("chat:post", {"text": "x"}), ("chat:typing", {"typing": True})):
        with pytest.raises(Forbidden):
            await guest.do(name, call_id=call_id, **fields)
    await ann.do("participant:set_role", call_id=call_id, participant_id=his, role="viewer")
    with pytest.raises(Forbidden):
        await bob.do("chat:post", call_id=call_id, text="x")
    await ann.do("room:update", call_id=call_id, features={"chat": False})
    with pytest.raises(Forbidden):
        await ann.do("chat:post", call_id=call_id, text="x")
    for socket in (ann, bob, guest):
        assert [each.text for each in (await socket.do("chat:list", call_id=call_id)).items] == ["before"]
    deaf = hub.person("guest:2", guest_of=call_id, denied=("chat_read",)).socket()
    assert (await deaf.join(call_id)).chat == []
    with pytest.raises(Forbidden):
        await deaf.do("chat:list", call_id=call_id)


async def test_whoever_is_out_neither_reads_nor_writes(hub: Node) -> None:
    """S-178: at once."""
    call_id, (ann, bob, cleo), (_, his, _) = await gathered(hub, "ann", "bob", "cleo")
    await ann.do("participant:kick", call_id=call_id, participant_id=his)
    await cleo.do("room:leave", call_id=call_id)
    for gone in (bob, cleo):
        for name, fields in (("chat:list", {}), ("chat:post", {"text": "x"}), ("reaction:send", {"emoji": "👍"})):
            with pytest.raises(NotInRoom):
                await gone.do(name, call_id=call_id, **fields)
    # The owner reads on, also when it is over.
    await hub.person("ann").do("chat:post", call_id=call_id, text="from outside")
    await ann.do("room:end", call_id=call_id)
    assert len((await hub.person("ann").do("chat:list", call_id=call_id)).items) == 1
    assert await hub.person("ann").refused("chat:post", call_id=call_id, text="x") == "call_ended"


async def test_typing_and_reactions_are_shown_and_not_kept(hub: Node) -> None:
    call_id, (ann, bob), (hers, _) = await gathered(hub, "ann", "bob")
    before = await hub.bus.position(call_id)
    await ann.do("chat:typing", call_id=call_id, typing=True)
    heard = await bob.hears("chat:typing_changed")
    assert (heard["participant_id"], heard["typing"]) == (str(hers), True)
    await bob.do("reaction:send", call_id=call_id, emoji="👩‍👩‍👧‍👦")
    heard = await ann.hears("reaction:sent")
    assert (heard["user_id"], heard["emoji"]) == ("bob", "👩‍👩‍👧‍👦")
    assert ann.told("chat:typing_changed") == []
    assert "offset" not in heard
    assert await hub.bus.position(call_id) == before
    for wrong in ("lol", "", "👍 👍", "\u200d", "👍" * 17):
        ack = await bob.ack("reaction:send", call_id=call_id, emoji=wrong)
        assert ack.error is not None
        assert ack.error.code == "validation_failed", wrong
    acks = [await ann.ack("chat:typing", call_id=call_id, typing=True) for _ in range(15)]
    assert "rate_limited" in {ack.error.code for ack in acks if ack.error}


async def test_the_same_op_id_is_one_message(hub: Node) -> None:
    """S-186"""
    call_id, (ann, bob), _ = await gathered(hub, "ann", "bob")
    fields = {"call_id": call_id, "text": "once", "op_id": uuid4()}
    acks = [await ann.ack("chat:post", **fields) for _ in range(2)]
    assert [ack.replayed for ack in acks] == [False, True]
    assert len(bob.told("chat:posted")) == 1


async def test_messages_go_when_their_time_is_over(hub: Node) -> None:
    call_id, (ann,), _ = await gathered(hub, "ann")
    for text in ("old", "older", "new"):
        await ann.do("chat:post", call_id=call_id, text=text)
    await hub.rows("UPDATE chat_messages SET sent_at = sent_at - interval '91 days' WHERE text LIKE 'old%'")
    assert await Tidy(hub.db, hub.clock, chat_for=timedelta(days=90), quality_for=timedelta(days=30)).once() == 2
    assert [each.text for each in (await ann.do("chat:list", call_id=call_id)).items] == ["new"]


async def test_who_comes_in_gets_no_more_chat_than_they_can_read(hub: Node) -> None:
    call_id, (ann,), _ = await gathered(hub, "ann")
    for n in range(12):
        await ann.do("chat:post", call_id=call_id, text=str(n) * 4000 if n < 10 else "x" * 4000)
    joined = await ann.join(call_id)
    assert len(joined.chat) == 8
    rest = await ann.do("chat:list", call_id=call_id, cursor=joined.chat_cursor)
    assert [each.text[0] for each in rest.items] == list("3210")
