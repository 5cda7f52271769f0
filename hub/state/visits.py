"""What a visit tells of whoever comes by a link: from where, with what device, and whether it is a person. Pure."""

from __future__ import annotations

import re
from typing import Final, Literal
from urllib.parse import urlsplit

Device = Literal["mobile", "tablet", "desktop", "other"]

# Those that say what they are, and those that fetch a link to show it in a chat. Tools for people (curl, libraries) are
# not among them: somebody wanted that answer.
_BOT: Final = re.compile(
    r"bot\b|bot/|crawler|spider|slurp|scraper|preview|facebookexternalhit|facebot|whatsapp/|skypeuripreview|embedly"
    r"|vkshare|pinterest/|bingpreview|google-inspectiontool|mediapartners|lighthouse|headlesschrome|pingdom|uptime"
    r"|monitoring|validator|archiver",
    re.IGNORECASE,
)
_HOST: Final = re.compile(r"[a-z0-9.:_-]{1,253}")


def is_bot(agent: str) -> bool:
    return _BOT.search(agent) is not None


def device_of(agent: str) -> Device:
    """By what browsers promise to write: `Mobi` on phones; Android without it, and iPads, are tablets."""
    if "iPad" in agent or "Tablet" in agent or ("Android" in agent and "Mobi" not in agent):
        return "tablet"
    if "Mobi" in agent or "iPhone" in agent:
        return "mobile"
    if any(system in agent for system in ("Windows NT", "Macintosh", "X11;", "CrOS", "Linux x86_64")):
        return "desktop"
    return "other"


def host_of(url: str) -> str:
    """The host of a referring page, without `www.`, or "". The rest of the address is nobody's business."""
    try:
        parts = urlsplit(url[:2048])
        host = (parts.hostname or "").removeprefix("www.") if parts.scheme in ("http", "https") else ""
    except ValueError:
        return ""
    return host if _HOST.fullmatch(host) else ""
