"""A WebRTC client for tests and demos: joins a LiveKit room, publishes, and prints what it sees as JSON lines.

    python tests/rtc_client.py --url ws://127.0.0.1:7880 --token … --seconds 10 --audio --video

Always a process of its own: the WebRTC library allows one engine a process, does not survive a fork, and kills the
process when a connect is canceled (so this never cancels one). Nothing of the hub is imported.

Printed events: connected, failed, participant_connected, participant_disconnected, track_published (its own),
track_subscribed, track_unsubscribed, track_muted, track_unmuted, frames (counts so far, by person and kind), data,
room_metadata, participant_changed, permissions, reconnecting, reconnected, disconnected. Commands, as JSON lines on
stdin: {"do": "send", "data": …, "topic": …, "to": […]}, {"do": "publish", "source": "microphone"},
{"do": "mute", "source": …, "muted": true}, {"do": "reconnect"} (a full one), {"do": "leave"}. SIGTERM leaves too.
Exit code 0 after a leave, 1 when it could not connect, 3 when it was disconnected.
"""

from __future__ import annotations

import argparse
import array
import asyncio
import contextlib
import json
import math
import re
import signal
import sys
from collections import Counter
from typing import Any

from livekit import rtc

CONNECT_S = 10.0
SAMPLE_RATE, SAMPLES = 48_000, 480  # 10 ms a frame
WIDTH, HEIGHT, FPS = 160, 120, 10  # below 16x16 the encoder aborts the process
_SOURCES = {
    "microphone": rtc.TrackSource.SOURCE_MICROPHONE,
    "camera": rtc.TrackSource.SOURCE_CAMERA,
    "screen_share": rtc.TrackSource.SOURCE_SCREENSHARE,
}


def say(event: str, **fields: Any) -> None:
    print(json.dumps({"event": event, **fields}), flush=True)


class Client:
    def __init__(self) -> None:
        self.room = rtc.Room()
        self.left = asyncio.Event()
        self.disconnected = False
        self.frames: Counter[tuple[str, str]] = Counter()
        self.tracks: dict[str, rtc.LocalTrack] = {}
        self.tasks: set[asyncio.Task[None]] = set()
        self._listen()

    def spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self.tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            say("error", error=scrub(error))

    def _listen(self) -> None:
        room = self.room
        room.on("participant_connected", lambda who: say("participant_connected", **person(who)))
        room.on("participant_disconnected", lambda who: say("participant_disconnected", **person(who)))
        room.on("track_subscribed", self._subscribed)
        room.on("track_unsubscribed", lambda _, pub, who: say("track_unsubscribed", **track(pub), by=who.identity))
        room.on("track_muted", lambda who, pub: say("track_muted", **track(pub), by=who.identity))
        room.on("track_unmuted", lambda who, pub: say("track_unmuted", **track(pub), by=who.identity))
        room.on("data_received", self._data)
        room.on("room_metadata_changed", lambda _old, new: say("room_metadata", metadata=new))
        room.on("participant_metadata_changed", lambda who, *_: say("participant_changed", **person(who)))
        room.on("participant_attributes_changed", lambda _, who: say("participant_changed", **person(who)))
        room.on("participant_name_changed", lambda who, *_: say("participant_changed", **person(who)))
        room.on("participant_permissions_changed", lambda who, *_: say("permissions", **permissions(who)))
        room.on("reconnecting", lambda: say("reconnecting"))
        room.on("reconnected", lambda: say("reconnected", sid=room.local_participant.sid))
        room.on("disconnected", self._gone)

    def _subscribed(self, track_: rtc.Track, publication: rtc.RemoteTrackPublication, who: Any) -> None:
        say("track_subscribed", **track(publication), by=who.identity)
        stream = rtc.AudioStream(track_) if track_.kind == rtc.TrackKind.KIND_AUDIO else rtc.VideoStream(track_)
        kind = "audio" if track_.kind == rtc.TrackKind.KIND_AUDIO else "video"
        self.spawn(self._count(stream, (who.identity, kind)))

    async def _count(self, stream: Any, key: tuple[str, str]) -> None:
        try:
            async for _ in stream:
                self.frames[key] += 1
        finally:
            await stream.aclose()

    def _data(self, packet: rtc.DataPacket) -> None:
        sender = packet.participant.identity if packet.participant else ""
        say("data", data=packet.data.decode(errors="replace"), topic=packet.topic or "", by=sender)

    def _gone(self, reason: int) -> None:
        self.disconnected = not self.left.is_set()
        say("disconnected", reason=rtc.DisconnectReason.Name(reason))  # type: ignore[arg-type]
        self.left.set()

    async def publish(self, source: str) -> None:
        options = rtc.TrackPublishOptions(source=_SOURCES[source])
        made: rtc.LocalTrack
        if source == "microphone":
            audio = rtc.AudioSource(SAMPLE_RATE, 1)
            made = rtc.LocalAudioTrack.create_audio_track(source, audio)
            self.spawn(tone(audio))
        else:
            video = rtc.VideoSource(WIDTH, HEIGHT)
            made = rtc.LocalVideoTrack.create_video_track(source, video)
            self.spawn(picture(video))
        publication = await self.room.local_participant.publish_track(made, options)
        self.tracks[source] = made
        say("track_published", **track(publication))

    async def obey(self, command: dict[str, Any]) -> None:
        match command["do"]:
            case "leave":
                self.left.set()
            case "reconnect":
                await self.room.simulate_scenario(rtc.SimulateScenarioKind.SIMULATE_FULL_RECONNECT)
            case "publish":
                await self.publish(command["source"])
            case "mute":
                made = self.tracks[command["source"]]
                if isinstance(made, rtc.LocalAudioTrack | rtc.LocalVideoTrack):
                    (made.mute if command["muted"] else made.unmute)()
            case "send":
                await self.room.local_participant.publish_data(
                    command["data"].encode(),
                    topic=command.get("topic", ""),
                    destination_identities=command.get("to", []),
                )
            case unknown:
                say("error", error=f"no such command: {unknown}")

    async def read_commands(self) -> None:
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        except (OSError, ValueError):
            return  # /dev/null or a file: nobody will say anything
        while line := await reader.readline():
            self.spawn(self.obey(json.loads(line)))

    async def report_frames(self) -> None:
        seen: Counter[tuple[str, str]] = Counter()
        while True:
            await asyncio.sleep(0.5)
            for (identity, kind), count in self.frames.items():
                if count != seen[identity, kind]:
                    say("frames", by=identity, kind=kind, count=count)
            seen = self.frames.copy()


