"""A client that applied the events has the picture of one that joined now: for every command that emits."""

from __future__ import annotations

from typing import Any

import msgspec

from tests.actions.conftest import Node, eventually


class Client:
    """What a client keeps of a room: exactly what events tell, as the documents say."""

    def __init__(self, snapshot: Any) -> None:
        picture = msgspec.to_builtins(snapshot)
        self.call: dict[str, Any] = picture["call"]
        self.people: dict[str, Any] = {each["participant_id"]: each for each in picture["participants"]}
        self.hands: list[Any] = picture["hands"]
        self.chat: list[Any] = picture["chat"]
        self.lobby: list[Any] = picture["lobby"] or []

    def hear(self, name: str, event: dict[str, Any]) -> None:
        match name:
            case "room:started" | "room:updated" | "room:ended":
                self.call = event["call"]
            case "participant:joined":
                self.people |= {each["participant_id"]: each for each in event["participants"]}
            case "participant:left":
                for each in event["participants"]:
                    self.people.pop(each["participant_id"], None)
                self.hands = [hand for hand in self.hands if hand["participant_id"] in self.people]
            case "participant:updated":
                self.people[event["participant"]["participant_id"]] = event["participant"]
            case "media:changed":
                self.people[event["participant_id"]]["media"] = event["media"]
            case "hand:raised" | "hand:lowered":
                self.hands = event["queue"]
                up = {hand["participant_id"]: hand["raised_at"] for hand in self.hands}
                for key, each in self.people.items():
                    each["hand_raised_at"] = up.get(key)
            case "chat:posted":
                self.chat.append(event["message"])
            case "chat:deleted":
                self.chat = [each for each in self.chat if each["message_id"] != event["message_id"]]
            case "lobby:knocked":
                self.lobby.append(event["entry"])
            case "lobby:updated":
                gone = {each["ticket"] for each in event["entries"]}
                self.lobby = [each for each in self.lobby if each["ticket"] not in gone]
                for position, each in enumerate(self.lobby, 1):
                    each["position"] = position

    def picture(self) -> dict[str, Any]:
        # The count is told with comings and goings, and time runs on.
        call = {key: value for key, value in self.call.items() if key not in ("participant_count", "duration_s")}
        people = {key: {**each, "duration_s": 0} for key, each in self.people.items()}
        return {"call": call, "people": people, "hands": self.hands, "chat": self.chat, "lobby": self.lobby}


async def test_snapshot_and_events_are_a_fresh_snapshot(hub: Node) -> None:
    owner = hub.person("owner")
    call_id = await owner.room()
    watcher = owner.socket()
    client = Client(await watcher.join(call_id))
    bob, eve = hub.person("bob").socket(), hub.person("eve").socket()
    his = (await bob.join(call_id)).self.participant_id
    hers = (await eve.join(call_id)).self.participant_id
    on_call: dict[str, Any] = {"call_id": call_id}
    steps = [
        (watcher, "room:update", {"name": "Other", "metadata": {"a": 1}, "features": {"chat": False}}),
        (bob, "participant:update", {"display_name": "Bobby", "metadata": {"b": 2}}),
        (watcher, "participant:set_role", {"participant_id": his, "role": "moderator"}),
        (bob, "hand:raise", {}),
        (eve, "hand:raise", {}),
        (watcher, "hand:lower", {"participant_id": his}),
        (eve, "media:set", {"microphone": True, "camera": True, "screen_share": False}),
        (bob, "participant:kick", {"participant_id": hers}),
        (bob, "room:leave", {}),
        (bob, "room:join", {}),
        (watcher, "room:end", {}),
    ]
    told = 0
    for socket, name, fields in steps:
        await socket.do(name, **on_call, **fields)
        for heard in watcher.heard[told:]:
            client.hear(*heard)
        told = len(watcher.heard)
        if name != "room:end":
            fresh = Client(await watcher.join(call_id))
            assert client.picture() == fresh.picture(), name
    assert client.call["status"] == "ended"
    assert client.people == {}


async def test_what_is_written_and_who_waits_too(hub: Node) -> None:
    """What comes by a person's own log is in the picture like what the room is told."""
    owner = hub.person("owner")
    call_id = await owner.room()
    watcher, bob = await owner.listening(), hub.person("bob").socket()
    his = (await bob.join(call_id)).self.participant_id
    client = Client(await watcher.join(call_id))
    await watcher.do("room:update", call_id=call_id, lobby_enabled=True)
    waiting = [hub.person(name).socket() for name in ("p1", "p2", "p3")]

    async def agrees(direct: int) -> None:
        """`direct`: how many events of the person's own log there were so far."""
        await eventually(lambda: len([event for _, event in watcher.heard if "call_id" not in event]) == direct)
        for heard in watcher.heard:
            client.hear(*heard)
        watcher.heard.clear()
        assert client.picture() == Client(await watcher.join(call_id)).picture()

    for knocker in waiting:
        await knocker.do("lobby:knock", call_id=call_id)
    await agrees(3)
    sent = (await bob.do("chat:post", call_id=call_id, text="to all")).message
    await waiting[0].do("lobby:cancel", call_id=call_id)
    await watcher.do("chat:post", call_id=call_id, text="to one", to=his)
    await agrees(2)
    await watcher.do("chat:delete", call_id=call_id, message_id=sent.message_id)
    await watcher.do("lobby:admit", call_id=call_id, all=True)
    await agrees(1)
    assert [each["text"] for each in client.chat] == ["to one"]
    assert client.lobby == []
