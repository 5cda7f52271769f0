"""Use cases by noun. Each module declares its commands in a table of its own; here they become one."""

from hub.actions import admin, data, entering, hands, media, muting, participants, rooms, sessions
from hub.commands import Commands


def all_commands() -> Commands:
    """Every command there is. Raises ValueError for a name or a route that is there twice."""
    return Commands().merge(
        *(part.commands for part in (sessions, rooms, entering, participants, muting, hands, media, data, admin))
    )
