"""Who may do what: permissions, the role table, and what a room's features and a link's toggles take away. Pure.

The same set decides in the hub and becomes the LiveKit grant, so a permission holds in the SFU too.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

Role = Literal["viewer", "participant", "moderator", "host"]
Permission = Literal[
    "chat_read",
    "file_download",
    "chat_post",
    "file_send",
    "hand_raise",
    "reaction_send",
    "invite_send",
    "publish_microphone",
    "publish_camera",
    "publish_screen_share",
    "lobby_admit",
    "participant_mute",
    "participant_kick",
    "chat_delete",
    "room_update",
    "recording_control",
    "participant_set_role",
    "room_end",
]
Permissions = frozenset[Permission]

ROLES: tuple[Role, ...] = get_args(Role)
PERMISSIONS: tuple[Permission, ...] = get_args(Permission)

_VIEWER: Permissions = frozenset({"chat_read", "file_download"})
_PARTICIPANT: Permissions = _VIEWER | {
    "chat_post",
    "file_send",
    "hand_raise",
    "reaction_send",
    "invite_send",
    "publish_microphone",
    "publish_camera",
    "publish_screen_share",
}
_MODERATOR: Permissions = _PARTICIPANT | {
    "lobby_admit",
    "participant_mute",
    "participant_kick",
    "chat_delete",
    "room_update",
    "recording_control",
}
_HOST: Permissions = _MODERATOR | {"participant_set_role", "room_end"}

ROLE_PERMISSIONS: dict[Role, Permissions] = {
    "viewer": _VIEWER,
    "participant": _PARTICIPANT,
    "moderator": _MODERATOR,
    "host": _HOST,
}

# A feature that is off takes these away from everybody in the room, hosts included.
FEATURE_PERMISSIONS: dict[str, Permissions] = {
    "chat": frozenset({"chat_post"}),
    "files": frozenset({"file_send", "file_download"}),
    "screen_share": frozenset({"publish_screen_share"}),
    "recording": frozenset({"recording_control"}),
}

_SOURCES: dict[Permission, tuple[str, ...]] = {
    "publish_microphone": ("microphone",),
    "publish_camera": ("camera",),
    # A shared screen may carry its sound.
    "publish_screen_share": ("screen_share", "screen_share_audio"),
}


def permissions(role: Role, *, features_off: Iterable[str] = (), denied: Iterable[Permission] = ()) -> Permissions:
    """What `role` may do where `features_off` are switched off and a link denies `denied`. Toggles never add."""
    allowed = ROLE_PERMISSIONS[role]
    for feature in features_off:
        allowed -= FEATURE_PERMISSIONS[feature]
    return allowed - frozenset(denied)


def publish_sources(allowed: Permissions) -> frozenset[str]:
    """LiveKit's track sources that `allowed` lets somebody publish; empty means none at all."""
    return frozenset(source for permission, sources in _SOURCES.items() if permission in allowed for source in sources)


def rank(role: Role) -> int:
    """0 for a viewer up to 3 for a host: nobody grants, mutes or removes above their own rank."""
    return ROLES.index(role)
