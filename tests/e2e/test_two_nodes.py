"""Two nodes are one hub: one order, one effect, one roster; and a node may go in good order or without a word."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest

from tests.e2e.stage import STEP_S, NodeProcess, Person, Stage, eventually, op_id

pytestmark = pytest.mark.asyncio(loop_scope="module")

# Small, so that a test may wait for it.
SOCKET_GRACE_S = 8


async def two(hub: Stage) -> tuple[NodeProcess, NodeProcess]:
    if len(hub.nodes) < 2:
        await hub.node()
    return hub.nodes[0], hub.nodes[1]


async def test_members_on_both_nodes_hear_the_same_events_in_the_same_order(hub: Stage) -> None:
    """S-246: what arises on either node at the same time has one order, and everybody hears it whole."""
    first, second = await two(hub)
    people = [hub.person(f"p{n}", node=(first, second)[n % 2]) for n in range(4)]
    call_id = (await people[0].create())["call_id"]
    for person in people:
        await person.connect()
        await person.join(call_id)

    async def busy(person: Person) -> None:
        for turn in range(8):
            await person.ask("hand:raise" if turn % 2 == 0 else "hand:lower", call_id=call_id)

    await asyncio.gather(*(busy(person) for person in people))
    last = await people[0].ask("participant:update", call_id=call_id, display_name="The last")
    assert last["participant"]["display_name"] == "The last"

    def heard(person: Person) -> list[tuple[int, str, str]]:
        return [
            (payload["offset"], payload["epoch"], name)
            for name, payload in person.heard
            if "offset" in payload and name != "participant:joined"
        ]

    for person in people:
        await person.wait_for("participant:updated", lambda event: event["participant"]["display_name"] == "The last")
    stories = [heard(person) for person in people]
    assert stories[0] == stories[1] == stories[2] == stories[3]
    offsets = [offset for offset, _, _ in stories[0]]
    assert offsets == list(range(offsets[0], offsets[0] + len(offsets)))
    assert Counter(name for _, _, name in stories[0])["hand:raised"] == 16


# Of protocol.md, what a node counts; with what of it has a figure after one call over two nodes.
FAMILIES = frozenset(
    (
        "sockets",
        "sessions",
        "rooms",
        "participants",
        "connects_total",
        "commands_total",
        "command_seconds",
        "events_sent_total",
        "socket_sent_bytes_total",
        "slow_consumers_total",
        "fanout_lag_seconds",
        "recoveries_total",
        "nodes",
        "http_requests_total",
        "http_seconds",
        "database_statements_total",
        "database_statement_seconds",
        "database_connections",
        "livekit_calls_total",
        "livekit_call_seconds",
        "webhooks_total",
        "webhook_lag_seconds",
        "webhooks_processed_total",
        "reconcile_corrections_total",
        "sweeps_total",
        "event_loop_lag_seconds",
        "event_loop_tasks",
        "draining",
        "ready",
        "bus_events_total",
        "bus_reconnects_total",
    )
)
SILENT = frozenset(("webhooks_total", "webhook_lag_seconds", "webhooks_processed_total", "reconcile_corrections_total"))


async def test_the_metrics_of_a_node_tell_of_everything_and_name_nobody(hub: Stage) -> None:
    """Every family is there after one call over two nodes, and no label says a room, a user or a tenant."""
    first, second = await two(hub)
    ann, ben = hub.person("metric-ann", node=first), hub.person("metric-ben", node=second)
    call_id = (await ann.create())["call_id"]
    for person in (ann, ben):
        await person.connect()
        joined = await person.join(call_id)
    await ann.ask("hand:raise", call_id=call_id)
    await ben.wait_for("hand:raised", lambda _: True)
    await ben.ask("room:sync", call_id=call_id, since=joined["position"])

    async def scraped(node: NodeProcess) -> str:
        async with aiohttp.ClientSession() as http, http.get(f"{node.internal_url}/metrics") as response:
            return await response.text()

    async def told() -> bool:
        # The rarest is looked up every five seconds.
        found = await scraped(second)
        return 'auralink_hub_nodes{status="ready"} 2.0' in found and "auralink_hub_participants 1.0" in found

    await eventually(told, timeout_s=15)
    text = await scraped(second)
    assert not FAMILIES - set(re.findall(r"^# TYPE auralink_hub_(\w+) ", text, re.MULTILINE))
    # One of the two sweeps.
    both = text + await scraped(first)
    figures = set(re.findall(r"^auralink_hub_(\w+?)(?:_bucket|_count|_sum)?(?:\{[^}]*\})? ", both, re.MULTILINE))
    assert not FAMILIES - SILENT - figures
    assert re.search(r'recoveries_total\{log="room",result="recovered"\} [1-9]', text)
    assert re.search(r"fanout_lag_seconds_count [1-9]", text)
    assert re.search(r'database_statements_total\{outcome="ok",statement="calls\.GET"\} [1-9]', text)
    for secret in (call_id, "metric-ann", "metric-ben"):
        assert secret not in both


async def test_a_kick_on_one_node_puts_out_a_session_on_the_other(hub: Stage) -> None:
    """S-018, S-246: and what is said in the room afterwards, they do not hear."""
    first, second = await two(hub)
    ada, ben = hub.person("ada", node=second), hub.person("ben", node=first)
    call_id = (await ada.create())["call_id"]
    await ada.connect()
    await ben.connect()
    await ada.join(call_id)
    ben_id = (await ben.join(call_id))["self"]["participant_id"]
    await ada.ask("participant:kick", call_id=call_id, participant_id=ben_id, reason="noise")
    assert (await ben.wait_for("room:left"))["reason"] == "kicked"
    told = await ada.wait_for_left(ben_id, timeout_s=STEP_S)
    assert told["status"] == "kicked"
    before = len(ben.heard)
    await ada.ask("hand:raise", call_id=call_id)
    await ada.wait_for("hand:raised")
    assert (await ben.ack("hand:raise", call_id=call_id))["error"]["code"] in ("not_in_room", "banned")
    assert [name for name, _ in ben.heard[before:] if name.startswith("hand:")] == []


async def test_what_is_between_two_crosses_nodes_and_nobody_else_hears_it(hub: Stage) -> None:
    """S-246: the room hears what is said to everybody, whoever was written to hears the rest, on whatever node."""
    first, second = await two(hub)
    ada, ben, cleo = (hub.person(f"chat-{n}", node=node) for n, node in enumerate((first, second, second)))
    call_id = (await ada.create())["call_id"]
    for person in (ada, ben, cleo):
        await person.connect()
    await ada.join(call_id)
    his = (await ben.join(call_id))["self"]["participant_id"]
    await cleo.join(call_id)
    await ada.ask("chat:post", call_id=call_id, text="for you", to=his)
    direct = await ben.wait_for("chat:posted")
    assert (direct["message"]["text"], direct["message"]["to"]["participant_id"]) == ("for you", his)
    posted = await ada.rest("POST", f"/rooms/{call_id}/messages", {"text": "for all"})
    assert posted.status == 200, posted
    for person, heard in ((ada, 2), (ben, 2), (cleo, 1)):
        await person.wait_for("chat:posted", lambda event: event["message"]["text"] == "for all")
        assert person.names().count("chat:posted") == heard
        listed = await person.rest("GET", f"/rooms/{call_id}/messages")
        assert len(listed.body["items"]) == heard
    gone = await ada.rest("DELETE", f"/rooms/{call_id}/messages/{posted.body['message']['message_id']}")
    assert gone.status == 204
    await cleo.wait_for("chat:deleted")
    assert (await cleo.join(call_id))["chat"] == []
    # Back from nowhere, with what was said meanwhile in the room's log.
    assert [message["text"] for message in (await ben.join(call_id))["chat"]] == ["for you"]


async def test_of_two_devices_that_accept_on_two_nodes_at_once_one_wins(hub: Stage) -> None:
    """One accept counts, on whatever node, and everybody hears so; who comes while it rings hears it ring; what nobody
    answers is missed, once."""
    first, second = await two(hub)
    ann = hub.person("ring-ann", node=first)
    call_id = (await ann.create())["call_id"]
    await ann.connect()
    await ann.join(call_id)
    names = [f"ring-{number}" for number in range(4)]
    devices = {name: [hub.person(name, node=node) for node in (first, second)] for name in names}
    for name in names:
        await devices[name][0].connect()
    nobody = await ann.ask("invite:send", call_id=call_id, user_ids=["ring-nobody"], timeout_s=5)
    sent = await ann.ask("invite:send", call_id=call_id, user_ids=names)

    def about(invite: dict[str, Any]) -> Callable[[dict[str, Any]], bool]:
        return lambda event: bool(event["invite_id"] == invite["invite_id"])

    for name in names:
        # The second one comes late, and to the other node.
        await devices[name][1].connect()
        for device in devices[name]:
            assert (await device.wait_for("invite:received", about(sent)))["caller"]["user_id"] == "ring-ann"
        assert devices[name][1].names()[0] == "session:ready"
    pairs = [devices[name] for name in names]
    asked = [device.ack("invite:accept", invite_id=sent["invite_id"]) for pair in pairs for device in pair]
    answers = await asyncio.gather(*asked)
    for number, pair in enumerate(pairs):
        of_pair = answers[2 * number : 2 * number + 2]
        assert sorted(answer["ok"] for answer in of_pair) == [False, True], of_pair
        lost = next(answer for answer in of_pair if not answer["ok"])
        assert lost["error"]["code"] == "answered_elsewhere"
        loser = pair[of_pair.index(lost)]
        assert (await loser.wait_for("invite:canceled", about(sent)))["reason"] == "answered_elsewhere"
    for name in names:
        await ann.wait_for("invite:accepted", lambda event, name=name: event["user_id"] == name)  # type: ignore[misc]
    await ann.wait_for("invite:missed", about(nobody))
    # Had the other node found it missed, too, it would have said so by now.
    await asyncio.sleep(1.5)
    assert Counter(ann.names())["invite:missed"] == 1
    assert Counter(ann.names())["invite:accepted"] == len(names)
    log = await ann.rest("GET", "/invites?direction=outgoing")
    assert Counter(each["status"] for each in log.body["items"]) == {"accepted": 4, "missed": 1}


async def test_the_same_op_id_has_one_effect_and_one_answer_on_both_nodes(hub: Stage) -> None:
    """S-186: repeats at the same time, on either node, are answered by the one that ran."""
    first, second = await two(hub)
    here, there = hub.person("ada", node=first), hub.person("ada", node=second)
    call_id = (await here.create())["call_id"]
    await here.connect()
    await here.join(call_id)
    await there.connect()
    key = op_id()
    payload: dict[str, Any] = {"call_id": call_id, "name": "Named once", "op_id": key}
    acks = await asyncio.gather(*(each.ack("room:update", **payload) for each in (here, there, here, there)))
    assert [ack["ok"] for ack in acks] == [True] * 4, acks
    assert sum(not ack.get("replayed") for ack in acks) == 1
    assert len({str(ack["data"]) for ack in acks}) == 1
    again = await there.ack("room:update", **payload)
    assert again["replayed"] is True
    conflict = await there.ack("room:update", **{**payload, "name": "Named twice"})
    assert conflict["error"]["code"] == "op_id_conflict"
    await here.wait_for("room:updated")
    await asyncio.sleep(0.5)
    assert here.names().count("room:updated") == 1

    headers = {"Idempotency_Key": op_id()}
    body = {"name": "Made once", "call_type": "group"}
    made = await asyncio.gather(*(each.rest("POST", "/rooms", body, **headers) for each in (here, there)))
    assert [answer.status for answer in made] == [201, 201]
    assert made[0].body == made[1].body


@pytest.mark.timeout(120)
async def test_sixty_who_come_at_once_over_three_nodes_get_exactly_the_ten_seats(hub: Stage) -> None:
    """S-038, S-186: no seat twice, none unused, and nobody ever sees eleven; who got none is told that it is full."""
    nodes = [*await two(hub), await hub.node()]
    host = hub.person("host")
    call_id = (await host.create(max_participants=10))["call_id"]
    crowd = [hub.person(f"guest{n}", node=nodes[n % 3]) for n in range(60)]
    gate = asyncio.Semaphore(10)

    async def connect(person: Person) -> None:
        async with gate:
            await person.connect()

    await asyncio.gather(*(connect(person) for person in crowd))
    answers = await asyncio.gather(*(_until_certain(person, call_id) for person in crowd))
    codes = Counter("seat" if answer["ok"] else answer["error"]["code"] for answer in answers)
    assert codes == {"seat": 10, "room_full": 50}
    assert (await hub.call(call_id))["participant_count"] == 10
    seated = [(person, answer["data"]) for person, answer in zip(crowd, answers, strict=True) if answer["ok"]]
    # Everybody who got in sees all ten, whatever their node, and at no time more.
    for person, joined in seated:
        await eventually(lambda at=joined, of=person: _told(of, at, 10))  # type: ignore[misc]
        assert max(map(len, _views(person, joined))) == 10
    for person, _ in (seated[0], seated[-1]):
        listed = await person.rest("GET", f"/rooms/{call_id}/participants?limit=100")
        assert len([one for one in listed.body["items"] if one["status"] == "joined"]) == 10
    # Any node may declare a socket lost: the tests to come know of two.
    await nodes[2].stop()


def _views(person: Person, joined: dict[str, Any]) -> list[set[str]]:
    """Who was in the call in somebody's eyes: as they came, and after each event since."""
    views = [{each["participant_id"] for each in joined["participants"]}]
    for name, event in person.heard:
        told = {each["participant_id"] for each in event.get("participants", ())}
        if name == "participant:joined":
            views.append(views[-1] | told)
        elif name == "participant:left":
            views.append(views[-1] - told)
    return views


