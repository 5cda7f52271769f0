"""Who may do what: permissions, the role table, and what a room's features and a link's toggles take away. Pure.

The same set decides in the hub and becomes the LiveKit grant, so a permission holds in the SFU too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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


AccessLevel = Literal["public", "call_participants", "private"]
FileAction = Literal["upload", "see", "download", "delete"]
FileActions = frozenset[FileAction]
FileOutcome = Literal["ok", "forbidden", "not_found"]

ACCESS_LEVELS: tuple[AccessLevel, ...] = get_args(AccessLevel)
FILE_ACTIONS: tuple[FileAction, ...] = get_args(FileAction)

_NOTHING: FileActions = frozenset()
_READ: FileActions = frozenset({"see", "download"})
_BRING: FileActions = frozenset({"upload"})
_SHARE: FileActions = _READ | _BRING
_ALL: FileActions = frozenset(FILE_ACTIONS)

# What a role may do to files of each level that somebody else brought; `upload` is bringing one of that level. To copy
# a file is to download and to upload it, to move it is to delete and to upload it.
FILE_RIGHTS: Mapping[Role, Mapping[AccessLevel, FileActions]] = {
    "viewer": {"public": _READ, "call_participants": _READ, "private": _NOTHING},
    "participant": {"public": _SHARE, "call_participants": _SHARE, "private": _BRING},
    "moderator": {"public": _SHARE, "call_participants": _SHARE, "private": _BRING},
    "host": {"public": _ALL, "call_participants": _ALL, "private": _BRING},
}
# Somebody of the tenant who has no part in the call, or none any more.
OUTSIDE_RIGHTS: Mapping[AccessLevel, FileActions] = {
    "public": _READ,
    "call_participants": _NOTHING,
    "private": _NOTHING,
}
# Whoever brought a file keeps it, whatever its level and wherever they are now. Private ones are nobody else's: not the
# host's, and no admin's.
OWN_FILE: FileActions = frozenset({"see", "download", "delete"})
_GATES: tuple[tuple[FileAction, Permission], ...] = (
    ("upload", "file_send"),
    ("see", "file_download"),
    ("download", "file_download"),
)


def file_actions(
    role: Role | None, level: AccessLevel, *, own: bool = False, allowed: Permissions | None = None
) -> FileActions:
    """What somebody may do to a file of that level. `role` None: they have no part in its call.

    `allowed`: their permissions in the call, where a feature that is off or a link may have taken files away; None
    takes nothing away. Deleting is taken from nobody.
    """
    actions = OUTSIDE_RIGHTS[level] if role is None else FILE_RIGHTS[role][level]
    if own:
        actions = actions | OWN_FILE
    if allowed is not None:
        actions = actions - {action for action, permission in _GATES if permission not in allowed}
    return actions


def file_outcome(action: FileAction, may: FileActions, *, visible: bool) -> FileOutcome:
    """How a request ends: what somebody may not even know of is not there. `visible`: but for a switch they would see
    what it is about: the file, or the call that one is brought to."""
    if action in may:
        return "ok"
    return "forbidden" if visible else "not_found"


def file_matrix() -> dict[str, dict[str, dict[str, FileOutcome]]]:
    """The whole table, as published: role → level → action → outcome. Beside the four roles the `uploader`, and the
    `outsider` of the same tenant, neither of them in the call any more."""
    table: dict[str, dict[str, dict[str, FileOutcome]]] = {}
    roles: dict[str, tuple[Role | None, bool]] = {role: (role, False) for role in ROLES}
    for name, (role, own) in {**roles, "uploader": (None, True), "outsider": (None, False)}.items():
        table[name] = {}
        for level in ACCESS_LEVELS:
            may = file_actions(role, level, own=own)
            table[name][level] = {
                action: file_outcome(action, may, visible=role is not None if action == "upload" else "see" in may)
                for action in FILE_ACTIONS
            }
    return table