async def tone(source: rtc.AudioSource) -> None:
    wave = array.array("h", (int(8000 * math.sin(2 * math.pi * 440 * n / SAMPLE_RATE)) for n in range(SAMPLES)))
    frame = rtc.AudioFrame(wave.tobytes(), SAMPLE_RATE, 1, SAMPLES)
    while True:
        # Waits by itself while its queue is full, so this runs at the pace of the sound.
        await source.capture_frame(frame)


async def picture(source: rtc.VideoSource) -> None:
    shade = 0
    while True:
        shade = (shade + 8) % 256
        pixels = bytes((shade, 128, 255 - shade, 255)) * (WIDTH * HEIGHT)
        source.capture_frame(rtc.VideoFrame(WIDTH, HEIGHT, rtc.VideoBufferType.RGBA, pixels))
        await asyncio.sleep(1 / FPS)


def person(who: Any) -> dict[str, Any]:
    return {
        "identity": who.identity,
        "sid": who.sid,
        "name": who.name,
        "metadata": who.metadata,
        "attributes": dict(who.attributes),
    }


def track(publication: Any) -> dict[str, Any]:
    source = next((name for name, value in _SOURCES.items() if value == publication.source), "unknown")
    return {"track_sid": publication.sid, "source": source, "muted": publication.muted}


def permissions(who: Any) -> dict[str, Any]:
    allowed = who.permissions
    return {"identity": who.identity, "can_publish": allowed.can_publish, "can_subscribe": allowed.can_subscribe}


def scrub(error: BaseException) -> str:
    """The library puts the whole token into its messages."""
    return re.sub(r"eyJ[\w-]+\.[\w-]+\.[\w-]+", "<token>", str(error))


async def run(options: argparse.Namespace) -> int:
    client = Client()
    # An address of this machine, so that no public STUN server is looked up.
    config = rtc.RtcConfiguration(ice_servers=[rtc.IceServer(urls=["stun:127.0.0.1:3478"])])
    try:
        await client.room.connect(
            options.url, options.token, rtc.RoomOptions(connect_timeout=CONNECT_S, rtc_config=config)
        )
    except rtc.ConnectError as error:
        say("failed", error=scrub(error))
        return 1
    room = client.room
    others = [person(who) for who in room.remote_participants.values()]
    say("connected", room=room.name, **person(room.local_participant), participants=others)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, client.left.set)
    client.spawn(client.read_commands())
    client.spawn(client.report_frames())
    for source, wanted in (("microphone", options.audio), ("camera", options.video), ("screen_share", options.screen)):
        if wanted:
            client.spawn(client.publish(source))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(options.seconds):
            await client.left.wait()
    client.left.set()
    for task in list(client.tasks):
        task.cancel()
    await asyncio.gather(*client.tasks, return_exceptions=True)
    await room.disconnect()
    return 3 if client.disconnected else 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Join a LiveKit room and print what happens as JSON lines.")
    parser.add_argument("--url", required=True)
    parser.add_argument("--token", required=True)
    parser.add_argument("--seconds", type=float, default=30.0, help="leave after this long")
    parser.add_argument("--audio", action="store_true", help="publish a tone as the microphone")
    parser.add_argument("--video", action="store_true", help="publish a changing picture as the camera")
    parser.add_argument("--screen", action="store_true", help="publish a changing picture as the shared screen")
    return asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