async def _told(person: Person, joined: dict[str, Any], count: int) -> bool:
    return len(_views(person, joined)[-1]) == count


async def _until_certain(person: Person, call_id: str) -> dict[str, Any]:
    """Sixty at one row may be more than the database bears in time; a refusal that says so is asked again."""
    deadline = time.monotonic() + 60
    while True:
        answer = await person.ack("room:join", call_id=call_id, media=False)
        if answer["ok"] or answer["error"]["code"] == "room_full" or time.monotonic() > deadline:
            return answer
        assert answer["error"]["retryable"], answer
        await asyncio.sleep(0.5)


@pytest.mark.slow
@pytest.mark.timeout(150)
async def test_who_was_on_a_node_that_died_has_left_after_the_grace_and_not_before(hub: Stage) -> None:
    """S-111: who comes back in time on another node is never told to have left."""
    await two(hub)
    grace_s = str(SOCKET_GRACE_S)
    witness_node, doomed = [await hub.node(AURALINK_SOCKET_GRACE_S=grace_s) for _ in range(2)]
    for node in hub.nodes[:2]:
        # Any node may declare a socket lost; those with the long grace must not be the ones that look.
        await node.stop()
    ada, ben = hub.person("ada", node=witness_node), hub.person("ben", node=doomed)
    cleo = hub.person("cleo", node=doomed)
    call_id = (await ada.create())["call_id"]
    ids = {}
    for person in (ada, ben, cleo):
        await person.connect()
        ids[person] = (await person.join(call_id))["self"]["participant_id"]

    await doomed.kill()
    died_at = time.monotonic()
    cleo_again = hub.person("cleo", node=witness_node)
    await cleo_again.connect()
    await cleo_again.join(call_id)
    told = await ada.wait_for_left(ids[ben], timeout_s=60)
    assert time.monotonic() - died_at >= SOCKET_GRACE_S
    assert told["left_reason"] == "connection_lost"
    assert not ada.left(ids[cleo])
    assert await hub.statuses(call_id) == {"ada": "joined", "ben": "left", "cleo": "joined"}


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_sigterm_sends_everybody_away_in_good_order_within_fifteen_seconds(hub: Stage) -> None:
    """`/readyz` turns, clients are told and may come back elsewhere, nobody is told a leave; exit code 0."""
    staying, leaving = await hub.node(), await hub.node(AURALINK_DRAIN_S="10")
    ada = hub.person("ada", node=staying)
    call_id = (await ada.create())["call_id"]
    await ada.connect()
    await ada.join(call_id)
    others = [hub.person(f"q{n}", node=leaving) for n in range(8)]
    ids = []
    for person in others:
        await person.connect()
        ids.append((await person.join(call_id))["self"]["participant_id"])
    started = time.monotonic()
    assert await leaving.stop(timeout_s=15) == 0, leaving.log()[-3000:]
    assert time.monotonic() - started < 15
    for person in others:
        assert "server:draining" in person.names()
        closing = await person.wait_for("session:closing")
        assert (closing["code"], closing["reconnect"]) == ("server_draining", True)
    again = [hub.person(f"q{n}", node=staying) for n in range(8)]
    for person in again:
        await person.connect()
        await person.join(call_id)
    assert not [one for one in ids if ada.left(one)]
    await eventually(lambda: _all_in(hub, call_id, 9))


async def _all_in(hub: Stage, call_id: str, count: int) -> bool:
    return list((await hub.statuses(call_id)).values()) == ["joined"] * count
