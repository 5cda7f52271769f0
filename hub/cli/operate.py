"""room, node, file, reconcile, webhook, audit, storage, doctor: operating a running hub."""

from __future__ import annotations

from typing import Any

import cyclopts

from hub.cli import audit, doctor, files, nodes, storage, webhooks
from hub.cli.client import Client, Json, Token, Url, ask
from hub.cli.output import OK, emit_json, say, table

_ROOM_COLUMNS = {
    "call_id": "CALL",
    "name": "NAME",
    "status": "STATUS",
    "participant_count": "IN",
    "max_participants": "SEATS",
    "region": "REGION",
    "created_at": "CREATED",
}
_PARTICIPANT_COLUMNS = {
    "participant_id": "PARTICIPANT",
    "user_id": "USER",
    "role": "ROLE",
    "status": "STATUS",
    "joined_at": "JOINED",
    "duration_s": "SECONDS",
}


def add_to(app: cyclopts.App) -> None:
    rooms = cyclopts.App(name="room", help="Look at and end calls of a running hub.")
    rooms.command(list_rooms, name="list")
    rooms.command(show_room, name="show")
    rooms.command(end_room, name="end")
    app.command(rooms)
    nodes.add_to(app)
    app.command(reconcile)
    webhooks.add_to(app)
    audit.add_to(app)
    storage.add_to(app)
    files.add_to(app)
    app.command(doctor.doctor)


def list_rooms(
    *, status: str | None = None, limit: int = 50, url: Url = None, token: Token = None, json: Json = False
) -> int:
    """List the calls, newest first.

    Parameters
    ----------
    status
        Only those: waiting, active or ended.
    limit
        At most so many, up to 100.
    """
    page = ask(url, token, lambda hub: hub.get("/api/v1/admin/rooms", status=status, limit=limit))
    if json:
        emit_json(page)
    else:
        table(page["items"], _ROOM_COLUMNS, empty="no calls")
    return OK


def show_room(call_id: str, *, url: Url = None, token: Token = None, json: Json = False) -> int:
    """Show one call and who is in it."""

    async def both(hub: Client) -> dict[str, Any]:
        call = await hub.get(f"/api/v1/rooms/{call_id}")
        people = await hub.get(f"/api/v1/rooms/{call_id}/participants")
        return {"call": call, "participants": people["items"]}

    shown = ask(url, token, both)
    if json:
        emit_json(shown)
        return OK
    for key, value in shown["call"].items():
        say(f"{key.ljust(22)} {'–' if value is None else value}")
    say()
    table(shown["participants"], _PARTICIPANT_COLUMNS, empty="nobody has been in it")
    return OK


def end_room(
    call_id: str, *, reason: str | None = None, url: Url = None, token: Token = None, json: Json = False
) -> int:
    """End a call for everybody."""
    body = {"reason": reason} if reason else {}
    ended = ask(url, token, lambda hub: hub.post(f"/api/v1/admin/rooms/{call_id}/end", body))
    if json:
        emit_json(ended)
    else:
        say(f"ended {call_id}")
    return OK


def reconcile(*, dry_run: bool = False, url: Url = None, token: Token = None, json: Json = False) -> int:
    """Compare the hub's calls with LiveKit now, and mend what differs.

    Parameters
    ----------
    dry_run
        Only say what would be mended.
    """
    report = ask(url, token, lambda hub: hub.post("/api/v1/admin/reconcile", {"dry_run": dry_run}))
    if json:
        emit_json(report)
        return OK
    say(f"compared {report['calls']} calls with {report['rooms']} rooms")
    if report["unreachable_regions"] or report["skipped"]:
        say(f"{report['unreachable_regions']} regions did not answer, {report['skipped']} calls were skipped")
    for kind, count in sorted(report["corrections"].items()):
        say(f"{'would mend' if dry_run else 'mended'} {count} × {kind}")
    if not report["corrections"]:
        say("nothing to mend")
    return OK
