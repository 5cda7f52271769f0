"""Use cases by noun. Each module declares its commands in a table of its own; here they become one."""

from hub.actions import (
    admin,
    auditing,
    bringing,
    chat,
    contacts,
    data,
    entering,
    files,
    hands,
    invites,
    links,
    links_entering,
    lobby,
    media,
    muting,
    nodes,
    participants,
    presence,
    quality,
    rooms,
    sessions,
    transfers,
)
from hub.commands import Commands


def all_commands() -> Commands:
    """Every command there is. Raises ValueError for a name or a route that is there twice."""
    parts = (
        sessions,
        rooms,
        entering,
        participants,
        muting,
        hands,
        lobby,
        chat,
        media,
        files,
        bringing,
        transfers,
        data,
        presence,
        quality,
        links,
        links_entering,
        nodes,
        admin,
        auditing,
        contacts,
        invites,
    )
    return Commands().merge(*(part.commands for part in parts))
