"""People come and go for minutes, over and over, and at the end nothing of them is left that should not be."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import asyncpg
import msgspec
import psutil  # type: ignore[import-untyped]

from tests.faults.drill.figures import Figure, at_most, none, told
from tests.faults.drill.ground import Ground, until
from tests.faults.drill.load import quiet
from tests.faults.drill.plan import Plan, Scenario

# Pools and log files may have grown to their working size; nothing may grow with the number of people who were there.
_MORE_FILES, _MORE_TASKS, _MORE_MB = 8, 10, 32.0
_SETTLED_S = 30.0
_POOL = 5

# Every foreign key, as a count of rows that point to nothing.
_KEYS = """
SELECT con.conrelid::regclass::text AS child, con.confrelid::regclass::text AS parent,
       array_agg(a.attname ORDER BY k.at) AS columns, array_agg(b.attname ORDER BY k.at) AS targets
FROM pg_constraint con
CROSS JOIN LATERAL unnest(con.conkey, con.confkey) WITH ORDINALITY AS k(child, parent, at)
JOIN pg_attribute a ON a.attrelid = con.conrelid AND a.attnum = k.child
JOIN pg_attribute b ON b.attrelid = con.confrelid AND b.attnum = k.parent
WHERE con.contype = 'f'
GROUP BY con.oid, con.conrelid, con.confrelid
"""


class _State(msgspec.Struct, frozen=True):
    """Of all nodes together, and of the servers behind them."""

    files: int
    tasks: float
    megabytes: float
    connections: int
    # Keys that would stay for ever.
    keys: int


async def _play(ground: Ground, plan: Plan) -> Sequence[Figure]:
    await ground.several(2, AURALINK_SOCKET_GRACE_S="5", AURALINK_DATABASE_POOL=str(_POOL))
    count = plan.people(60)
    calls = [await ground.room() for _ in range(max(1, count // 10))]
    # Once around first: pools are filled and caches made by then.
    await _round(ground, count, calls)
    before = await _settled(ground, None)
    rounds, until_s = 0, time.monotonic() + (10 if plan.short else plan.minutes * 60)
    while time.monotonic() < until_s:
        await _round(ground, count, calls)
        rounds += 1
    after = await _settled(ground, before)
    await quiet(ground)
    return [
        told("people who came and went", rounds * count),
        at_most("more open files", after.files - before.files, _MORE_FILES, ""),
        at_most("more tasks", after.tasks - before.tasks, _MORE_TASKS, ""),
        at_most("more memory", after.megabytes - before.megabytes, _MORE_MB, "MB"),
        at_most("connections to PostgreSQL", after.connections, 2 * _POOL, ""),
        at_most("more keys without an end", after.keys - before.keys, 0, ""),
        none("rows that point to nothing", await _orphans(ground)),
    ]


async def _round(ground: Ground, count: int, calls: list[str]) -> None:
    """In, a word each, and out: half by saying so, half by going away."""
    people = [ground.client(f"u{i}", first=i % 2) for i in range(count)]
    await ground.each(people, lambda client: client.start())
    where = {client.user: calls[i % len(calls)] for i, client in enumerate(people)}
    await ground.each(people, lambda client: client.join(where[client.user]))
    await ground.each(people, lambda client: client.update(where[client.user]))
    await ground.each(people[::2], lambda client: client.leave(where[client.user]))
    await asyncio.gather(*(client.close() for client in people))


async def _settled(ground: Ground, goal: _State | None) -> _State:
    """When the graces are over; or as it is after a while."""
    state = await _state(ground)

    async def reached() -> bool:
        nonlocal state
        state = await _state(ground)
        return goal is not None and state.keys <= goal.keys and state.files <= goal.files + _MORE_FILES

    await asyncio.sleep(8)
    await until(reached, timeout_s=_SETTLED_S if goal else 0.5, every_s=1)
    return state


async def _state(ground: Ground) -> _State:
    processes = [psutil.Process(node.pid) for node in ground.nodes]
    admin = await asyncpg.connect(ground.database.admin_dsn)
    try:
        connections = await admin.fetchval(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name = 'auralink-hub'"
        )
    finally:
        await admin.close()
    return _State(
        files=sum(process.num_fds() for process in processes),
        tasks=sum([await ground.metric(node, "event_loop_tasks") for node in ground.nodes]),
        megabytes=sum(process.memory_info().rss for process in processes) / 1e6,
        connections=connections,
        keys=await ground.keys_for_ever(),
    )


async def _orphans(ground: Ground) -> int:
    admin = await asyncpg.connect(ground.database.admin_dsn)
    try:
        found = 0
        for key in await admin.fetch(_KEYS):
            pairs = list(zip(key["columns"], key["targets"], strict=True))
            known = " AND ".join(f"child.{column} IS NOT NULL" for column, _ in pairs)
            same = " AND ".join(f"parent.{target} = child.{column}" for column, target in pairs)
            found += await admin.fetchval(
                f"SELECT count(*) FROM {key['child']} child WHERE {known}"
                f" AND NOT EXISTS (SELECT 1 FROM {key['parent']} parent WHERE {same})"
            )
        return found
    finally:
        await admin.close()


SOAK = Scenario("soak", "people come and go for minutes: nothing of them stays", _play)
