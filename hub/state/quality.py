"""How good a connection is: a score out of what was measured, a level that does not flap, what is wrong in words, and
what helps. Pure; time comes in as seconds of any steady clock.

Score of audio and of everything that has no picture: the E-model of ITU-T G.107 with its defaults, delay impairment
simplified (Cole and Rosenbluth, 2001), loss by G.113 with Ie = 0, Bpl = 10, BurstR = 1; R becomes a MOS by G.107
Annex B. Score of a picture alone: LiveKit's scorer (pkg/sfu/connectionquality), out of 100.
"""

from __future__ import annotations

from typing import Literal, get_args

import msgspec

VERSION = 1

Direction = Literal["uplink", "downlink"]
Level = Literal["lost", "poor", "good", "excellent"]
Cause = Literal["loss", "delay", "jitter", "bandwidth", "disconnected"]
Advice = Literal["cap_layers", "camera_off", "use_relay", "check_network"]
LEVELS: tuple[Level, ...] = get_args(Level)

# Codec and jitter buffer, beyond half the round trip and twice the jitter.
_CODEC_MS = 25.0
_R_BEST, _BPL = 93.2, 10.0
_DEAD = frozenset(("disconnected", "failed", "closed"))

# The least score of a level; LiveKit's 80, 40 and 20 of 100 are these on the scale of the MOS.
_LEAST: dict[Level, float] = {"lost": 0.0, "poor": 1.5, "good": 2.8, "excellent": 4.0}
# Down at the second report that is worse, up at the third that is clearly better.
_WORSE, _BETTER, _MARGIN = 2, 3, 0.15

# Cause → (raised above, cleared below); percent, ms, ms.
_BOUNDS: dict[Cause, tuple[float, float]] = {"loss": (5.0, 2.0), "delay": (400.0, 300.0), "jitter": (60.0, 40.0)}
# kbit/s below which there is no picture worth sending, and above which there is again.
_BANDWIDTH = (150.0, 250.0)
_REPORTS = 2
# Between two reports of somebody whose connection is good, and of somebody in trouble.
NEXT_MS, NEXT_IN_TROUBLE_MS = 10_000, 5_000


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """One direction over one window. None: not measured."""

    direction: Direction | None = None
    packet_loss_pct: float | None = None
    jitter_ms: float | None = None
    # Round trip.
    latency_ms: float | None = None
    bandwidth_kbps: float | None = None
    video_width: int | None = None
    video_height: int | None = None
    video_fps: float | None = None
    audio_bitrate_kbps: float | None = None
    video_bitrate_kbps: float | None = None
    connection_type: Literal["udp", "tcp", "relay"] | None = None
    ice_state: str | None = None

    @property
    def picture_only(self) -> bool:
        return bool(self.video_fps or self.video_bitrate_kbps) and not self.audio_bitrate_kbps


class Score(msgspec.Struct, frozen=True):
    """0 to 5; `r_factor` is None where the score is not out of the E-model."""

    value: float
    r_factor: float | None
    version: int = VERSION


def score(measured: Measured) -> Score:
    """0 where the connection is gone; else 1 to 4.5."""
    if measured.ice_state in _DEAD:
        return Score(0.0, 0.0)
    rtt, jitter = measured.latency_ms or 0.0, measured.jitter_ms or 0.0
    loss = measured.packet_loss_pct or 0.0
    if measured.picture_only:
        return Score(round(max(1.0, min(4.5, picture(rtt, jitter, loss) / 20)), 2), None)
    r = r_factor(rtt, jitter, loss)
    return Score(round(mos(r), 2), round(max(0.0, min(100.0, r)), 1))


def r_factor(rtt_ms: float, jitter_ms: float, loss_pct: float) -> float:
    """R of G.107: 93.2 less what delay and loss take away. May fall below 0."""
    delay = rtt_ms / 2 + 2 * jitter_ms + _CODEC_MS
    impaired = 0.024 * delay + (0.11 * (delay - 177.3) if delay > 177.3 else 0.0)
    return _R_BEST - impaired - 95 * loss_pct / (loss_pct + _BPL)


def mos(r: float) -> float:
    """G.107 Annex B: 1 to 4.5."""
    if r <= 0:
        return 1.0
    if r >= 100:
        return 4.5
    return max(1.0, 1 + 0.035 * r + 7e-6 * r * (r - 60) * (100 - r))


def picture(rtt_ms: float, jitter_ms: float, loss_pct: float) -> float:
    """LiveKit's score of a video track, 0 to 100."""
    delay = rtt_ms / 2 + 2 * jitter_ms
    slow = (delay - 120) / 10 if delay > 160 else delay / 40
    return max(0.0, 100 - slow - 10 * loss_pct)


class Alert(msgspec.Struct, frozen=True):
    """Something is wrong for `lasted_s`, or is over (`cleared`). `value`: percent, ms or kbit/s, by the cause."""

    cause: Cause
    direction: Direction | None
    value: float
    lasted_s: float
    cleared: bool = False

    @property
    def text(self) -> str:
        where = {"uplink": "The uplink", "downlink": "The downlink", None: "The connection"}[self.direction]
        if self.cleared:
            return f"{where} is well again: {_WORDS_CLEARED[self.cause]}"
        return f"{where} {_WORDS[self.cause].format(value=self.value)} for {self.lasted_s:.0f} s"


