"""The fold and what is derived from it, by hand-made stories."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest

from hub.state.call import (
    CallState,
    Change,
    DeleteRoom,
    Grace,
    MakeRoom,
    ParticipantState,
    Remove,
    changes,
    derive,
    fold,
    fold_all,
    orders,
)
from hub.state.facts import (
    CallFacts,
    ConnectionAborted,
    EndRequested,
    FactEvent,
    MediaReported,
    MediaSilent,
    ParticipantFacts,
    ParticipantJoined,
    ParticipantLeft,
    RoomAbsent,
    RoomFinished,
    RoomStarted,
    SeenPerson,
    SeenTrack,
    SweepSeen,
    TrackPublished,
    TrackUnpublished,
)
from hub.state.fold import close_attachments

T0 = datetime(2026, 1, 1, tzinfo=UTC)
GRACE = Grace()
ROOM = "RM_1"


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


class Story:
    """One call with people; times are seconds since its beginning."""

    def __init__(self, *identities: str, **call: Any) -> None:
        self.ids: dict[str, UUID] = {}
        self.facts = CallFacts(call_id=uuid4(), room_name="room_a_1", created_at=T0, **call)
        for identity in identities:
            self.person(identity)

    def person(self, identity: str, **facts: Any) -> None:
        participant_id = self.ids.setdefault(identity, uuid4())
        old = self.facts.participants.get(participant_id) or ParticipantFacts(
            participant_id=participant_id, identity=identity
        )
        new = msgspec.structs.replace(old, **facts)
        self.facts = msgspec.structs.replace(self.facts, participants={**self.facts.participants, participant_id: new})

    def hear(self, *events: FactEvent) -> Story:
        self.facts = fold_all(self.facts, events)
        return self

    def state(self, now: float) -> CallState:
        return derive(self.facts, at(now), GRACE)

    def of(self, identity: str, now: float) -> ParticipantState:
        return self.state(now).participants[self.ids[identity]]

    def status(self, identity: str, now: float) -> str:
        return self.of(identity, now).status


def started(t: float, room: str = ROOM) -> RoomStarted:
    return RoomStarted(at=at(t), known_at=at(t), room_sid=room, room_created_at=at(t))


def finished(t: float, room: str = ROOM, reason: str | None = None) -> RoomFinished:
    return RoomFinished(at=at(t), known_at=at(t), room_sid=room, reason=reason)


def joined(
    t: float, identity: str, sid: str | None = None, room: str = ROOM, *, countable: bool = True
) -> ParticipantJoined:
    return ParticipantJoined(
        at=at(t),
        known_at=at(t),
        room_sid=room,
        part_sid=sid or f"PA_{identity}",
        identity=identity,
        joined_at=at(t),
        countable=countable,
    )


def left(
    t: float,
    identity: str,
    reason: str = "CLIENT_INITIATED",
    sid: str | None = None,
    room: str = ROOM,
    since: float = 1,
) -> ParticipantLeft:
    return ParticipantLeft(
        at=at(t),
        known_at=at(t),
        room_sid=room,
        part_sid=sid or f"PA_{identity}",
        identity=identity,
        joined_at=at(since),
        countable=True,
        reason=reason,
    )


def published(
    t: float, identity: str, track: str, source: Any = "microphone", *, muted: bool = False
) -> TrackPublished:
    return TrackPublished(
        at=at(t),
        known_at=at(t),
        room_sid=ROOM,
        part_sid=f"PA_{identity}",
        identity=identity,
        track_sid=track,
        source=source,
        muted=muted,
    )


def unpublished(t: float, identity: str, track: str) -> TrackUnpublished:
    return TrackUnpublished(
        at=at(t), known_at=at(t), room_sid=ROOM, part_sid=f"PA_{identity}", identity=identity, track_sid=track
    )


def seen(t: float, *people: SeenPerson, room: str = ROOM) -> SweepSeen:
    return SweepSeen(at=at(t), known_at=at(t), room_sid=room, people=people)


def person(identity: str, sid: str | None = None, since: float = 0, *tracks: SeenTrack) -> SeenPerson:
    return SeenPerson(sid or f"PA_{identity}", identity, at(since), True, tracks)


def absent(t: float) -> RoomAbsent:
    return RoomAbsent(at=at(t), known_at=at(t))


# ------------------------------------------------------------------------------------------------------------- the call


def test_a_room_that_starts_makes_no_call_active() -> None:
    """S-040, S-079: LiveKit makes the room when it is created; only somebody in it makes the call active."""
    story = Story("anna").hear(started(0))
    assert story.state(1).status == "waiting"
    assert story.state(1).room_sid == ROOM
    story.hear(joined(5, "anna"))
    assert (story.state(6).status, story.state(6).started_at) == ("active", at(5))


def test_agents_recorders_and_strangers_make_no_call_active() -> None:
    """S-079: egress, agents and hidden participants do not count, and who was never let in is taken out."""
    story = Story("anna").hear(started(0), joined(1, "EG_x", countable=False), joined(2, "stranger"))
    assert story.state(3).status == "waiting"
    assert orders(story.facts, story.state(3)) == [Remove("stranger")]


def test_a_track_of_an_unknown_identity_removes_nobody() -> None:
    """A recorder's track may be heard of before the recorder, and track events do not tell what it is."""
    story = Story("anna").hear(published(1, "EG_x", "TR_1"))
    assert orders(story.facts, story.state(2)) == []


