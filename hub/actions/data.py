"""App data, handed to the SFU, which brings it to whoever is connected."""

from __future__ import annotations

from db import participants
from hub.actions import members
from hub.commands import Commands, Empty, Http, Rate
from hub.context import Context
from hub.protocol import errors
from hub.protocol.data import DataSent, SendData
from hub.protocol.errors import FieldError

commands = Commands()


@commands.add(
    "data:send",
    # Text to everybody by another way than chat: what takes away the one takes away the other, as in the SFU.
    needs="chat_post",
    rate=Rate(50, per_s=5),
    emits=(DataSent,),
    http=Http("POST", "/rooms/{call_id}/data"),
)
async def send(ctx: Context, message: SendData) -> Empty:
    """Send a text of yours to some, or to everybody; nothing is kept, and nobody says that it arrived."""
    data = message.data.encode()
    limit = ctx.hub.rules.data_bytes
    if len(data) > limit:
        text = f"longer than {limit} bytes"
        raise errors.PayloadTooLarge(f"data: {text}", errors=[FieldError("data", text)])
    members.demand_open(ctx.member.call)
    # Clients of the SFU chat by data.
    members.demand(ctx.member, "chat_post")
    call = ctx.member.call
    identities = await _identities(ctx, message) if message.to is not None else None
    if call.status == "active":
        await ctx.hub.media.send_data(
            call.livekit_room_name, data, topic=message.topic, identities=identities, region=call.region
        )
    elif identities is not None:
        raise errors.Conflict("nobody is connected to the media server")
    if identities is None:
        mine = ctx.member.participant
        await ctx.tell(call.id, DataSent(mine.id if mine else None, ctx.actor.user_id, message.topic, message.data))
    return Empty()


async def _identities(ctx: Context, message: SendData) -> list[str]:
    async with ctx.transaction() as tx:
        present = {each.id: each.identity for each in await participants.in_call(tx, message.call_id)}
    missing = [str(each) for each in message.to or () if each not in present]
    if missing:
        raise errors.NotFound("not all of them are in the call", details={"to": missing[:10]})
    return [present[each] for each in message.to or ()]
