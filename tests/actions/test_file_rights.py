"""Who may do what with a file: the published table, cell by cell, against the hub."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hub.policy import ACCESS_LEVELS, FILE_ACTIONS, ROLES, file_actions, file_matrix, permissions
from hub.protocol.files import FileView
from tests.actions.conftest import OTHER_TENANT, Node, Person
from tests.actions.sharing import brought, shared

COMMANDS = {"see": "file:get", "download": "file:download", "delete": "file:delete"}


async def _people(hub: Node, call_id: Any, ann: Person) -> dict[str, Person]:
    """Somebody of each kind; those with a role are in the call."""
    people = {"host": ann, "outsider": hub.person("olaf")}
    for role in ("viewer", "participant", "moderator"):
        people[role] = hub.person(f"a-{role}")
        joined = await people[role].socket().join(call_id)
        if role != "participant":
            who = joined.self.participant_id
            await ann.do("participant:set_role", call_id=call_id, participant_id=who, role=role)
    return people


async def test_the_published_table_is_what_the_hub_does(hub: Node) -> None:
    """S-057, S-050, S-051, S-052, S-177: role × level × action, every cell."""
    room = await shared(hub)
    published = await room.cat.do("session:policy")
    people = await _people(hub, room.call_id, room.ann)
    assert published.files.keys() == {*people, "uploader"}
    seen: dict[str, dict[str, dict[str, str]]] = {}
    for role in published.files:
        for level in ACCESS_LEVELS:
            cell = seen.setdefault(role, {}).setdefault(level, {})
            for action in FILE_ACTIONS:
                uploader = room.bob
                person = people.get(role, uploader)
                if action == "upload":
                    cell[action] = await _upload(
                        person if role != "uploader" else hub.person("olaf"), room.call_id, level
                    )
                    continue
                file = await brought(uploader, b"abc", call_id=room.call_id, access_level=level)
                cell[action] = await person.refused(COMMANDS[action], file_id=file.file_id)
    assert seen == published.files


async def _upload(person: Person, call_id: Any, level: str) -> str:
    try:
        await brought(person, b"abc", call_id=call_id, access_level=level)
    except Exception as error:
        return str(getattr(error, "code", repr(error)))
    return "ok"


@pytest.mark.parametrize("features", [True, False])
async def test_a_left_participant_has_what_outsiders_have_and_their_own(hub: Node, features: bool) -> None:
    """S-051, S-178: who left, or was put out, has no part in the files of a call that goes on."""
    room = await shared(hub)
    theirs = await brought(room.bob, b"abc", call_id=room.call_id)
    own = await brought(room.cat, b"abc", call_id=room.call_id)
    public = await brought(room.bob, b"abc", call_id=room.call_id, access_level="public")
    assert await room.cat.refused("file:download", file_id=theirs.file_id) == "ok"
    if features:
        await room.cat_socket.do("room:leave", call_id=room.call_id)
    else:
        who = await hub.value("SELECT id FROM call_participants WHERE user_id = 'cat'")
        await room.ann.do("participant:kick", call_id=room.call_id, participant_id=who)
    for name in ("file:get", "file:download"):
        assert await room.cat.refused(name, file_id=theirs.file_id) == "not_found"
        assert await room.cat.refused(name, file_id=own.file_id) == "ok"
        assert await room.cat.refused(name, file_id=public.file_id) == "ok"
    listed = await room.cat.refused("file:list", call_id=room.call_id)
    assert listed == ("ok" if features else "not_found")
    if features:
        items = (await room.cat.do("file:list", call_id=room.call_id)).items
        assert {file.file_id for file in items} == {own.file_id, public.file_id}
    await room.ann.do("room:end", call_id=room.call_id)
    expected = "ok" if features else "not_found"
    assert await room.cat.refused("file:get", file_id=theirs.file_id) == expected


async def test_private_is_private_before_admins_too(hub: Node) -> None:
    """S-052"""
    room = await shared(hub)
    file = await brought(room.bob, b"abc", call_id=room.call_id, access_level="private")
    for person in (room.ann, room.cat, hub.person("root", admin=True), hub.person("op", operator=True)):
        for name in COMMANDS.values():
            assert await person.refused(name, file_id=file.file_id) == "not_found"
        assert (await person.do("file:list", call_id=room.call_id)).items == []
    assert await hub.person("root", admin=True).refused("file:rescan", file_id=file.file_id) == "conflict"
    assert [each.file_id for each in (await room.bob.do("file:list", call_id=room.call_id)).items] == [file.file_id]


async def test_another_tenant_finds_nothing_and_a_guest_only_in_their_call(hub: Node) -> None:
    """S-126, S-173: reading and changing, by every command that names a file."""
    room = await shared(hub)
    file: FileView = await brought(room.bob, b"abc", call_id=room.call_id)
    eve = hub.person("bob", tenant=OTHER_TENANT)
    theirs = await eve.room()
    for name in ("file:get", "file:download", "file:preview", "file:delete", "file:confirm"):
        assert await eve.refused(name, file_id=file.file_id) == "not_found"
    for name in ("file:copy", "file:move"):
        assert await eve.refused(name, file_id=file.file_id, call_id=theirs) == "not_found"
        assert await eve.refused(name, file_id=file.file_id, call_id=room.call_id) == "not_found"
    assert await eve.refused("file:list", call_id=room.call_id) == "not_found"
    assert await eve.refused("file:presign", call_id=room.call_id, name="a", size_bytes=1) == "not_found"
    guest = hub.person("guest:1", guest_of=await room.ann.room())
    assert await guest.refused("file:get", file_id=file.file_id) == "not_found"
    inside = hub.person("guest:2", guest_of=room.call_id, role="viewer")
    await inside.socket().join(room.call_id)
    assert await inside.refused("file:download", file_id=file.file_id) == "ok"
    denied = hub.person("guest:3", guest_of=room.call_id, denied=["file_download", "file_send"])
    await denied.socket().join(room.call_id)
    assert await denied.refused("file:download", file_id=file.file_id) == "forbidden"
    assert await denied.refused("file:presign", call_id=room.call_id, name="a", size_bytes=1) == "forbidden"


async def test_a_link_without_files_takes_them_away(hub: Node) -> None:
    """S-057: the toggle of the link by which somebody came."""
    room = await shared(hub)
    file = await brought(room.bob, b"abc", call_id=room.call_id)
    link = (
        await hub.rows(
            "INSERT INTO shareable_links (tenant_id, call_id, creator_id, short_code, enable_files)"
            " VALUES ($1, $2, 'ann', 'abcdefgh', false) RETURNING id",
            room.ann.actor.tenant_id,
            room.call_id,
        )
    )[0]["id"]
    await hub.rows("UPDATE call_participants SET via_link_id = $1 WHERE user_id = 'cat'", link)
    assert await room.cat.refused("file:download", file_id=file.file_id) == "forbidden"
    assert await room.cat.refused("file:presign", call_id=room.call_id, name="a", size_bytes=1) == "forbidden"


def test_the_table_in_the_docs_is_the_one_in_the_code() -> None:
    """S-057: documented, row by row."""
    text = (Path(__file__).parents[2] / "docs" / "files.md").read_text()
    rows = [
        "| " + " | ".join((role, level, *(row[action] for action in FILE_ACTIONS))) + " |"
        for role, levels in file_matrix().items()
        for level, row in levels.items()
    ]
    shown = [line for line in text.splitlines() if line.count("|") == 7 and "---" not in line]
    assert shown == ["| who | level | upload | see | download | delete |", *rows]


def test_the_table_is_whole_and_toggles_only_take_away() -> None:
    table = file_matrix()
    assert table.keys() == {*ROLES, "uploader", "outsider"}
    for role in ROLES:
        for level in ACCESS_LEVELS:
            assert table[role][level].keys() == set(FILE_ACTIONS)
            everything = file_actions(role, level, own=True)
            without = permissions(role, features_off=["files"])
            assert file_actions(role, level, own=True, allowed=without) == everything - {"upload", "see", "download"}
            assert file_actions(role, level) <= everything
    # A higher role never has less.
    for level in ACCESS_LEVELS:
        rights = [file_actions(role, level) for role in ROLES]
        assert all(lower <= higher for lower, higher in itertools.pairwise(rights))
    assert msgspec.json.encode(table)
