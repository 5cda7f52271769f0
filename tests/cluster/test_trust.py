"""What a node does with messages that no node of its environment sent: nothing, and it counts them (D14)."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable
from uuid import UUID, uuid4

import msgspec
import pytest

from hub.cluster import Cluster
from hub.cluster.envelope import Envelope, Signer
from hub.cluster.keys import Keys
from hub.embedded import Valkey
from tests.cluster.conftest import OpenNode
from tests.cluster.hearing import SECRET, until


async def position_of(node: Cluster, call_id: UUID) -> str:
    now = await node.bus.position(call_id)
    return f"{now.epoch}:{now.offset + 1}"


def event(node: Cluster, *, name: str = "evil:event", kind: str = "recorded", number: int = 9_999) -> Envelope:
    core = (1, kind, "0badc0de", number, node.nodes.clock.now_ms(), name, b'{"text":"pwn"}', None)
    return msgspec.convert(core, Envelope)


FORGERIES: dict[str, Callable[[Cluster, bytes, str], bytes]] = {
    "nothing": lambda node, channel, at: b"",
    "text": lambda node, channel, at: b'{"method":"emit","event":"evil"}',
    "unsigned": lambda node, channel, at: at.encode() + b"\n" + msgspec.msgpack.encode(event(node)),
    "zero mac": lambda node, channel, at: at.encode() + b"\n" + bytes(32) + msgspec.msgpack.encode(event(node)),
    "another secret": lambda node, channel, at: (
        at.encode() + b"\n" + Signer(b"not the secret of the hub", "x").seal(channel, event(node))
    ),
    "another environment": lambda node, channel, at: (
        at.encode() + b"\n" + Signer(SECRET, "production").seal(channel, event(node))
    ),
    "another channel": lambda node, channel, at: (
        at.encode() + b"\n" + node.bus._signer.seal(b"aura:elsewhere", event(node))
    ),
    "recorded without a position": lambda node, channel, at: b"\n" + node.bus._signer.seal(channel, event(node)),
    "ephemeral with a position": lambda node, channel, at: (
        at.encode() + b"\n" + node.bus._signer.seal(channel, event(node, kind="ephemeral"))
    ),
    "a position that is none": lambda node, channel, at: b"x:y\n" + node.bus._signer.seal(channel, event(node)),
}


@pytest.mark.parametrize("name", FORGERIES)
async def test_a_forged_message_has_no_effect(open_node: OpenNode, name: str) -> None:
    a, ear = await open_node("a")
    call_id = uuid4()
    await a.bus.subscribe_room(call_id)
    channel = a.bus._keys.room(call_id).channel
    at = await position_of(a, call_id)
    await a._door.command("SPUBLISH", channel, FORGERIES[name](a, channel.encode(), at))
    await until(lambda: a.bus.counters.unverified == 1)
    await a.bus.to_room(call_id, "chat:posted", {"text": "real"})
    await until(lambda: bool(ear.events))
    assert ear.said == ["real"]
    assert ear.resyncs == []


async def test_a_replayed_event_is_looked_up_and_dropped(open_node: OpenNode) -> None:
    """Signed by us, recorded once, sent again by somebody else: with its own position, the next one, and a far one."""
    (a, ear_a), (b, ear_b) = await open_node("a"), await open_node("b")
    call_id = uuid4()
    await a.bus.subscribe_room(call_id)
    wires: list[bytes] = []
    tap = a.bus._hearing.message

    def listen(channel: bytes, wire: bytes) -> None:
        wires.append(wire)
        tap(channel, wire)

    a.bus._hearing.message = listen  # type: ignore[method-assign]
    await a.bus.to_room(call_id, "chat:posted", {"text": "1"})
    await until(lambda: bool(wires))
    wire = wires[0]
    await b.bus.subscribe_room(call_id)
    epoch = (await a.bus.position(call_id)).epoch
    channel, sealed = a.bus._keys.room(call_id).channel, wire.partition(b"\n")[2]
    for at in (b"%s:1", b"%s:2", b"%s:77", b"zzz:2"):
        head = at % epoch.encode() if b"%" in at else at
        await a._door.command("SPUBLISH", channel, head + b"\n" + sealed)
    await asyncio.sleep(0.1)
    await a.bus.to_room(call_id, "chat:posted", {"text": "2"})
    await until(lambda: len(ear_a.events) == 2 and bool(ear_b.events))
    await asyncio.sleep(0.1)
    assert ear_a.said == ["1", "2"]
    assert ear_a.offsets == [1, 2]
    assert ear_a.resyncs == ear_b.resyncs == []
    # The second node came after the first event: it must not hear it as news.
    assert ear_b.said == ["2"]


async def test_replayed_ephemeral_user_and_control_messages_are_dropped(open_node: OpenNode) -> None:
    (a, _), (b, ear_b) = await open_node("a"), await open_node("b")
    call_id, tenant_id = uuid4(), uuid4()
    await b.bus.subscribe_room(call_id)
    await b.bus.subscribe_users([(tenant_id, "anna")])
    keys, heard = a.bus._keys, []
    tap = b.bus._hearing.message

    def listen(channel: bytes, wire: bytes) -> None:
        heard.append((channel, wire))
        tap(channel, wire)

    b.bus._hearing.message = listen  # type: ignore[method-assign]
    await a.bus.to_room(call_id, "chat:typing", {"text": "…"}, recorded=False)
    await a.bus.to_user(tenant_id, "anna", "invite:received", {}, recorded=False)
    await a.bus.control("b", {"do": "it"})
    await until(lambda: bool(ear_b.events and ear_b.users and ear_b.controls))
    for channel, wire in list(heard):
        verb = "PUBLISH" if channel == keys.node_channel("b").encode() else "SPUBLISH"
        await a._door.command(verb, channel, wire)
    await until(lambda: b.bus.counters.replayed == 3)
    assert (len(ear_b.events), len(ear_b.users), len(ear_b.controls)) == (1, 1, 1)


async def test_two_environments_on_one_redis_do_not_hear_each_other(valkey: Valkey, open_node: OpenNode) -> None:
    """Database numbers do not separate pub/sub; names and signatures do."""
    a, ear = await open_node("a")
    call_id = uuid4()
    await a.bus.subscribe_room(call_id)
    async with Cluster.open(
        valkey.url.replace("/0", "/5"), env=f"other{uuid4().hex[:6]}", secret=SECRET, node_id="a"
    ) as foreign:
        await foreign.bus.to_room(call_id, "chat:posted", {"text": "foreign"})
        assert [node.node_id for node in await foreign.nodes.list()] == ["a"]
        assert [node.incarnation for node in await a.nodes.list()] == [a.incarnation]
    await a.bus.to_room(call_id, "chat:posted", {"text": "own"})
    await until(lambda: bool(ear.events))
    assert ear.said == ["own"]


async def test_a_forged_log_entry_is_not_told_as_missed(open_node: OpenNode) -> None:
    a, _ = await open_node("a")
    call_id = uuid4()
    start = await a.bus.position(call_id)
    await a.bus.to_room(call_id, "chat:posted", {"text": "1"})
    log, head = a.bus._keys.room(call_id).log, a.bus._keys.room(call_id).head
    await a._door.command("XADD", log, "2-0", "e", f"{start.epoch}:2\n".encode() + bytes(40))
    await a._door.command("HSET", head, "offset", 2)
    assert await a.bus.since(call_id, start) is None


@pytest.mark.parametrize("env", ["", "a:b", "a{b}", "A", "x" * 33])
def test_an_environment_that_could_leave_its_prefix_is_refused(env: str) -> None:
    with pytest.raises(ValueError, match="environment"):
        Keys(env)


def test_a_short_secret_is_refused() -> None:
    with pytest.raises(ValueError, match="short"):
        Signer(b"short", "test")


def test_the_signature_is_the_standard_hmac() -> None:
    key = hmac.digest(SECRET, b"auralink bus v1 test", "sha256")
    for text in (b"", b"x", b"y" * 10_000):
        assert Signer(SECRET, "test").mac(text) == hmac.digest(key, text, "sha256")
