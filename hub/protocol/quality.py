"""What is said about the quality of connections."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, ClassVar, Literal
from uuid import UUID

import msgspec
from msgspec import Meta

from hub.commands import Event
from hub.protocol.fields import CallId, Cursor, Limit, ParticipantId

Direction = Literal["uplink", "downlink"]
ConnectionType = Literal["udp", "tcp", "relay"]
IceState = Literal["new", "checking", "connected", "completed", "disconnected", "failed", "closed"]
Level = Literal["lost", "poor", "good", "excellent"]
Cause = Literal["loss", "delay", "jitter", "bandwidth", "disconnected"]
Advice = Literal["cap_layers", "camera_off", "use_relay", "check_network"]
Aggregate = Literal["avg", "min", "max", "p95"]

Percent = Annotated[float, Meta(ge=0, le=100)]
Milliseconds = Annotated[float, Meta(ge=0, le=60_000)]
Kbps = Annotated[float, Meta(ge=0, le=10_000_000)]
Pixels = Annotated[int, Meta(ge=0, le=32_768)]
Fps = Annotated[float, Meta(ge=0, le=240)]
WindowMs = Annotated[int, Meta(ge=100, le=600_000, description="Over how long it was measured.")]


class Metrics(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One direction of a connection; what was not measured is left away."""

    direction: Direction | None = None
    window_ms: WindowMs | None = None
    packet_loss_pct: Percent | None = None
    jitter_ms: Milliseconds | None = None
    latency_ms: Annotated[Milliseconds, Meta(description="The round trip.")] | None = None
    bandwidth_kbps: Annotated[Kbps, Meta(description="What the way could carry.")] | None = None
    video_width: Pixels | None = None
    video_height: Pixels | None = None
    video_fps: Fps | None = None
    audio_bitrate_kbps: Kbps | None = None
    video_bitrate_kbps: Kbps | None = None
    connection_type: ConnectionType | None = None
    ice_state: IceState | None = None
    quality_score: Annotated[float, Meta(ge=0, le=5, description="Yours, instead of the hub's own.")] | None = None


class RecordQuality(Metrics, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Either one report, in the fields beside `call_id`, or up to 100 in `reports`. They are about you."""

    call_id: CallId
    reports: Annotated[list[Metrics], Meta(min_length=1, max_length=100)] | None = None


class Recorded(msgspec.Struct, frozen=True):
    accepted: int
    score: Annotated[float, Meta(description="Of the last of them, 0 to 5.")]
    level: Level


class Sample(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One track, or all of a kind, in one direction."""

    direction: Direction
    kind: Literal["audio", "video"]
    packet_loss_pct: Percent | None = None
    jitter_ms: Milliseconds | None = None
    rtt_ms: Milliseconds | None = None
    bitrate_kbps: Kbps | None = None
    fps: Fps | None = None
    width: Pixels | None = None
    height: Pixels | None = None


class Connection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    type: ConnectionType | None = None
    ice_state: IceState | None = None
    bandwidth_kbps: Kbps | None = None


class ReportQuality(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What your client measured since its last report."""

    call_id: CallId
    window_ms: WindowMs
    samples: Annotated[list[Sample], Meta(max_length=64)]
    connection: Connection = Connection()


class QualityAnswer(msgspec.Struct, frozen=True):
    """How good the connection is, when to report next, and what would help."""

    score: float
    level: Level
    next_in_ms: int
    advice: list[Advice] = []


class ListQuality(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Reports of a call, newest first; with `step` what they come to in each step of time."""

    call_id: CallId
    participant_id: ParticipantId | None = None
    from_: Annotated[datetime, Meta(tz=True, description="Reported at or after this time.")] | None = msgspec.field(
        default=None, name="from"
    )
    to: Annotated[datetime, Meta(tz=True, description="Reported before this time.")] | None = None
    step: Annotated[int, Meta(ge=1, le=86_400, description="Seconds; then `series` instead of `items`.")] | None = None
    agg: Annotated[Aggregate, Meta(description="What a step says of its reports.")] = "avg"
    limit: Limit = 50
    cursor: Cursor | None = None


class ReportView(msgspec.Struct, frozen=True):
    participant_id: UUID
    recorded_at: datetime
    direction: Direction | None
    window_ms: int | None
    packet_loss_pct: float | None
    jitter_ms: float | None
    latency_ms: float | None
    bandwidth_kbps: float | None
    video_width: int | None
    video_height: int | None
    video_fps: float | None
    audio_bitrate_kbps: float | None
    video_bitrate_kbps: float | None
    connection_type: ConnectionType | None
    ice_state: IceState | None
    quality_score: float
    r_factor: float | None
    score_version: int


class StepView(msgspec.Struct, frozen=True):
    at: datetime
    reports: int
    packet_loss_pct: float | None
    jitter_ms: float | None
    latency_ms: float | None
    bandwidth_kbps: float | None
    video_fps: float | None
    audio_bitrate_kbps: float | None
    video_bitrate_kbps: float | None
    quality_score: float


class QualityPage(msgspec.Struct, frozen=True):
    items: list[ReportView]
    next_cursor: str | None
    quality_score: Annotated[float | None, Meta(description="Of the whole call: the mean of all its reports.")]
    series: list[StepView] | None = None


class QualityChanged(Event, frozen=True):
    """Somebody's connection is better or worse than it was."""

    name: ClassVar[str] = "quality:changed"
    recorded: ClassVar[bool] = False

    participant_id: UUID
    score: float
    level: Level


class QualityAlerted(Event, frozen=True):
    """Something is wrong with somebody's connection, or is over. `text` says what, for people."""

    name: ClassVar[str] = "quality:alerted"
    recorded: ClassVar[bool] = False

    participant_id: UUID
    cause: Cause
    direction: Direction | None
    # Percent, milliseconds or kbit/s, by the cause.
    value: float
    lasted_s: float
    cleared: bool
    text: str