def test_a_finished_room_ends_an_active_call_at_its_last_leave() -> None:
    """S-080, S-041: ended_at is when the last one left, not when LiveKit closed the empty room."""
    story = Story("anna", "bob").hear(started(0), joined(1, "anna"), joined(2, "bob"), left(5, "anna"), left(6, "bob"))
    assert (story.state(10).status, story.state(10).empty_since) == ("active", at(6))
    story.hear(finished(26))
    state = story.state(26)
    assert (state.status, state.started_at, state.ended_at) == ("ended", at(1), at(6))
    assert state.due_at is None


def test_a_finished_room_closes_those_who_were_never_reported_gone() -> None:
    """S-080: remaining participants are closed."""
    story = Story("anna").hear(started(0), joined(1, "anna"), finished(9))
    state, anna = story.state(10), story.of("anna", 10)
    assert (state.status, state.ended_at) == ("ended", at(9))
    assert (anna.status, anna.left_at, anna.left_reason, anna.duration_s) == ("left", at(9), "call_ended", 8)


def test_a_waiting_call_outlives_its_empty_room() -> None:
    """Decision 3: LiveKit's empty timeout does not end a call that nobody has come to yet."""
    story = Story("anna", waiting_expires_at=at(1000)).hear(started(0), finished(300))
    state = story.state(301)
    assert (state.status, state.room_sid, state.due_at) == ("waiting", None, at(1000))
    assert orders(story.facts, state) == []
    story.person("anna", token_issued_at=at(400), token_expires_at=at(1000))
    assert orders(story.facts, story.state(401)) == [MakeRoom()]
    story.hear(started(401, "RM_2"), joined(402, "anna", room="RM_2"))
    assert (story.state(403).status, story.state(403).room_sid) == ("active", "RM_2")


def test_a_call_that_nobody_came_to_expires() -> None:
    story = Story("anna", waiting_expires_at=at(100)).hear(started(0))
    assert story.state(99).status == "waiting"
    state = story.state(100)
    assert (state.status, state.end_reason, state.ended_at) == ("ended", "expired", at(100))
    assert orders(story.facts, state) == [DeleteRoom((ROOM,))]


def test_ended_is_for_ever() -> None:
    """S-040: nothing that comes late moves an ended call, and a room that lives on is deleted."""
    story = Story("anna", "bob").hear(started(0), joined(1, "anna"))
    story.hear(EndRequested(at=at(5), known_at=at(5), reason="ended_by_host"))
    before = story.state(5)
    story.hear(joined(6, "bob"), started(7, "RM_2"), EndRequested(at=at(8), known_at=at(8), reason="again"))
    after = story.state(9)
    assert (after.status, after.ended_at, after.end_reason) == ("ended", at(5), "ended_by_host")
    assert changes(before, after) == []
    assert orders(story.facts, after) == [DeleteRoom((ROOM, "RM_2"))]
    story.hear(finished(10), finished(10, "RM_2"))
    assert orders(story.facts, story.state(10)) == []


