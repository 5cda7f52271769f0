"""The command line beside a running hub: it operates, it checks, it simulates."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import pytest

from tests.e2e.stage import ROOT, Stage, eventually

# Every command is a Python of its own, and a dozen of them start here.
pytestmark = pytest.mark.timeout(240)


async def hub_command(stage: Stage, *words: str) -> tuple[int, Any]:
    """(exit code, what was printed as JSON)."""
    node = stage.nodes[0]
    environ = stage.environ(AURALINK_PUBLIC_URL=node.url)
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "hub", *words, "--json"),
        cwd=ROOT,
        env=environ,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        out, error = await child.communicate()
    assert b"Traceback" not in error, error.decode()
    code = child.returncode
    assert code is not None
    return code, json.loads(out) if out else error.decode()


async def test_an_operator_sees_ends_reconciles_and_checks(stage: Stage) -> None:
    """S-247, S-103: room list, show and end, reconcile, doctor, migrate, storage, audit against a live hub."""
    await stage.node()
    ada = stage.person("ada")
    call = await ada.create(name="To be ended")

    code, rooms = await hub_command(stage, "room", "list")
    assert (code, [one["call_id"] for one in rooms["items"]]) == (0, [call["call_id"]])
    code, shown = await hub_command(stage, "room", "show", call["call_id"])
    assert (code, shown["call"]["name"], shown["participants"]) == (0, "To be ended", [])
    code, report = await hub_command(stage, "reconcile", "--dry-run")
    assert (code, report["calls"]) == (0, 1)
    code, _ = await hub_command(stage, "room", "end", call["call_id"], "--reason", "maintenance")
    assert code == 0
    assert (await ada.rest("GET", f"/rooms/{call['call_id']}")).body["status"] == "ended"
    code, refused = await hub_command(stage, "room", "show", "00000000-0000-4000-8000-000000000000")
    assert code == 1
    assert "not_found" in refused

    code, state = await hub_command(stage, "migrate", "check")
    assert (code, state["ok"]) == (0, True)
    code, found = await hub_command(stage, "doctor")
    assert code == 0, found
    assert {check["check"] for check in found["checks"]} == {
        *("database", "migrations", "redis", "livekit", "storage", "webhook", "clock")
    }
    code, stock = await hub_command(stage, "storage", "check")
    assert (code, stock["ok"], stock["files"], stock["objects"]) == (0, True, 0, 0)

    code, verified = await hub_command(stage, "audit", "verify")
    (log,) = verified["tenants"]
    assert (code, log["ok"], log["links"]) == (0, True, 2)
    await stage.rows("ALTER TABLE audit_log DISABLE TRIGGER USER")
    await stage.rows("UPDATE audit_log SET reason = 'none' WHERE action = 'room:end'")
    code, verified = await hub_command(stage, "audit", "verify", "--tenant", log["tenant_id"])
    broken = verified["tenants"][0]["broken"]
    assert (code, broken["seq"], broken["problem"]) == (1, 2, "changed")


async def test_a_simulated_webhook_does_what_a_real_one_does(stage: Stage) -> None:
    """S-158: the receiver takes what is signed with the key; here a whole life without any media."""
    # No sweep: LiveKit knows nobody, and would say so.
    await stage.node(AURALINK_SWEEP_S="300")
    ada = stage.person("ada")
    call = await ada.create()
    token = await ada.rest("POST", f"/rooms/{call['call_id']}/token", {})
    sid = ("--room-sid", call["room_id"])
    joined = await hub_command(
        stage,
        "webhook",
        "simulate",
        "participant_joined",
        call["room_name"],
        *sid,
        "--identity",
        token.body["identity"],
    )
    assert joined == (0, {"status": 200, "stored": True})

    async def status() -> Any:
        return (await ada.rest("GET", f"/rooms/{call['call_id']}")).body["status"]

    async def active() -> bool:
        return bool(await status() == "active")

    await eventually(active)
    code, _ = await hub_command(stage, "webhook", "simulate", "room_finished", call["room_name"], *sid)
    assert code == 0

    async def ended() -> bool:
        return bool(await status() == "ended")

    await eventually(ended)
