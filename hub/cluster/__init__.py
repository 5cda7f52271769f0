"""What nodes share through Redis: the bus, who is in which room, which nodes there are, limits and locks."""

from hub.cluster.bus import Bus, Listener, Missed
from hub.cluster.cluster import Cluster
from hub.cluster.nodes import NodeInfo, Nodes

__all__ = ["Bus", "Cluster", "Listener", "Missed", "NodeInfo", "Nodes"]
