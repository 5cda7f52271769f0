"""The history checker: people do what they like while nodes, Redis and links fail at random; judged afterwards."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack

from hub.protocol.errors import ClusterUnavailable
from tests.fakes.proxy import Mode, Proxy
from tests.faults.drill import checks
from tests.faults.drill.checks import Violation
from tests.faults.drill.client import Client
from tests.faults.drill.figures import Figure, none, told
from tests.faults.drill.ground import Ground
from tests.faults.drill.history import Roster
from tests.faults.drill.load import counted, quiet
from tests.faults.drill.plan import Plan, Scenario

_SEATS = 6
# At least so many rooms there are, and everybody is in fewer.
_ROOMS_EACH = 4
_GRACE_S = 10.0
_CALM_S = 10.0


async def _play(ground: Ground, plan: Plan) -> Sequence[Figure]:
    chance = random.Random(plan.seed)
    async with AsyncExitStack() as stack:
        proxies = []
        for _ in range(3):
            proxy, url = await stack.enter_async_context(ground.proxied_redis())
            await ground.node(redis_url=url, AURALINK_SOCKET_GRACE_S=str(_GRACE_S))
            proxies.append(proxy)
        people = await ground.crowd(max(6, plan.people(40)))
        town = _Town(ground, people, chance)
        await town.build(max(_ROOMS_EACH, len(people) // _SEATS))
        faults: Counter[str] = Counter()
        async with asyncio.TaskGroup() as tasks:
            going = [tasks.create_task(town.live(client)) for client in people]
            until = time.monotonic() + plan.minutes * 60
            while time.monotonic() < until:
                await asyncio.sleep(chance.uniform(1, 3) if plan.short else chance.uniform(3, 8))
                faults[await _Nemesis(ground, proxies, chance).strike()] += 1
                ground.healed()
                town.calm = True
                await town.watch(_CALM_S)
                town.calm = time.monotonic() >= until
            town.over = True
            await asyncio.wait(going, timeout=120)
        await asyncio.sleep(_GRACE_S + 8)
        await quiet(ground)
        await ground.finish()
        return await _verdict(ground, town, faults)


async def _verdict(ground: Ground, town: _Town, faults: Counter[str]) -> Sequence[Figure]:
    history = ground.history.entries
    codes = Counter(code for client in town.people for _, code in client.answers)
    slowest = max((seconds for client in town.people for seconds, _ in client.answers), default=0.0)
    return [
        *(told(f"faults: {name}", count) for name, count in sorted(faults.items())),
        *(told(f"answered {code}", count) for code, count in sorted(codes.items())),
        told("slowest answer", slowest, "s"),
        told("entries checked", len(history)),
        told("events that came again and were filtered", ground.history.repeats),
        told("rosters compared", sum(isinstance(entry, Roster) for entry in history)),
        *(counted(ground, f"violations: {name}", check(history)) for name, check in checks.CHECKS.items()),
        counted(ground, "violations: capacity", checks.capacity(history, dict.fromkeys(town.calls, _SEATS))),
        counted(ground, "violations: statuses", await town.statuses()),
        none("commands nobody knows the outcome of at the end", _open_ops(ground)),
        none("heals after which nothing could be compared", town.unseen),
    ]


def _open_ops(ground: Ground) -> int:
    return sum(op.outcome is None for op in checks.ops(ground.history).values())


class _Town:
    """Rooms with few seats, people who come, speak, go, and hosts who put them out."""

    def __init__(self, ground: Ground, people: list[Client], chance: random.Random) -> None:
        self.ground, self.people, self._chance = ground, people, chance
        self.calls: list[str] = []
        self._hosts: dict[str, Client] = {}
        # Nobody comes or goes: rosters are compared.
        self.calm = False
        self.over = False
        self.unseen = 0
        self._moving = 0

    async def build(self, rooms: int) -> None:
        for number in range(rooms):
            host = self.people[number]
            call = await self.ground.room(seats=_SEATS, owner=host.user, node=number % len(self.ground.urls))
            self.calls.append(call)
            self._hosts[call] = host
            if await host.join(call) != "ok":
                raise RuntimeError("a host could not enter")

    async def live(self, client: Client) -> None:
        chance = random.Random(f"{self._chance.random()}")
        while not self.over:
            await asyncio.sleep(chance.uniform(0.2, 1.2))
            await self._act(client, chance)

    async def _act(self, client: Client, chance: random.Random) -> None:
        mine = list(client.rooms)
        hosted = [call for call in mine if self._hosts[call] is client]
        what = chance.random()
        if not mine or (what < 0.1 and len(mine) < _ROOMS_EACH - 1):
            await self._move(lambda: client.join(self._other(client, chance), patience_s=20))
        elif what < 0.65:
            await client.update(chance.choice(mine))
        elif what < 0.8:
            await client.ask(chance.choice(("hand:raise", "hand:lower")), chance.choice(mine))
        elif what < 0.87 and not hosted:
            await self._move(lambda: client.leave(chance.choice(mine)))
        elif what < 0.93 and hosted:
            await self._move(lambda: self._kick(client, chance.choice(hosted), chance))
        elif what < 0.95:
            await self._move(lambda: self._cut(client))

    def _other(self, client: Client, chance: random.Random) -> str:
        return chance.choice([call for call in self.calls if call not in client.rooms])

    async def _move(self, do: Callable[[], Awaitable[object]]) -> None:
        if self.calm:
            return
        self._moving += 1
        try:
            await do()
        finally:
            self._moving -= 1

    async def _kick(self, host: Client, call: str, chance: random.Random) -> None:
        room = host.rooms.get(call)
        others = [(key, each) for key, each in room.view.people.items() if each.user != host.user] if room else []
        if others:
            participant_id, target = chance.choice(others)
            await host.ask("participant:kick", call, target=target.user, participant_id=participant_id)

    @staticmethod
    async def _cut(client: Client) -> None:
        client.cut()

    # What is compared

    async def watch(self, seconds: float) -> None:
        until, compared = time.monotonic() + seconds, False
        while time.monotonic() < until:
            compared = await self._compare() or compared
            await asyncio.sleep(0.5)
        self.unseen += not compared

    async def _compare(self) -> bool:
        """Whether nothing moved while it was looked at."""
        before = self._truth()
        try:
            shown = await self.ground.sessions_by_call(self.calls)
        except ClusterUnavailable:
            # Redis itself is not back yet: no answer is no comparison.
            return False
        if self._moving or before is None or self._truth() != before:
            return False
        now = time.monotonic()
        for call in self.calls:
            self.ground.history.add(Roster(now, call, tuple(sorted(shown[call])), tuple(sorted(before[call]))))
        return True

    def _truth(self) -> dict[str, set[str]] | None:
        """Sessions by call; None while somebody is coming back."""
        if any(client.rooms and not client.settled.is_set() for client in self.people):
            return None
        return {call: {each.session for each in self.people if call in each.rooms} for call in self.calls}

    async def statuses(self) -> list[Violation]:
        """In the end the database says who is in, and nobody else is."""
        wrong = []
        for call in self.calls:
            there = {client.user for client in self.people if call in client.rooms}
            found = await self.ground.statuses(call)
            shown = {user for user, status in found.items() if status in ("joined", "reconnecting")}
            if shown != there:
                text = f"missing {sorted(there - shown)}, ghosts {sorted(shown - there)} in {call}"
                wrong.append(Violation("statuses", time.monotonic(), text))
        return wrong


class _Nemesis:
    """One fault, from its beginning to its end."""

    def __init__(self, ground: Ground, proxies: Sequence[Proxy], chance: random.Random) -> None:
        self._ground, self._proxies, self._chance = ground, proxies, chance

    async def strike(self) -> str:
        kinds = (self._kill, self._stop, self._redis, self._redis_emptied, self._link, self._two_links)
        kind = self._chance.choice(kinds)
        name = kind.__name__.removeprefix("_")
        self._ground.fault(name)
        await kind()
        return name

    def _some(self, low: float, high: float) -> float:
        return self._chance.uniform(low, high)

    async def _kill(self) -> None:
        node = self._chance.choice(self._ground.nodes)
        await node.kill()
        await asyncio.sleep(self._some(0.5, 8))
        await self._ground.start(node)

    async def _stop(self) -> None:
        node = self._chance.choice(self._ground.nodes)
        node.freeze()
        try:
            await asyncio.sleep(self._some(1, 12))
        finally:
            node.thaw()

    async def _redis(self) -> None:
        await self._without_redis(lose=False)

    async def _redis_emptied(self) -> None:
        await self._without_redis(lose=True)

    async def _without_redis(self, *, lose: bool) -> None:
        valkey = self._ground.servers.valkey
        await asyncio.to_thread(valkey.kill)
        try:
            await asyncio.sleep(self._some(0.2, 6))
            if lose:
                await asyncio.to_thread(self._ground.lose_redis_data)
        finally:
            await asyncio.to_thread(valkey.start)

    async def _link(self) -> None:
        await self._break([self._chance.choice(self._proxies)])

    async def _two_links(self) -> None:
        await self._break(self._chance.sample(self._proxies, 2))

    async def _break(self, proxies: Sequence[Proxy]) -> None:
        modes: tuple[Mode, ...] = ("refuse", "reset", "blackhole", "freeze")
        for proxy in proxies:
            proxy.set(self._chance.choice(modes))
        await asyncio.sleep(self._some(0.5, 10))
        for proxy in proxies:
            proxy.set("pass")


RANDOM = Scenario("history", "people on three nodes under random faults for --minutes, checked offline", _play)
