"""The socket edge: Socket.IO 5 over WebSocket. The only package that imports socketio or engineio.

edge.py       the door: handshakes, sessions, events from the bus, drain
front.py      one port for aiohttp and the sockets: looks at the first request of a connection
handshake.py  what is checked of it
websocket.py  messages out of bytes
server.py     python-socketio's AsyncServer, with a client manager that does not scan all rooms
engine.py     our Engine.IO server under it: one socket per WebSocket, one pinger for all
socket.py     one connection, a protocol of asyncio's: everything is written straight to its transport
packets.py    what a connection says: sessions and commands out of packets
session.py    one authenticated client: who it is, the rooms it hears
audience.py   the sessions of each user
attendance.py who of this node is in which room
fanout.py     rooms of this node: one frame per event and serializer, written to every member
codec.py      packets as JSON or msgpack, frames ready for the wire
gate.py       what may come in
admission.py  how many may come in
"""

from hub.transport.socketio.edge import Edge
from hub.transport.socketio.front import listening
from hub.transport.socketio.options import EdgeOptions

__all__ = ["Edge", "EdgeOptions", "listening"]
