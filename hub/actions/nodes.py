"""What operators do with nodes: look at them, empty one and fill it again, and speak to everybody on all of them."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import msgspec

from db import audit
from hub.commands import Commands, Empty, Http, Rate
from hub.context import Context, NodeEntry
from hub.protocol import errors
from hub.protocol.admin import Announce, Announced, NodeAnswer, NodeList, NodeView, SteerNode
from hub.protocol.errors import HubError
from hub.protocol.notices import ServerAnnounced

commands = Commands()

# How long the answer waits for the node to show that it heard.
_HEARD_S = 1.0
_LOOK_S = 0.1


@commands.add("admin:nodes", needs="operator", http=Http("GET", "/admin/nodes"), socket=False, mutates=False)
async def all_nodes(ctx: Context, message: Empty) -> NodeList:
    """The nodes that are there, and those that were lost lately."""
    return NodeList(await views(ctx))


@commands.add(
    "admin:drain_node",
    needs="operator",
    rate=Rate(30, per_s=60),
    http=Http("POST", "/admin/nodes/{node_id}/drain", 202),
    socket=False,
)
async def drain(ctx: Context, message: SteerNode) -> NodeAnswer:
    """Have a node send its sockets to the others and take no new ones; it stays up until it is stopped or undrained."""
    return await _steer(ctx, message, "drain", "draining")


@commands.add(
    "admin:undrain_node",
    needs="operator",
    rate=Rate(30, per_s=60),
    http=Http("POST", "/admin/nodes/{node_id}/undrain", 202),
    socket=False,
)
async def undrain(ctx: Context, message: SteerNode) -> NodeAnswer:
    """Let a drained node take sockets again."""
    return await _steer(ctx, message, "undrain", "ready")


@commands.add(
    "admin:announce",
    needs="admin",
    rate=Rate(10, per_s=60),
    emits=(ServerAnnounced,),
    http=Http("POST", "/admin/announce"),
    socket=False,
)
async def announce(ctx: Context, message: Announce) -> Announced:
    """Say something to every connected socket of the tenant, on all nodes, once: later ones do not hear it."""
    event = ServerAnnounced(message.message, message.level, ctx.now())
    nodes = [node.node_id for node in await ctx.hub.nodes.list()]
    details = {"message": message.message, "level": message.level}
    await _note(ctx, "server:announce", "tenant", str(ctx.actor.tenant_id), None, details)
    order = {"kind": "announce", "tenant_id": str(ctx.actor.tenant_id), "event": msgspec.to_builtins(event)}
    reached = await asyncio.gather(*(_told(ctx, node_id, order) for node_id in nodes))
    return Announced(
        nodes=[node_id for node_id, heard in zip(nodes, reached, strict=True) if heard],
        unreached=[node_id for node_id, heard in zip(nodes, reached, strict=True) if not heard],
    )


async def views(ctx: Context) -> list[NodeView]:
    """All of them as operators see them, by name. Raises ClusterUnavailable."""
    return [_view(node) for node in await ctx.hub.nodes.all()]


async def _told(ctx: Context, node_id: str, order: dict[str, Any]) -> bool:
    try:
        await ctx.hub.bus.control(node_id, order)
    except HubError:
        return False
    return True


async def _steer(
    ctx: Context, message: SteerNode, order: Literal["drain", "undrain"], becomes: Literal["draining", "ready"]
) -> NodeAnswer:
    node = await _node(ctx, message.node_id)
    if node.status == "lost":
        raise errors.Conflict("that node is lost")
    await _note(ctx, f"node:{order}", "node", node.node_id, message.reason, {"region": node.region})
    await ctx.hub.bus.control(node.node_id, {"kind": order})
    give_up = asyncio.get_running_loop().time() + _HEARD_S
    while node.status != becomes and asyncio.get_running_loop().time() < give_up:
        await asyncio.sleep(_LOOK_S)
        node = await _node(ctx, message.node_id)
    return NodeAnswer(node)


async def _node(ctx: Context, node_id: str) -> NodeView:
    for node in await views(ctx):
        if node.node_id == node_id:
            return node
    raise errors.NotFound("there is no such node")


def _view(node: NodeEntry) -> NodeView:
    return NodeView(
        node_id=node.node_id,
        incarnation=node.incarnation,
        status="lost" if node.lost else "draining" if node.draining else "ready",
        region=node.region,
        version=node.version,
        started_at=node.started_at,
        load=dict(node.load),
    )


async def _note(
    ctx: Context, action: str, target_type: str, target_id: str, reason: str | None, details: dict[str, Any]
) -> None:
    async with ctx.transaction() as tx:
        await audit.add(
            tx,
            actor=ctx.actor.user_id,
            action=action,
            target_type=target_type,
            target_id=target_id,
            reason=reason,
            details=details,
        )