def test_the_end_closes_everybody_and_tells_it_in_order() -> None:
    story = Story("anna", "bob", "carl").hear(started(0), joined(1, "anna"), joined(1, "bob"), left(2, "bob"))
    story.person("carl", hub_joined_at=at(1))
    before = story.state(5)
    story.hear(EndRequested(at=at(5), known_at=at(5), reason="ended_by_host"))
    after = story.state(5)
    anna, carl = story.ids["anna"], story.ids["carl"]
    assert changes(before, after) == [Change("left", anna), Change("left", carl), Change("ended")]
    assert story.of("anna", 5).left_reason == story.of("carl", 5).left_reason == "call_ended"
    assert story.of("bob", 5).left_reason == "left"


# -------------------------------------------------------------------------------------------------- a room that is lost


def test_a_server_that_goes_down_ends_no_call() -> None:
    """Decision 3: its people reconnect, the room is made again, and the call goes on under its id."""
    story = Story("anna").hear(started(0), joined(1, "anna"), left(10, "anna", "SERVER_SHUTDOWN"), finished(10))
    state = story.state(11)
    assert (state.status, story.status("anna", 11)) == ("active", "reconnecting")
    assert orders(story.facts, state) == [MakeRoom()]
    assert state.due_at == at(70)
    story.hear(started(15, "RM_2"), joined(18, "anna", "PA_2", "RM_2", countable=True))
    state = story.state(100)
    assert (state.status, story.status("anna", 100), orders(story.facts, state)) == ("active", "joined", [])
    # 9 s before, 82 s after.
    assert story.of("anna", 100).duration_s == 9 + 82


def test_a_server_that_says_shutdown_itself_ends_no_call() -> None:
    story = Story("anna").hear(started(0), joined(1, "anna"), finished(10, reason="SERVER_SHUTDOWN"))
    assert (story.state(11).status, story.status("anna", 11)) == ("active", "reconnecting")


def test_a_late_goodbye_of_one_who_was_moved_is_no_shutdown() -> None:
    """Somebody left by SERVER_SHUTDOWN once; the room ended much later and as usual."""
    story = Story("anna", "bob").hear(started(0), joined(1, "anna"), joined(1, "bob"))
    story.hear(left(10, "anna", "SERVER_SHUTDOWN"), left(100, "bob"), finished(120))
    assert story.state(121).status == "ended"


def test_nobody_back_within_the_grace_ends_the_call() -> None:
    story = Story("anna").hear(started(0), joined(1, "anna"), left(10, "anna", "SERVER_SHUTDOWN"), finished(10))
    story.hear(started(12, "RM_2"))
    assert story.state(69).status == "active"
    state = story.state(70)
    assert (state.status, state.end_reason, state.ended_at) == ("ended", "media_lost", at(10))
    assert orders(story.facts, state) == [DeleteRoom(("RM_2",))]
    assert story.of("anna", 70).left_reason == "media_lost"


def test_an_absent_room_is_made_again_at_once() -> None:
    story = Story("anna").hear(started(0), joined(1, "anna"), absent(20))
    state = story.state(20)
    assert (state.status, story.status("anna", 20)) == ("active", "reconnecting")
    assert orders(story.facts, state) == [MakeRoom()]
    story.hear(started(21, "RM_2"))
    assert (story.state(22).room_sid, story.status("anna", 22)) == ("RM_2", "reconnecting")
    story.hear(joined(25, "anna", "PA_2", "RM_2"))
    assert story.status("anna", 26) == "joined"
    assert story.state(500).status == "active"


def test_an_absent_room_that_was_there_all_the_time_changes_nothing() -> None:
    """CreateRoom answers with the sid that is known: LiveKit's list was stale."""
    story = Story("anna").hear(started(0), joined(1, "anna"))
    before = story.state(19)
    story.hear(absent(20), started(21))
    assert story.status("anna", 21) == "joined"
    assert changes(before, story.state(21)) == []


