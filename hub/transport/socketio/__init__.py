"""The socket edge: Socket.IO 5 over WebSocket. The only package that imports socketio or engineio.

edge.py       the door: handshakes, sessions, events from the bus, drain
server.py     python-socketio's AsyncServer, with a client manager that does not scan all rooms
engine.py     our Engine.IO server under it: one socket per WebSocket, one pinger for all
socket.py     one connection: everything is written straight to its transport
session.py    one authenticated client: who it is, the rooms it hears
fanout.py     rooms of this node: one frame per event and serializer, written to every member
codec.py      packets as JSON or msgpack, frames ready for the wire
gate.py       what may come in
admission.py  how many may come in
"""

from hub.transport.socketio.edge import Edge
from hub.transport.socketio.options import EdgeOptions

__all__ = ["Edge", "EdgeOptions"]
