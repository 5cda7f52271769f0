"""node: the nodes of a running hub."""

from __future__ import annotations

from typing import Any, Literal
from urllib.parse import quote

import cyclopts

from hub.cli.client import Json, Token, Url, ask
from hub.cli.output import OK, emit_json, say, table

_COLUMNS = {
    "node_id": "NODE",
    "status": "STATUS",
    "region": "REGION",
    "version": "VERSION",
    "sockets": "SOCKETS",
    "rooms": "ROOMS",
    "database": "DATABASE",
    "started_at": "STARTED",
}


def add_to(app: cyclopts.App) -> None:
    nodes = cyclopts.App(name="node", help="Look at the nodes of a running hub, empty one and fill it again.")
    nodes.command(list_nodes, name="list")
    nodes.command(drain, name="drain")
    nodes.command(undrain, name="undrain")
    app.command(nodes)


def list_nodes(*, url: Url = None, token: Token = None, json: Json = False) -> int:
    """List the nodes, and those that were lost in the last ten minutes."""
    page = ask(url, token, lambda hub: hub.get("/api/v1/admin/nodes"))
    if json:
        emit_json(page)
    else:
        table([_row(node) for node in page["items"]], _COLUMNS, empty="no nodes")
    return OK


def drain(node_id: str, *, reason: str | None = None, url: Url = None, token: Token = None, json: Json = False) -> int:
    """Have a node send its sockets to the others and take no new ones; it stays up until it is stopped.

    Parameters
    ----------
    node_id
        As in `node list`.
    reason
        For the audit log.
    """
    return _steer(node_id, "drain", reason, url, token, json)


def undrain(
    node_id: str, *, reason: str | None = None, url: Url = None, token: Token = None, json: Json = False
) -> int:
    """Let a drained node take sockets again.

    Parameters
    ----------
    node_id
        As in `node list`.
    reason
        For the audit log.
    """
    return _steer(node_id, "undrain", reason, url, token, json)


def _steer(
    node_id: str, order: Literal["drain", "undrain"], reason: str | None, url: str | None, token: str | None, json: bool
) -> int:
    body = {"reason": reason} if reason else {}
    done = ask(url, token, lambda hub: hub.post(f"/api/v1/admin/nodes/{quote(node_id, safe='')}/{order}", body))
    if json:
        emit_json(done)
    else:
        say(f"{node_id} is {done['node']['status']}")
    return OK


def _row(node: dict[str, Any]) -> dict[str, Any]:
    load = node["load"]
    used, most = load.get("database_used"), load.get("database_most")
    return {**node, **load, "database": f"{used}/{most}" if most else None}
