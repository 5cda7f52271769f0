"""Who may do what: the published table, ownership, and the wall between tenants, for every command there is."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest

from hub.commands import Command
from hub.policy import ROLES, Role
from hub.protocol.errors import HubError, NotFound
from tests.actions.conftest import OTHER_TENANT, Node, Person

HM, H, P = {"host", "moderator"}, {"host"}, {"host", "moderator", "participant"}
ALL: set[str] = set(ROLES)
# The published table: command → the roles that may. What is not here is asked by nobody in a call, or everybody.
TABLE: dict[str, set[str]] = {
    "room:update": HM,
    "room:end": H,
    "room:delete": set(),
    "room:get": ALL,
    "room:leave": ALL,
    "room:sync": ALL,
    "room:events": ALL,
    "participant:list": ALL,
    "participant:update": ALL,
    "participant:set_role": H,
    "participant:edit": H,
    "participant:mute": HM,
    "participant:kick": HM,
    "participant:unban": HM,
    "hand:raise": P,
    "hand:lower": ALL,
    "media:authorize": ALL,
    "media:set": P,
    "data:send": P,
    "lobby:list": HM,
    "lobby:admit": HM,
    "lobby:deny": HM,
    "lobby:admit_one": HM,
    "lobby:deny_one": HM,
}
# Who needs no call, or does not have to be in it.
NO_CALL = {
    *("session:refresh", "session:ping", "session:me", "session:limits", "room:create", "room:list"),
    *("presence:set", "presence:watch", "presence:unwatch", "presence:list"),
    *("contact:list", "contact:get", "contact:add", "contact:update", "contact:remove"),
}
DOORS = {"room:token", "room:join", "lobby:knock", "lobby:cancel"}


def fields_of(name: str, call_id: UUID, target: UUID | str) -> dict[str, Any]:
    """A message that would succeed for whoever may."""
    extra: dict[str, dict[str, Any]] = {
        "room:update": {"name": "Other"},
        "room:sync": {"since": {"epoch": "e", "offset": 0}},
        "room:events": {"since": "e:0"},
        "participant:update": {"display_name": "Me"},
        "participant:set_role": {"participant_id": target, "role": "viewer"},
        "participant:edit": {"participant_id": target, "role": "viewer"},
        "participant:mute": {"participant_id": target, "sources": ["microphone"]},
        "participant:kick": {"participant_id": target},
        "participant:unban": {"user_id": "nobody"},
        "media:set": {"microphone": True, "camera": False, "screen_share": False},
        "data:send": {"topic": "t", "data": "x"},
        "lobby:admit": {"all": True},
        "lobby:deny": {"all": True},
        "lobby:admit_one": {"ticket": target},
        "lobby:deny_one": {"ticket": target},
    }
    return {"call_id": call_id, **extra.get(name, {})}


def test_the_table_names_every_command_about_a_call(hub: Node) -> None:
    named = {command.name for command in hub.dispatcher.commands}
    about_calls = {name for name in named if not name.startswith("admin:")} - NO_CALL - DOORS
    assert about_calls == set(TABLE)


@pytest.mark.parametrize("role", ROLES)
async def test_the_published_table_holds(hub: Node, role: Role) -> None:
    """S-174: each role may what the table says, and is refused the rest with `forbidden`, on sockets and by REST."""
    owner = hub.person("owner")
    for name, may in TABLE.items():
        command = hub.dispatcher.commands.get(name)
        assert command is not None
        for door in ("socket", "rest"):
            if not (command.socket if door == "socket" else command.http):
                continue
            call_id = await owner.room()
            # Somebody new each time: nobody may join that often.
            somebody = hub.person(f"somebody of {call_id}").socket()
            target = (await somebody.join(call_id, media=False)).self.participant_id
            actor = hub.person(f"actor of {call_id}")
            socket = actor.socket()
            mine = (await socket.join(call_id, media=False)).self.participant_id
            if role != "participant":
                # An admin each: one person may not do it as often as this test does.
                admin = hub.person(f"admin-{uuid4()}", admin=True)
                await admin.do("participant:edit", call_id=call_id, participant_id=mine, role=role)
            outcome = await outcome_of(hub, actor, command, fields_of(name, call_id, target), socket, door)
            assert (outcome == "forbidden") == (role not in may), f"{role} {name} by {door}: {outcome}"
            assert outcome != "internal", f"{role} {name} by {door}"


async def outcome_of(hub: Node, actor: Person, command: Command, fields: dict[str, Any], socket: Any, door: str) -> str:
    try:
        await hub.do(actor.actor, command.name, fields, socket=socket if door == "socket" else None)
    except HubError as error:
        return error.code
    return "ok"


async def test_a_foreign_user_changes_nothing(hub: Node) -> None:
    """S-039, S-173: every command about a call, by somebody of the tenant who has no part in it."""
    owner = hub.person("owner")
    call_id = await owner.room()
    target = (await owner.socket().join(call_id)).self.participant_id
    before = await state(hub)
    stranger = hub.person("stranger")
    socket = stranger.socket()
    for name in TABLE:
        command = hub.dispatcher.commands.get(name)
        assert command is not None
        fields = fields_of(name, call_id, target)
        assert await outcome_of(hub, stranger, command, fields, socket, "socket") == "not_found", name
    assert await state(hub) == before


async def test_a_foreign_tenants_call_is_a_missing_one(hub: Node) -> None:
    """Every command that names a call, by another tenant's user and admin: byte for byte the same as for no call."""
    owner = hub.person("owner")
    call_id = await owner.room()
    target = (await owner.socket().join(call_id)).self.participant_id
    before = await state(hub)
    for eve in (hub.person("eve", tenant=OTHER_TENANT), hub.person("eva", tenant=OTHER_TENANT, admin=True)):
        for name in [*TABLE, *DOORS, "admin:end_room"]:
            for asked in (call_id, uuid4()):
                with pytest.raises(HubError) as refused:
                    await hub.do(eve.actor, name, fields_of(name, asked, target), socket=eve.socket())
                if name == "admin:end_room" and not eve.actor.admin:
                    assert refused.value.code == "forbidden"
                    continue
                assert refused.value.problem() == NotFound().problem(), name
    assert await state(hub) == before
    assert (await hub.person("eve", tenant=OTHER_TENANT).do("room:list")).items == []


async def test_an_admin_of_the_tenant_acts_as_host(hub: Node) -> None:
    call_id = await hub.person("owner").room()
    admin = hub.person("boss", admin=True)
    assert (await admin.do("room:update", call_id=call_id, name="Mine")).call.name == "Mine"
    assert (await admin.do("room:end", call_id=call_id)).call.status == "ended"


async def test_a_feature_that_is_off_is_off_for_the_host(hub: Node) -> None:
    ann = hub.person("ann")
    call_id = await ann.room(screen_sharing_enabled=False)
    socket = ann.socket()
    await socket.join(call_id)
    ack = await socket.ack("media:set", call_id=call_id, microphone=False, camera=False, screen_share=True)
    assert ack.error is not None
    assert ack.error.code == "forbidden"


async def state(hub: Node) -> Any:
    calls = await hub.rows("SELECT * FROM calls ORDER BY id")
    people = await hub.rows("SELECT * FROM call_participants ORDER BY id")
    return msgspec.json.encode([[dict(row) for row in rows] for rows in (calls, people)])