_WORDS: dict[Cause, str] = {
    "loss": "loses {value:.0f} %",
    "delay": "takes {value:.0f} ms there and back",
    "jitter": "varies by {value:.0f} ms",
    "bandwidth": "carries {value:.0f} kbit/s only",
    "disconnected": "has been interrupted",
}
_WORDS_CLEARED: dict[Cause, str] = {
    "loss": "little is lost",
    "delay": "the delay is short",
    "jitter": "packets come evenly",
    "bandwidth": "there is bandwidth for pictures",
    "disconnected": "it is connected",
}


class Verdict(msgspec.Struct, frozen=True):
    """What one report says. `changed`: the level is another one than before."""

    score: float
    level: Level
    changed: bool
    alerts: tuple[Alert, ...]
    advice: tuple[Advice, ...]
    next_in_ms: int


def level_of(value: float) -> Level:
    return next(level for level in reversed(LEVELS) if value >= _LEAST[level])


class _Trouble(msgspec.Struct):
    """One cause in one direction."""

    # Reports in a row that say the other than what holds.
    against: int = 0
    # When the first of them came, and when what holds began.
    first_s: float = 0.0
    since_s: float = 0.0
    raised: bool = False


class Watch:
    """One participant over time."""

    def __init__(self) -> None:
        self.level: Level | None = None
        self._against = 0
        self._troubles: dict[tuple[Cause, Direction | None], _Trouble] = {}

    def see(self, measured: tuple[Measured, ...], value: float, now_s: float) -> Verdict:
        """`measured`: the directions of one report; `value`: its score."""
        changed = self._settle(value)
        alerts = tuple(alert for each in measured for alert in self._alerts(each, now_s))
        assert self.level is not None
        raised = {cause for (cause, _), trouble in self._troubles.items() if trouble.raised}
        trouble = bool(raised) or self.level in ("poor", "lost")
        return Verdict(
            score=value,
            level=self.level,
            changed=changed,
            alerts=alerts,
            advice=self._advice(raised, measured),
            next_in_ms=NEXT_IN_TROUBLE_MS if trouble else NEXT_MS,
        )

    def _settle(self, value: float) -> bool:
        now = level_of(value)
        if self.level is None:
            self.level = now
            return True
        step = LEVELS.index(now) - LEVELS.index(self.level)
        if step > 0 and value < _LEAST[now] + _MARGIN:
            # Just over the edge is not better yet.
            step -= 1
        if not step or (step > 0) != (self._against > 0):
            self._against = 0
        if not step:
            return False
        self._against += 1 if step > 0 else -1
        if -_WORSE < self._against < _BETTER:
            return False
        self.level, self._against = LEVELS[LEVELS.index(self.level) + step], 0
        return True

    def _alerts(self, measured: Measured, now_s: float) -> list[Alert]:
        found = []
        for cause, value, bad, good in _symptoms(measured):
            trouble = self._troubles.setdefault((cause, measured.direction), _Trouble(since_s=now_s))
            against = good if trouble.raised else bad
            if not against:
                trouble.against = 0
                continue
            if not trouble.against:
                trouble.first_s = now_s
            trouble.against += 1
            if trouble.against < _REPORTS:
                continue
            lasted_s = now_s - (trouble.since_s if trouble.raised else trouble.first_s)
            trouble.raised = not trouble.raised
            trouble.since_s, trouble.against = trouble.first_s, 0
            found.append(Alert(cause, measured.direction, value, lasted_s, cleared=not trouble.raised))
        return found

    def _advice(self, raised: set[Cause], measured: tuple[Measured, ...]) -> tuple[Advice, ...]:
        if self.level == "lost" or "disconnected" in raised:
            return ("check_network",)
        advice: list[Advice] = []
        if raised & {"loss", "bandwidth"}:
            advice.append("camera_off" if self.level == "poor" else "cap_layers")
        # UDP that loses much may be throttled; over a relay by TLS it is not.
        if "loss" in raised and any(each.connection_type == "udp" for each in measured) and self.level == "poor":
            advice.append("use_relay")
        if not advice and raised:
            advice.append("check_network")
        return tuple(advice)


def _symptoms(measured: Measured) -> list[tuple[Cause, float, bool, bool]]:
    """Cause, value, whether it is bad, whether it is good; in between it is neither."""
    values: list[tuple[Cause, float | None]] = [
        ("loss", measured.packet_loss_pct),
        ("delay", measured.latency_ms),
        ("jitter", measured.jitter_ms),
    ]
    found: list[tuple[Cause, float, bool, bool]] = []
    for cause, value in values:
        if value is not None:
            worst, fine = _BOUNDS[cause]
            found.append((cause, value, value >= worst, value < fine))
    if measured.bandwidth_kbps is not None:
        (least, enough), kbps = _BANDWIDTH, measured.bandwidth_kbps
        found.append(("bandwidth", kbps, kbps < least, kbps >= enough))
    if measured.ice_state is not None:
        dead = measured.ice_state in _DEAD
        found.append(("disconnected", 0.0, dead, not dead))
    return found
