"""What nodes share through Redis: the bus, who is in which room, which nodes there are, limits and locks."""

from hub.cluster.bus import Bus, Direct, Missed
from hub.cluster.cluster import Cluster
from hub.cluster.limits import Limits, Verdict
from hub.cluster.lock import Leadership, Lock
from hub.cluster.nodes import NodeInfo, Nodes
from hub.cluster.roster import Lost, Roster, Swept
from hub.cluster.sessions import SessionInfo, Sessions
from hub.cluster.streams import Listener

__all__ = [
    "Bus",
    "Cluster",
    "Direct",
    "Leadership",
    "Limits",
    "Listener",
    "Lock",
    "Lost",
    "Missed",
    "NodeInfo",
    "Nodes",
    "Roster",
    "SessionInfo",
    "Sessions",
    "Swept",
    "Verdict",
]
