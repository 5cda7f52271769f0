"""Who may do what: the published table, ownership, and the wall between tenants, for every command there is.

Commands are found, not listed: a new one is under these tests from the day it is declared.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest

from hub.actions import all_commands
from hub.actions.members import authorize
from hub.commands import CALLERS, Caller, Command, Commands, callers
from hub.contract.parts import components_of, schema_name
from hub.dispatch import Dispatcher
from hub.policy import PERMISSIONS, ROLE_PERMISSIONS, ROLES, Role
from hub.protocol.errors import HubError, NotFound
from hub.samples import sample
from tests.actions.conftest import OTHER_TENANT, Node, Person, Socket

COMMANDS = all_commands()
DOCS = Path(__file__).parents[2] / "docs"
# Of the roles: what is theirs, and not that of the role below. The same words as in the contract.
ADDED: dict[Role, set[str]] = {
    "viewer": {"chat_read", "file_download"},
    "participant": {
        *("chat_post", "file_send", "hand_raise", "reaction_send", "invite_send"),
        *("publish_microphone", "publish_camera", "publish_screen_share"),
    },
    "moderator": {
        *("lobby_admit", "participant_mute", "participant_kick", "chat_delete", "room_update", "recording_control"),
    },
    "host": {"participant_set_role", "room_end"},
}
# What commands for every member ask inside, by what is said: who of the roles may.
FINER: dict[str, tuple[str, dict[str, Any], Collection[str]]] = {
    "lower another's hand": ("hand:lower", {"participant_id": "other"}, {"moderator", "host"}),
    "lower all hands": ("hand:lower", {"all": True}, {"moderator", "host"}),
    "lower the own hand": ("hand:lower", {}, set(ROLES)),
    "delete another's message": ("chat:delete", {"message_id": "message"}, {"moderator", "host"}),
    "rename another": ("participant:edit", {"participant_id": "other", "display_name": "X"}, set()),
    "give a role": ("participant:edit", {"participant_id": "other", "role": "viewer"}, {"host"}),
    "rename oneself": ("participant:edit", {"participant_id": "self", "display_name": "X"}, set(ROLES)),
    "publish": ("media:set", {"microphone": True, "camera": True, "screen_share": True}, set(ROLES) - {"viewer"}),
    "publish nothing": ("media:set", {"microphone": False, "camera": False, "screen_share": False}, set(ROLES)),
}


class Reached(HubError):
    """Past the gate: where the action begins."""

    code = "reached"


async def _reached(ctx: object, message: object) -> None:
    raise Reached()


def gates() -> Commands:
    """Every command as it is declared, with nothing behind the gate."""
    table = Commands()
    for command in COMMANDS:
        table._insert(msgspec.structs.replace(command, run=_reached))
    return table


def example(command: Command, **fields: Any) -> dict[str, Any]:
    """A message that decodes, about that call and these people."""
    schemas = components_of([command.message])
    made: dict[str, Any] = sample(schemas[schema_name(command.message)], schemas)
    # A list may be of a call, or of none: here it is always of one.
    named = made.keys() | ({"call_id"} & set(command.message.__struct_fields__))
    return {**made, **{name: value for name, value in fields.items() if name in named}}


def published() -> dict[str, dict[str, set[str]]]:
    """The table in the documents: by door and command, who may call it."""
    openapi, asyncapi = (msgspec.json.decode((DOCS / f"{name}.json").read_bytes()) for name in ("openapi", "asyncapi"))
    operations = [verb for path in openapi["paths"].values() for verb in path.values() if "x-command" in verb]
    sockets = asyncapi["operations"]
    return {
        "rest": {verb["x-command"]: set(verb["x-callers"]) for verb in operations},
        "socket": {
            command.name: set(sockets[command.name.replace(":", "_")]["x-callers"])
            for command in COMMANDS
            if command.socket
        },
    }


def test_roles_have_the_permissions_of_the_contract() -> None:
    """S-174: each role has what the one below has, and more."""
    below: frozenset[str] = frozenset()
    for role in ROLES:
        assert ROLE_PERMISSIONS[role] - below == ADDED[role]
        assert ROLE_PERMISSIONS[role] > below
        below = ROLE_PERMISSIONS[role]
    assert below == set(PERMISSIONS)


async def cast(hub: Node) -> tuple[UUID, dict[Caller, Person], dict[Caller, Socket], UUID]:
    """A call, one caller of each kind with a socket, and somebody else who is in the call."""
    owner = hub.person("the-owner")
    call_id = await owner.room(lobby_enabled=True)
    people: dict[Caller, Person] = {
        "guest": hub.person("guest:1", guest_of=call_id, role="moderator", approval=True),
        "user": hub.person("a-stranger"),
        "owner": owner,
        "admin": hub.person("an-admin", admin=True),
        "operator": hub.person("an-operator", operator=True),
        **{role: hub.person(f"the-{role}") for role in ROLES},
    }
    sockets = {name: person.socket() for name, person in people.items()}
    # Both wait at the door, which gives them no part in what is behind it.
    for name in ("guest", "user"):
        await sockets[name].do("lobby:knock", call_id=call_id)
    await hub.rows("UPDATE calls SET lobby_enabled = false WHERE id = $1", call_id)
    for name in ROLES:
        await sockets[name].join(call_id, media=False)
        await hub.rows("UPDATE call_participants SET role = $1 WHERE user_id = $2", name, people[name].id)
    other = (await hub.person("another").socket().join(call_id, media=False)).self.participant_id
    return call_id, people, sockets, other


async def test_the_published_table_holds_for_every_command(hub: Node) -> None:
    """S-174: every kind of caller at the gate of every command, by each of its doors: in, or refused with the code of
    what they may know."""
    call_id, people, sockets, other = await cast(hub)
    dispatcher, table = Dispatcher(gates(), hub, authorize), published()
    asked = 0
    for command in dispatcher.commands:
        about_a_call = command.needs in (*PERMISSIONS, "member", "owner")
        fields = example(command, call_id=str(call_id), participant_id=str(other))
        for caller in CALLERS:
            outside = about_a_call and caller in ("guest", "user")
            refusal = "not_found" if outside else "forbidden"
            for door in ("socket", "rest"):
                if command.name not in table[door]:
                    continue
                may = caller in table[door][command.name]
                outcome = await at_the_gate(hub, dispatcher, command, fields, people[caller], sockets[caller], door)
                assert outcome == ("reached" if may else refusal), f"{caller} {command.name} by {door}"
                asked += 1
    assert asked > len(COMMANDS) * len(CALLERS)
    assert {command.name for command in COMMANDS} == set(table["socket"]) | set(table["rest"])


async def at_the_gate(
    hub: Node,
    dispatcher: Dispatcher,
    command: Command,
    fields: Mapping[str, Any],
    person: Person,
    socket: Socket,
    door: str,
) -> str:
    ctx = hub.context(person.actor, socket if door == "socket" else None)
    ctx.namespace = command.namespaces[0]
    if door == "socket":
        ack = await dispatcher.ack(ctx, command.name, fields)
        return ack.error.code if ack.error else "ok"
    try:
        await dispatcher.run(ctx, command, fields, door=door)
    except HubError as error:
        return error.code
    return "ok"


def test_the_documents_have_the_table_of_the_code() -> None:
    for door in published().values():
        for name, who in door.items():
            command = COMMANDS.get(name)
            assert command is not None
            assert who == set(callers(command.needs)), name


@pytest.mark.parametrize("role", ROLES)
async def test_what_a_command_asks_beyond_its_gate(hub: Node, role: Role) -> None:
    """S-174: the same command, with what is not everybody's to say."""
    call_id, people, sockets, other = await cast(hub)
    message = (await sockets["participant"].do("chat:post", call_id=call_id, text="mine")).message
    if role == "participant":
        message = (await sockets["host"].do("chat:post", call_id=call_id, text="the host's")).message
    own = sockets[role].rooms[call_id]
    said = {"other": other, "self": own, "message": message.message_id}
    for what, (name, fields, may) in FINER.items():
        command = COMMANDS.get(name)
        assert command is not None
        payload = {"call_id": call_id, **{key: said.get(str(value), value) for key, value in fields.items()}}
        door = "socket" if command.socket else "rest"
        outcome = await outcome_of(hub, people[role], command, payload, sockets[role], door)
        assert outcome == ("ok" if role in may else "forbidden"), f"{role}: {what}"