def test_an_absent_room_whose_people_had_left_ends_the_call() -> None:
    """The `room_finished` was lost: two looks at LiveKit say the same."""
    story = Story("anna").hear(started(0), joined(1, "anna"), left(10, "anna"), absent(40))
    assert story.state(40).status == "active"
    assert orders(story.facts, story.state(40)) == []
    state = story.hear(absent(50)).state(50)
    assert (state.status, state.ended_at, state.end_reason) == ("ended", at(10), "room_finished")


def test_a_list_older_than_the_room_says_nothing_about_it() -> None:
    story = Story("anna").hear(started(9), joined(9.5, "anna"), absent(10))
    assert (story.state(10).status, story.status("anna", 10)) == ("active", "joined")
    assert orders(story.facts, story.state(10)) == []


def test_a_livekit_that_stays_silent_ends_its_calls_after_the_grace() -> None:
    story = Story("anna").hear(started(0), joined(1, "anna"), MediaSilent(at=at(20), known_at=at(22)))
    story.hear(MediaSilent(at=at(30), known_at=at(30)))
    state = story.state(79)
    assert (state.status, state.due_at, orders(story.facts, state)) == ("active", at(80), [])
    state = story.state(80)
    assert (state.status, state.end_reason, state.ended_at) == ("ended", "media_lost", at(20))


@pytest.mark.parametrize("sign_of_life", [joined(40, "bob"), seen(40, person("anna")), published(40, "anna", "TR_1")])
def test_any_sign_of_life_ends_the_silence(sign_of_life: FactEvent) -> None:
    story = Story("anna", "bob").hear(started(0), joined(1, "anna"), MediaSilent(at=at(20), known_at=at(22)))
    story.hear(sign_of_life)
    assert (story.state(500).status, story.status("anna", 500)) == ("active", "joined")


# --------------------------------------------------------------------------------------------------------- participants


def test_a_participant_goes_from_invited_to_left() -> None:
    """S-081, S-082."""
    story = Story("anna").hear(started(0))
    assert story.status("anna", 0) == "invited"
    story.person("anna", token_issued_at=at(1), token_expires_at=at(601))
    assert story.status("anna", 2) == "joining"
    story.hear(joined(3, "anna"))
    assert (story.status("anna", 4), story.of("anna", 4).joined_at) == ("joined", at(3))
    story.hear(left(8, "anna", since=3))
    anna = story.of("anna", 10)
    assert (anna.status, anna.left_at, anna.left_reason, anna.duration_s) == ("left", at(8), "left", 5)


def test_a_token_that_nobody_used_gives_its_seat_back() -> None:
    story = Story().hear(started(0))
    story.person("anna", token_issued_at=at(1), token_expires_at=at(601))
    assert (story.status("anna", 720), story.state(720).due_at) == ("joining", at(721))
    assert (story.status("anna", 721), story.state(721).due_at) == ("invited", None)


def test_leaving_is_told_after_two_seconds_and_saying_so_at_once() -> None:
    """A client that reconnects fully says CLIENT_INITIATED too."""
    story = Story("anna", "bob").hear(started(0), joined(1, "anna"), joined(1, "bob"), left(10, "anna"))
    assert (story.status("anna", 11.9), story.state(11.9).due_at) == ("reconnecting", at(12))
    assert story.status("anna", 12) == "left"
    story.person("bob", leave_requested_at=at(20))
    assert story.status("bob", 20) == "left"
    # He may be back already; only a session that was seen alive just now is taken out.
    assert orders(story.facts, story.state(20)) == []
    assert orders(story.facts, story.state(20), {"PA_bob"}) == [Remove("bob")]
    story.hear(left(20.1, "bob", "PARTICIPANT_REMOVED"))
    bob = story.of("bob", 21)
    assert (bob.status, bob.left_at, bob.left_reason) == ("left", at(20), "left")


