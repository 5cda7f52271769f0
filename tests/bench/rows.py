"""What is measured: the work, the figures taken from it, and what they are held against."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import msgspec

from tests.bench.servers import BARE, CENTRIFUGE, HUB, NODE, STOCK, Setting

Result = Mapping[str, Any]


class Goal(msgspec.Struct, frozen=True, kw_only=True):
    """At least so many times Node's figure and the bare writer's; where less is better, at most. `figure`: as it is."""

    node: float | None = None
    bare: float | None = None
    figure: float | None = None


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    row: str
    unit: str
    take: Callable[[Result], float]
    better: Literal["more", "less"] = "more"
    goal: Goal = Goal()


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of work. `quick` are options that replace those of `work` where a minute has to be enough."""

    work: str
    what: str
    figures: tuple[Figure, ...]
    servers: tuple[str, ...] = (HUB, NODE, STOCK, BARE, CENTRIFUGE)
    setting: Setting = Setting()
    quick: str = ""
    # Left out of a quick run.
    long: bool = False


def _of(key: str) -> Callable[[Result], float]:
    return lambda result: float(result[key])


def _deliveries(row: str, **goal: float) -> tuple[Figure, ...]:
    return (Figure(row=row, unit="deliveries/s", take=_of("ops_per_s"), goal=Goal(**goal)),)


def _p99(row: str, **goal: float) -> Figure:
    return Figure(row=row, unit="ms p99", take=_of("p99_ms"), better="less", goal=Goal(**goal))


def _cpu(row: str, **goal: float) -> Figure:
    return Figure(row=row, unit="µs CPU/delivery", take=_of("cpu_us_per_op"), better="less", goal=Goal(**goal))


def _grown_mb(result: Result) -> float:
    return float(result["rss_peak_kb"] - result["rss_kb"]) / 1024


_SOCKETIO = (HUB, NODE, STOCK, BARE)
_TWO = Setting(nodes=2)
_ON_TWO = "--n 500 --rooms 100 --no-spin"