async def outcome_of(
    hub: Node, actor: Person, command: Command, fields: Mapping[str, Any], socket: Any, door: str
) -> str:
    try:
        await hub.do(actor.actor, command.name, fields, socket=socket if door == "socket" else None)
    except HubError as error:
        return error.code
    return "ok"


def about_a_call() -> list[Command]:
    """The commands that name a call, whoever may say them."""
    inside = (*PERMISSIONS, "member", "owner", "anyone")
    return [
        command for command in COMMANDS if command.needs in inside and "call_id" in command.message.__struct_fields__
    ]


async def test_a_foreign_user_changes_nothing(hub: Node) -> None:
    """S-039, S-173: every command for those in a call, by somebody of the tenant who has no part in it."""
    owner = hub.person("owner")
    call_id = await owner.room()
    target = (await owner.socket().join(call_id)).self.participant_id
    before = await state(hub)
    stranger = hub.person("stranger")
    socket = stranger.socket()
    for command in about_a_call():
        if command.needs == "anyone":
            continue
        fields = example(command, call_id=call_id, participant_id=target)
        assert await outcome_of(hub, stranger, command, fields, socket, "socket") == "not_found", command.name
    assert await state(hub) == before


async def test_a_foreign_tenants_call_is_a_missing_one(hub: Node) -> None:
    """Every command that names a call, by another tenant's user and admin: byte for byte the same as for no call."""
    owner = hub.person("owner")
    call_id = await owner.room()
    target = (await owner.socket().join(call_id)).self.participant_id
    before = await state(hub)
    for eve in (hub.person("eve", tenant=OTHER_TENANT), hub.person("eva", tenant=OTHER_TENANT, admin=True)):
        asked_of = about_a_call()
        if eve.actor.admin:
            asked_of += [command for command in COMMANDS if command.name == "admin:end_room"]
        for command in asked_of:
            for asked in (call_id, uuid4()):
                fields = example(command, call_id=asked, participant_id=target)
                with pytest.raises(HubError) as refused:
                    await hub.do(eve.actor, command.name, fields, socket=eve.socket())
                assert refused.value.problem() == NotFound().problem(), command.name
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