def test_a_full_reconnect_is_never_a_leave() -> None:
    story = Story("anna").hear(started(0), joined(1, "anna"))
    before = story.state(9)
    story.hear(left(10, "anna", "CLIENT_INITIATED"))
    middle = story.state(10.05)
    story.hear(joined(10.1, "anna", "PA_2"))
    after = story.state(10.2)
    told = [change.kind for change in changes(before, middle) + changes(middle, after)]
    assert "left" not in told and "joined" not in told
    assert story.of("anna", 20).duration_s == pytest.approx(18.9)


def test_a_lost_connection_is_waited_for() -> None:
    story = Story("anna").hear(started(0), joined(1, "anna"), left(10, "anna", "SIGNAL_CLOSE"))
    assert (story.status("anna", 29), story.state(29).due_at) == ("reconnecting", at(30))
    anna = story.of("anna", 30)
    assert (anna.status, anna.left_reason, anna.left_at) == ("left", "connection_lost", at(10))


def test_who_was_waited_for_by_livekit_is_waited_for_a_little_longer_only() -> None:
    story = Story("anna").hear(started(0), joined(1, "anna"), left(21, "anna", "CONNECTION_TIMEOUT"))
    assert (story.status("anna", 25), story.state(25).due_at) == ("reconnecting", at(26))
    assert (story.status("anna", 26), story.of("anna", 26).left_reason) == ("left", "connection_lost")


def test_removed_people_are_gone_at_once() -> None:
    story = Story("anna").hear(started(0), joined(1, "anna"), left(10, "anna", "PARTICIPANT_REMOVED"))
    assert (story.status("anna", 10), story.of("anna", 10).left_reason) == ("left", "removed")


def test_kicked_stays_kicked_until_let_in_again() -> None:
    story = Story("anna").hear(started(0), joined(1, "anna"))
    story.person("anna", kick_requested_at=at(10), kick_reason="noise")
    anna = story.of("anna", 11)
    assert (anna.status, anna.left_at, anna.left_reason, anna.duration_s) == ("kicked", at(10), "noise", 9)
    assert orders(story.facts, story.state(11)) == [Remove("anna")]
    # Back with the old token: removed again, and none of that time is theirs.
    story.hear(left(10, "anna", "PARTICIPANT_REMOVED"), joined(20, "anna", "PA_2"))
    assert (story.status("anna", 25), story.of("anna", 25).duration_s) == ("kicked", 9)
    assert orders(story.facts, story.state(25)) == [Remove("anna")]
    story.hear(left(26, "anna", "PARTICIPANT_REMOVED", "PA_2"))
    assert orders(story.facts, story.state(27)) == []
    story.person("anna", readmitted_at=at(30), token_issued_at=at(30), token_expires_at=at(630))
    assert story.status("anna", 31) == "joining"
    story.hear(joined(40, "anna", "PA_3"))
    assert (story.status("anna", 41), story.of("anna", 41).duration_s) == ("joined", 10)


def test_a_socket_alone_is_in_the_call_and_does_not_start_it() -> None:
    story = Story("anna").hear(started(0))
    story.person("anna", hub_joined_at=at(1))
    state = story.state(2)
    assert (state.status, story.status("anna", 2), story.of("anna", 2).connected) == ("waiting", "joined", False)
    story.person("anna", hub_left_at=at(5), hub_left_reason="connection_lost")
    anna = story.of("anna", 6)
    assert (anna.status, anna.left_reason, anna.duration_s) == ("left", "connection_lost", 4)


def test_time_in_the_call_is_the_union_of_sockets_and_media() -> None:
    """S-041: every stay counts, and overlapping ones once."""
    story = Story("anna").hear(started(0))
    story.person("anna", hub_joined_at=at(0), hub_left_at=at(10), hub_left_reason="left")
    story.facts = close_attachments(story.facts, None)
    story.hear(
        joined(5, "anna"),
        left(15, "anna", since=5),
        joined(30, "anna", "PA_2"),
        left(35, "anna", "CLIENT_INITIATED", "PA_2", since=30),
    )
    story.person("anna", hub_joined_at=at(32), hub_left_at=None)
    assert story.of("anna", 40).duration_s == 15 + 10
    assert story.of("anna", 40).joined_at == at(0)


