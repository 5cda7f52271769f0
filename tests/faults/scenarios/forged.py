"""Somebody with a password for Redis publishes on every channel there is."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from hub.cluster.envelope import VERSION, Envelope, Signer
from tests.faults.drill import checks
from tests.faults.drill.client import Client
from tests.faults.drill.figures import Figure, at_least, none, told
from tests.faults.drill.ground import CLUSTER_SECRET, Ground
from tests.faults.drill.history import Heard, Picture
from tests.faults.drill.intruder import Intruder, intruder
from tests.faults.drill.load import counted, delivery, quiet, senders
from tests.faults.drill.plan import Plan, Scenario

_EVIL = "drill:evil"


async def _play(ground: Ground, plan: Plan) -> Sequence[Figure]:
    await ground.several(2)
    people = await ground.crowd(plan.people(20))
    await ground.rooms(people, 10)
    evil: list[str] = []
    for client in people:
        client.on_event = _listen(evil)
    async with intruder(ground.servers.valkey.url) as attacker:
        plain, sharded = await attacker.channels(ground.env)
        captured = await _capture(attacker, sharded, people)
        resumed = sum(len(client.resumes) for client in people)
        before, seen = await _refused(ground), len(ground.history.entries)
        sent = 0
        async with senders(ground.speakers(people, 4)):
            for channel in plain:
                sent += await _attack(ground, attacker, channel, captured, "PUBLISH")
            for channel in sharded:
                sent += await _attack(ground, attacker, channel, captured, "SPUBLISH")
            await asyncio.sleep(2)
        await quiet(ground)
    after = await _refused(ground)
    new = ground.history.entries[seen:]
    unmarked = [each for each in new if isinstance(each, Heard) and (not each.mark or each.name == _EVIL)]
    await ground.finish()
    return [
        told("channels", len(plain) + len(sharded)),
        told("frames published on them", sent),
        none("forged events that a client heard", len(evil)),
        none("events that nobody asked for", len(unmarked)),
        none("snapshots that a frame caused", sum(isinstance(each, Picture) for each in new)),
        none("sockets lost", sum(len(client.resumes) for client in people) - resumed),
        # Ticks are numbers, and most of them nobody waits for; everything else is counted by whoever heard it.
        at_least("frames counted as refused", after - before, _countable(plain, sharded), ""),
        *delivery(ground),
        counted(ground, "clients with a wrong picture", checks.finals(ground.history.entries)),
    ]


def _listen(evil: list[str]) -> Callable[[str, dict[str, Any], float], None]:
    def listen(name: str, data: dict[str, Any], at: float) -> None:
        if name == _EVIL or "evil" in data:
            evil.append(name)

    return listen


def _countable(plain: Sequence[bytes], sharded: Sequence[bytes]) -> int:
    """One node at least counts each of the frames that fail to verify."""
    heard = [channel for channel in (*plain, *sharded) if b":tick:" not in channel]
    return _UNSIGNED * len(heard)


async def _refused(ground: Ground) -> float:
    kinds = ("unverified", "replayed", "duplicates")
    found = 0.0
    for node in ground.nodes:
        for kind in kinds:
            found += await ground.bus_count(node, kind)
    return found


async def _capture(attacker: Intruder, sharded: Sequence[bytes], people: Sequence[Client]) -> dict[bytes, list[bytes]]:
    """True frames, as they went over the channels."""
    attacker.overhear(sharded)
    async with senders(people, every_s=0.8):
        await asyncio.sleep(2)
    await asyncio.sleep(0.5)
    found: dict[bytes, list[bytes]] = {}
    for _, channel, wire in attacker.heard:
        found.setdefault(channel, []).append(wire)
    return found


_UNSIGNED = 9


async def _attack(
    ground: Ground, attacker: Intruder, channel: bytes, captured: dict[bytes, list[bytes]], command: str
) -> int:
    """Every kind of frame that is not the hub's, on this channel. How many."""
    now_ms = time.time_ns() // 1_000_000
    event = Envelope(VERSION, "ephemeral", "f" * 16, 1 << 40, now_ms, _EVIL, b'{"evil":1}')
    recorded = Envelope(VERSION, "recorded", "f" * 16, 1 << 40, now_ms, _EVIL, b'{"evil":1}')
    close = Envelope(VERSION, "control", "f" * 16, 1 << 40, now_ms, "", b'{"kind":"close","session_id":"x"}')
    own = Signer(CLUSTER_SECRET.encode(), ground.env)
    foreign = Signer(CLUSTER_SECRET.encode(), "another")
    stranger = Signer(b"a secret that nobody here has", ground.env)
    elsewhere = next((frames[-1] for other, frames in captured.items() if other != channel), b"")
    unsigned = [
        b"",
        os.urandom(64),
        b'{"method":"emit","event":"drill:evil","data":["pwn"],"namespace":"/","room":"r","host_id":"x"}',
        b"\n" + b"\0" * 32 + own.seal(channel, event)[32:],
        b"\n" + foreign.seal(channel, event),
        b"\n" + stranger.seal(channel, event),
        b"\n" + stranger.seal(channel, close),
        b"e:1\n" + stranger.seal(channel, recorded),
        # Signed by us, for another channel.
        b"\n" + own.seal(channel + b"x", event),
    ]
    assert len(unsigned) == _UNSIGNED
    frames = [*unsigned, elsewhere, b"-1", b"99999999", b"\n" + os.urandom(1 << 20)]
    for true in captured.get(channel, [])[-3:]:
        frames += _replays(true)
    for frame in frames:
        await attacker.say(command, channel, frame)
    return len(frames)


def _replays(true: bytes) -> list[bytes]:
    """A true frame again: as it was, at later positions, in another epoch, cut short, one bit turned."""
    head, _, sealed = true.partition(b"\n")
    epoch, _, offset = head.partition(b":")
    again = [true, true[:-1], true[:-1] + bytes([true[-1] ^ 1]), b"\n" + sealed]
    if offset:
        again += [b"%s:%d\n%s" % (epoch, int(offset) + step, sealed) for step in (1, 2, 100)]
        again += [b"other:%d\n%s" % (int(offset) + 1, sealed)]
    return again


FORGED = Scenario("forged", "forged, replayed and foreign frames on every Redis channel", _play)