MEASUREMENTS = (
    Measurement(
        work="fanout --n 100 --window 1",
        what="one room of 100, one message outstanding",
        figures=_deliveries("fanout_100", node=1.5),
    ),
    Measurement(
        work="fanout --n 1000 --window 1",
        what="one room of 1,000, one message outstanding",
        figures=_deliveries("fanout_1000", node=1.5, bare=0.8),
    ),
    Measurement(
        work="fanout --n 1000 --window 8",
        what="one room of 1,000, eight messages outstanding",
        figures=_deliveries("fanout_1000_burst", node=5),
    ),
    Measurement(
        work="fanout --n 1000 --rate 120 --drain 30",
        what="one room of 1,000, 120 messages a second: more than Node can carry",
        figures=(_p99("fanout_1000_p99", node=0.03),),
        servers=(HUB, NODE, BARE, CENTRIFUGE),
        long=True,
    ),
    Measurement(
        work="fanout --n 10000 --window 2 --at-once 128",
        what="one room of 10,000, two messages outstanding",
        figures=_deliveries("fanout_10000", node=2.5, bare=0.85),
    ),
    Measurement(
        work="rooms --n 5000 --rooms 1000 --window 128",
        what="1,000 rooms of 5, members speak, 128 messages outstanding",
        figures=_deliveries("rooms_1000x5", node=1.6),
    ),
    Measurement(
        work="rooms --n 5000 --rooms 1000 --rate 1000 --drain 10",
        what="1,000 rooms of 5, 1,000 messages a second",
        figures=(_p99("rooms_1000x5_p99", node=0.3), _cpu("rooms_1000x5_cpu")),
        long=True,
    ),
    Measurement(
        work="ack --n 100 --window 1",
        what="100 clients, each with one command outstanding",
        figures=(Figure(row="ack", unit="acks/s", take=_of("ops_per_s"), goal=Goal(node=1.6)),),
    ),
    Measurement(
        work="connect --n 5000 --at-once 64",
        what="5,000 clients come in: upgrade, token, session, join of one room; 64 at a time",
        figures=(
            Figure(row="connect", unit="connects/s", take=_of("connects_per_s"), goal=Goal(node=3.5)),
            Figure(row="connect_p99", unit="ms p99", take=_of("connect_p99_ms"), better="less"),
        ),
        quick="--n 2000",
    ),
    Measurement(
        work="connect --n 5000 --rooms 1000 --at-once 64",
        what="the same into 1,000 rooms of 5",
        figures=(Figure(row="connect_rooms", unit="connects/s", take=_of("connects_per_s")),),
        long=True,
    ),
    Measurement(
        work="idle --n 10000 --browser --deflate --hold 5 --at-once 128",
        what="10,000 browsers that offer compression, in a room and quiet",
        figures=(
            Figure(
                row="idle_kb",
                unit="KB/connection",
                take=_of("rss_per_connection_kb"),
                better="less",
                goal=Goal(figure=13),
            ),
        ),
        servers=_SOCKETIO,
        quick="--n 4000 --hold 1",
    ),
    Measurement(
        work="drop --n 10000 --at-once 128",
        what="10,000 clients are gone at once",
        figures=(
            Figure(row="drop_stall", unit="ms loop stall", take=_of("stall_ms"), better="less", goal=Goal(figure=20)),
            Figure(row="drop_cpu", unit="s CPU", take=_of("drop_cpu_s"), better="less"),
        ),
        servers=(HUB, NODE, STOCK),
        setting=Setting(stall=True),
        long=True,
    ),
    Measurement(
        work=f"fanout {_ON_TWO} --window 64 --apart",
        what="two nodes: said on one, 100 rooms of 5 on the other, 64 messages outstanding",
        figures=_deliveries("two_nodes", node=1.8),
        servers=(HUB, NODE, STOCK, CENTRIFUGE),
        setting=_TWO,
    ),
    Measurement(
        work=f"fanout {_ON_TWO} --rate 1000 --drain 10 --apart",
        what="the same at 1,000 messages a second; CPU of both nodes and Redis",
        figures=(_cpu("two_nodes_cpu", node=0.4), _p99("two_nodes_p99")),
        servers=(HUB, NODE, STOCK, CENTRIFUGE),
        setting=_TWO,
        long=True,
    ),
    Measurement(
        work="relay --n 1 --window 4 --size 65536",
        what="binary messages of 64 KiB, relayed to one receiver, four outstanding",
        figures=(Figure(row="binary", unit="MB/s", take=_of("mb_per_s"), goal=Goal(node=1.5)),),
        servers=_SOCKETIO,
    ),
    Measurement(
        work="upload --n 1 --window 4 --size 65536",
        what="binary messages of 64 KiB, acknowledged, four outstanding",
        figures=(Figure(row="binary_upload", unit="MB/s", take=_of("mb_per_s")),),
        servers=_SOCKETIO,
        long=True,
    ),
    Measurement(
        work=f"fanout {_ON_TWO} --window 64 --say bench:record --apart",
        what="two nodes, recorded events (Node: the Streams adapter), 100 rooms of 5, 64 outstanding",
        figures=_deliveries("recorded", node=1.0),
        servers=(HUB, NODE, CENTRIFUGE),
        setting=Setting(nodes=2, recorded=True),
    ),
    Measurement(
        work="fanout --n 1000 --window 1 --say bench:record",
        what="one node, recorded events in a room of 1,000, one outstanding",
        figures=_deliveries("recorded_1000", node=1.0),
        servers=(HUB, NODE, CENTRIFUGE),
        setting=Setting(recorded=True),
        long=True,
    ),
    Measurement(
        work="rooms --n 5000 --rooms 1000 --window 128 --say bench:record",
        what="one node, recorded events in 1,000 rooms of 5, 128 outstanding",
        figures=_deliveries("recorded_1000x5", node=1.0),
        servers=(HUB, NODE, CENTRIFUGE),
        setting=Setting(recorded=True),
        long=True,
    ),
    Measurement(
        work="fanout --n 100 --rate 100 --payload 16000 --dur 10",
        what="a room of 100, 16 KB 100 times a second, everybody reads",
        figures=(_p99("quiet_p99"),),
        servers=_SOCKETIO,
        long=True,
    ),
    Measurement(
        work="fanout --n 100 --rate 100 --payload 16000 --dur 10 --stalled 5",
        what="the same, and five members never read",
        figures=(
            Figure(row="slow_memory", unit="MB grown", take=_grown_mb, better="less", goal=Goal(figure=5 * 1.05)),
            _p99("slow_p99"),
            Figure(row="slow_kept", unit="of 5 kept", take=_of("stalled_kept"), better="less", goal=Goal(figure=0)),
        ),
        servers=_SOCKETIO,
        long=True,
    ),
)