def test_two_devices_are_two_participants() -> None:
    """Decision 9."""
    story = Story("anna", "anna:phone").hear(started(0), joined(1, "anna"), joined(2, "anna:phone"), left(3, "anna"))
    assert (story.status("anna", 6), story.status("anna:phone", 6)) == ("left", "joined")


def test_left_before_joined_is_healed() -> None:
    """S-082: the goodbye carries everything that the lost or late greeting would have said."""
    story = Story("anna").hear(left(8, "anna", since=3))
    assert (story.state(20).status, story.of("anna", 20).duration_s) == ("active", 5)
    again = story.hear(joined(3, "anna"), left(8, "anna", since=3)).of("anna", 20)
    assert (again.status, again.duration_s) == ("left", 5)


def test_a_connection_that_never_came_up_was_never_in_the_call() -> None:
    aborted = ConnectionAborted(
        at=at(5), known_at=at(5), room_sid=ROOM, part_sid="PA_anna", identity="anna", reason="SIGNAL_CLOSE"
    )
    story = Story("anna").hear(started(0), aborted)
    assert (story.state(6).status, story.status("anna", 6)) == ("waiting", "invited")


# ---------------------------------------------------------------------------------------------------------------- media


def test_tracks_come_and_go() -> None:
    """S-083, S-084: track events name only sids, and an unknown track is nothing to fail over."""
    story = Story("anna").hear(unpublished(1, "anna", "TR_0"), published(2, "anna", "TR_1"))
    story.hear(published(3, "anna", "TR_2", "screen_share"), published(3, "anna", "TR_3", "camera", muted=True))
    media = story.of("anna", 4).media
    assert (media.microphone, media.camera, media.screen_share) == (True, False, True)
    story.hear(unpublished(5, "anna", "TR_1"), published(2, "anna", "TR_1"))
    assert story.of("anna", 6).media.microphone is False


def test_a_goodbye_takes_the_tracks_along() -> None:
    """Node failure and migration send no `track_unpublished`."""
    story = Story("anna").hear(
        started(0), joined(1, "anna"), published(2, "anna", "TR_1"), left(5, "anna", "MIGRATION")
    )
    story.hear(joined(5.1, "anna", "PA_2"))
    assert story.of("anna", 6).media.microphone is False


def test_what_a_client_says_holds_until_livekit_says_otherwise() -> None:
    story = Story("anna").hear(started(0), joined(1, "anna"), published(2, "anna", "TR_1"))
    say = MediaReported(
        at=at(5), known_at=at(5), participant_id=story.ids["anna"], microphone=False, camera=True, screen_share=False
    )
    media = story.hear(say).of("anna", 6).media
    assert (media.microphone, media.camera) == (False, False)
    story.hear(seen(10, person("anna", None, 1, SeenTrack("TR_1", "microphone", False))))
    assert story.of("anna", 11).media.microphone is True
    story.hear(msgspec.structs.replace(say, at=at(12), known_at=at(12), microphone=True))
    story.hear(seen(20, person("anna", None, 1, SeenTrack("TR_1", "microphone", True))))
    assert story.of("anna", 21).media.microphone is False


def test_without_livekit_the_client_is_believed() -> None:
    story = Story("anna")
    story.person("anna", hub_joined_at=at(0))
    story.hear(
        MediaReported(
            at=at(5), known_at=at(5), participant_id=story.ids["anna"], microphone=True, camera=False, screen_share=True
        )
    )
    assert story.of("anna", 6).media.screen_share is True


def test_what_a_client_said_of_its_tracks_ends_with_its_connection() -> None:
    story = Story("anna").hear(started(0), joined(1, "anna"), published(2, "anna", "TR_1"))
    story.person("anna", hub_joined_at=at(0))
    say = MediaReported(
        at=at(5), known_at=at(5), participant_id=story.ids["anna"], microphone=True, camera=False, screen_share=False
    )
    story.hear(say)
    assert story.of("anna", 6).media.microphone is True
    story.hear(left(8, "anna"))
    assert (story.status("anna", 9), story.of("anna", 9).media.microphone) == ("joined", False)
    story.hear(msgspec.structs.replace(say, at=at(10), known_at=at(10)))
    assert story.of("anna", 11).media.microphone is True


