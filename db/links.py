"""SQL about shareable links: what a link takes away from those who came by it."""

from __future__ import annotations

from uuid import UUID

from db.pool import Transaction

FEATURES_OFF = "SELECT link_features_off($1)"


async def features_off(tx: Transaction, link_id: UUID) -> frozenset[str]:
    """Of chat, files, screen_share and recording, what the link does not allow. Anybody in the tenant may ask."""
    return frozenset(await tx.fetchval(FEATURES_OFF, link_id) or ())
