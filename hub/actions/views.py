"""A row of the database as the outside sees it."""

from __future__ import annotations

from db.calls import Call
from db.participants import Participant
from hub.protocol.views import CallView, MediaView, ParticipantView


def call_view(call: Call) -> CallView:
    return CallView(
        call_id=call.id,
        room_id=call.livekit_room_sid,
        room_name=call.livekit_room_name,
        name=call.name,
        call_type=call.call_type,
        status=call.status,
        owner_id=call.owner_id,
        max_participants=call.max_participants,
        participant_count=call.participant_count,
        recording_enabled=call.recording_enabled,
        screen_sharing_enabled=call.screen_sharing_enabled,
        file_sharing_enabled=call.file_sharing_enabled,
        chat_enabled=call.chat_enabled,
        locked=call.locked,
        lobby_enabled=call.lobby_enabled,
        metadata=call.metadata,
        region=call.region,
        created_at=call.created_at,
        started_at=call.started_at,
        ended_at=call.ended_at,
        duration_s=call.duration_seconds,
        end_reason=call.end_reason,
        quality_score=call.quality_score,
    )


def participant_view(person: Participant) -> ParticipantView:
    return ParticipantView(
        participant_id=person.id,
        user_id=person.user_id,
        identity=person.identity,
        device_id=person.device_id,
        display_name=person.display_name or "",
        role=person.role,
        status=person.status,
        metadata=person.metadata,
        media=media_view(person),
        hand_raised_at=person.hand_raised_at,
        joined_at=person.joined_at,
        left_at=person.left_at,
        left_reason=person.left_reason,
        duration_s=person.duration_seconds or 0,
    )


def media_view(person: Participant) -> MediaView:
    return MediaView(
        microphone=person.is_audio_enabled, camera=person.is_video_enabled, screen_share=person.is_screen_sharing
    )