# ------------------------------------------------------------------------------------------------------------ the sweep


def test_the_sweep_heals_a_lost_greeting() -> None:
    """S-189, S-248."""
    track = SeenTrack("TR_1", "microphone", False)
    story = Story("anna").hear(seen(20, person("anna", None, 3, track)))
    state, anna = story.state(20), story.of("anna", 20)
    assert (state.status, state.started_at, anna.status) == ("active", at(3), "joined")
    assert anna.media.microphone is True


def test_the_sweep_heals_a_lost_goodbye_at_the_second_look() -> None:
    """S-189, S-248."""
    story = Story("anna", "bob").hear(started(0), joined(1, "anna"), joined(1, "bob"), seen(10, person("bob")))
    assert story.status("anna", 10) == "joined"
    story.hear(seen(20, person("bob")))
    assert (story.status("anna", 20), story.status("anna", 22)) == ("reconnecting", "left")


def test_who_vanished_together_with_everybody_is_waited_for_longer() -> None:
    """A media server that lost its node says nothing, and its clients are back after some ten seconds."""
    story = Story("anna", "bob").hear(started(0), joined(1, "anna"), joined(1, "bob"), seen(10), seen(20))
    assert (story.status("anna", 39), story.status("anna", 40)) == ("reconnecting", "left")


def test_what_the_sweep_concluded_it_may_revoke() -> None:
    story = Story("anna").hear(started(0), joined(1, "anna"), seen(10), seen(20))
    assert story.status("anna", 21) == "reconnecting"
    story.hear(seen(30, person("anna", None, 1)))
    assert (story.status("anna", 31), story.of("anna", 31).duration_s) == ("joined", 30)


def test_two_looks_at_once_are_one_miss() -> None:
    """An operator's reconciliation beside the sweep's own, on whatever node: the same stale answer twice."""
    story = Story("anna").hear(started(0), joined(1, "anna"), seen(10), seen(11.9))
    assert story.status("anna", 12) == "joined"
    assert story.hear(seen(11.9), seen(10)).facts.missed_at == at(10)
    assert story.hear(seen(12)).status("anna", 12) == "reconnecting"


def test_what_livekit_said_itself_no_snapshot_revokes() -> None:
    story = Story("anna").hear(started(0), joined(1, "anna"), left(9, "anna"), seen(9.5, person("anna")))
    assert story.status("anna", 20) == "left"


def test_a_snapshot_is_too_old_for_those_who_came_after_it() -> None:
    story = Story("anna").hear(started(0), joined(9, "anna"), seen(10), seen(10.5))
    assert story.status("anna", 11) == "joined"


def test_the_sweep_heals_lost_track_events() -> None:
    story = Story("anna").hear(started(0), joined(1, "anna"), published(2, "anna", "TR_1"))
    story.hear(seen(10, person("anna", None, 1)), seen(20, person("anna", None, 1)))
    assert story.of("anna", 21).media.microphone is False


# -------------------------------------------------------------------------------------------------------------- algebra


def test_news_in_any_order_gives_the_same_facts() -> None:
    """S-040: duplicates and reordering."""
    news: list[FactEvent] = [
        started(0),
        joined(1, "anna"),
        published(2, "anna", "TR_1"),
        unpublished(4, "anna", "TR_1"),
        left(5, "anna", "DUPLICATE_IDENTITY", since=1),
        joined(5.1, "anna", "PA_2"),
    ]
    story = Story("anna")
    wanted = fold_all(story.facts, news)
    for order in itertools.permutations(news):
        facts = fold_all(story.facts, [*order, *order[:3]])
        assert facts == wanted
        assert derive(facts, at(6), GRACE) == derive(wanted, at(6), GRACE)


def test_folding_the_same_news_again_keeps_every_object() -> None:
    """So that nothing is written twice."""
    story = Story("anna").hear(started(0), joined(1, "anna"), published(2, "anna", "TR_1"))
    again = fold(fold(story.facts, joined(1, "anna")), published(2, "anna", "TR_1"))
    assert again is story.facts
