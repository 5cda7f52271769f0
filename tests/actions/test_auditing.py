"""The audit log as it is filled by what people do, and as admins take it out."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from db import audit
from db.audit_chain import FIRST, Head, check
from hub.actions import all_commands
from hub.actions.pages import cursor
from hub.cli.audit import link_of
from hub.commands import Command
from tests.actions.conftest import OTHER_TENANT, TENANT, Node


async def test_every_act_of_moderation_is_a_row_with_who_what_whom_and_why(hub: Node) -> None:
    """S-247: in the order they were done."""
    ann = hub.person("ann")
    call_id = await ann.room()
    room = {"call_id": call_id}
    host, ben = ann.socket(), hub.person("ben").socket()
    await host.join(call_id)
    target = (await ben.join(call_id)).self.participant_id
    await hub.connects(call_id, "ben")
    await hub.publishes(call_id, "ben", "microphone")
    await ben.do("hand:raise", **room)
    await host.do("hand:lower", participant_id=target, **room)
    await host.do("participant:mute", participant_id=target, sources=["microphone"], muted=True, **room)
    await host.do("participant:set_role", participant_id=target, role="viewer", **room)
    await host.do("room:update", locked=True, features={"chat": False}, **room)
    # What changes nothing, and what is the app's own, is no act.
    await host.do("room:update", locked=True, metadata={"a": 1}, **room)
    await host.do("participant:kick", participant_id=target, reason="shouting", ban_s=60, **room)
    await host.do("participant:unban", user_id="ben", **room)
    await host.do("room:end", reason="done", **room)
    rows = await hub.rows("SELECT actor, action, target_id, reason, details::text FROM audit_log ORDER BY id")
    who, call = str(target), str(call_id)
    assert [tuple(row)[:4] for row in rows] == [
        ("ann", "hand:lower", who, None),
        ("ann", "participant:mute", who, None),
        ("ann", "participant:set_role", who, None),
        ("ann", "room:update", call, None),
        ("ann", "participant:kick", who, "shouting"),
        ("ann", "participant:unban", "ben", None),
        ("ann", "room:end", call, "done"),
    ]
    assert rows[3]["details"] == (
        '{"now": {"locked": true, "chat_enabled": false}, "was": {"locked": false, "chat_enabled": true}}'
    )
    assert all(call in row["details"] for row in rows if row["target_id"] != call)


async def test_the_whole_log_is_exported_with_a_chain_that_holds(hub: Node) -> None:
    """S-247: oldest first, page by page, for the tenant's admins alone; taking it out is an act, too."""
    ann, boss = hub.person("ann"), hub.person("boss", admin=True)
    for number in range(4):
        await ann.do("room:end", call_id=await ann.room(), reason=f"ü {number}")
    await hub.person("eve", tenant=OTHER_TENANT).do(
        "room:end", call_id=await hub.person("eve", tenant=OTHER_TENANT).room()
    )
    cursor, links, pages = None, [], 0
    while True:
        page = await boss.do("admin:export_audit", limit=2, **({"cursor": cursor} if cursor else {}))
        links += [link_of(each) for each in page.items]
        pages, cursor = pages + 1, page.next_cursor
        if cursor is None:
            break
    assert pages == 3
    assert [link.seq for link in links] == [1, 2, 3, 4, 5]
    assert [link.action for link in links] == ["room:end"] * 4 + ["audit:export"]
    assert {link.tenant_id for link in links} == {TENANT}
    assert check(Head(0, FIRST), links) == Head(5, bytes.fromhex(page.head.hash))
    assert links[0].at <= datetime.now(UTC)
    assert await ann.refused("admin:export_audit") == "forbidden"
    assert await boss.refused("admin:export_audit", cursor="x") == "invalid_cursor"
    assert await boss.refused("admin:export_audit", limit=101) == "validation_failed"


# What is written down of whom: by what a command needs, or by its noun.
_PRIVILEGED = {
    *("lobby_admit", "participant_mute", "participant_kick", "chat_delete", "room_update", "recording_control"),
    *("participant_set_role", "room_end", "owner", "admin", "operator"),
}
_BY_NAME = re.compile(r"link:\w+|participant:edit|hand:lower|chat:delete|invite:send|file:delete")


@pytest.mark.parametrize("command", [c for c in all_commands() if c.mutates], ids=lambda command: command.name)
def test_every_command_of_moderation_access_and_administration_writes_it_down(command: Command) -> None:
    """S-247: found by what a command needs, so that a new one is held to it; by following what its function names."""
    if command.needs in _PRIVILEGED or _BY_NAME.fullmatch(command.name):
        assert audit.add in _reached(command.run), f"{command.name} leaves no row in the audit log"


def _reached(start: Callable[..., Any]) -> set[Any]:
    """Every function of the actions and of db that may be called from there."""
    found: set[Any] = set()
    left: list[Any] = [start]
    while left:
        function = left.pop()
        if not inspect.isfunction(function) or function in found:
            continue
        found.add(function)
        if function.__module__.startswith("hub.actions"):
            left += _named(function)
    return found


def _named(function: Any) -> list[Any]:
    """What the names in a function's text stand for, of its module and of those that it imports."""
    tree, known, named = ast.parse(textwrap.dedent(inspect.getsource(function))), function.__globals__, []
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            named.append(known.get(node.id))
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            named.append(getattr(known.get(node.value.id), node.attr, None))
    return named


@pytest.mark.parametrize("seq", [0, 1])
async def test_an_export_from_a_made_up_place_is_written_down_too(hub: Node, seq: int) -> None:
    boss = hub.person("boss", admin=True)
    for _ in range(2):
        await boss.do("room:end", call_id=await boss.room())
    await boss.do("admin:export_audit", cursor=cursor(datetime.now(UTC), seq))
    assert await hub.value("SELECT count(*) FROM audit_log WHERE action = 'audit:export'") == 1
