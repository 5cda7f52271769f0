"""audit: does the audit log still say what was written, and taking it out."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import cyclopts
import msgspec

from db import audit_chain
from db.audit_chain import FIRST, Break, Head, Link, Verdict
from db.errors import DatabaseUnavailable
from hub.cli import environment
from hub.cli.client import Client, Json, Token, Url
from hub.cli.output import FAILURE, OK, Failed, bad, emit_json, fail, good, say
from hub.protocol.admin import AuditLink

# One statement of a walk reads a page; an operator can wait longer for it than a caller.
_STATEMENT_S = 10.0

Known = Annotated[
    str | None, cyclopts.Parameter(help="A head noted earlier, as SEQ:HASH: that link must still be what it was.")
]


def add_to(app: cyclopts.App) -> None:
    group = cyclopts.App(name="audit", help="Verify the audit log, or take it out.")
    group.command(verify)
    group.command(export)
    app.command(group)


def verify(*, tenant: UUID | None = None, file: Path | None = None, known: Known = None, json: bool = False) -> int:
    """Exit 1 where an entry of the audit log was changed, removed or slipped in, and say which is the first.

    Parameters
    ----------
    tenant
        Only this tenant's log; otherwise every tenant's.
    file
        An export to be verified instead of the database.
    json
        Print JSON.
    """
    noted = _head(known) if known else None
    if noted and tenant is None and file is None:
        fail("--known is one tenant's: name it with --tenant")
    verdicts = [_of_file(file, noted)] if file else asyncio.run(_of_database(tenant, noted))
    broken = [verdict for verdict in verdicts if verdict.broken]
    if json:
        emit_json({"ok": not broken, "tenants": [_shown(verdict) for verdict in verdicts]})
    else:
        for verdict in verdicts:
            _say(verdict)
        if not verdicts:
            say("the audit log is empty")
    return FAILURE if broken else OK


def export(*, url: Url = None, token: Token = None, json: Json = False) -> int:
    """Print the tenant's whole audit log with its chain, one JSON object a line, the oldest first."""
    asyncio.run(_export(url, token))
    return OK


async def _of_database(tenant: UUID | None, known: Head | None) -> list[Verdict]:
    from db.pool import Database

    loaded = environment.load("DATABASE_URL")
    try:
        db = await Database.open(loaded.database_url, statement_timeout_s=_STATEMENT_S, acquire_timeout_s=_STATEMENT_S)
        try:
            if tenant is not None:
                return [await audit_chain.verify(db, tenant, known=known)]
            async with db.system() as tx:
                found = await audit_chain.tenants(tx)
            return [await audit_chain.verify(db, each) for each in found]
        finally:
            await db.close()
    except DatabaseUnavailable as error:
        raise Failed(f"DATABASE_URL: {error}") from None


def _of_file(file: Path, known: Head | None) -> Verdict:
    """An export holds in itself; that it holds the whole log only a head noted elsewhere can say."""
    try:
        lines = file.read_bytes().splitlines()
        links = [link_of(msgspec.json.decode(line, type=AuditLink)) for line in lines if line.strip()]
    except OSError as error:
        fail(f"cannot read {file}: {error.strerror}")
    except (msgspec.MsgspecError, ValueError) as error:
        fail(f"{file} is not an export of the audit log: {error}")
    reached = audit_chain.check(Head(0, FIRST), links)
    tenant_id = links[0].tenant_id if links else UUID(int=0)
    last = Head(links[-1].seq, links[-1].hash) if links else Head(0, FIRST)
    if isinstance(reached, Break):
        return Verdict(tenant_id, (reached.seq or 1) - 1, last, reached)
    if known and not any(Head(link.seq, link.hash) == known for link in links):
        text = f"link {known.seq} is not the one that was noted"
        return Verdict(tenant_id, reached.seq, last, Break(known.seq, None, "head_wrong", text))
    return Verdict(tenant_id, reached.seq, last, None)


async def _export(url: str | None, token: str | None) -> None:
    async with Client(url, token) as hub:
        cursor: str | None = None
        while True:
            page = await hub.get("/api/v1/admin/audit/export", limit=100, cursor=cursor)
            for item in page["items"]:
                say(msgspec.json.encode(item).decode())
            cursor = page["next_cursor"]
            if cursor is None:
                return


def _head(text: str) -> Head:
    seq, _, digest = text.partition(":")
    if not (seq.isdecimal() and int(seq) > 0 and len(digest) == 64):
        fail("--known is SEQ:HASH, as `audit verify` prints it")
    try:
        return Head(int(seq), bytes.fromhex(digest))
    except ValueError:
        fail("--known: the hash is not hex")


def link_of(sent: AuditLink) -> Link:
    """A link as it was exported."""
    return Link(
        seq=sent.seq,
        prev_hash=bytes.fromhex(sent.prev_hash),
        hash=bytes.fromhex(sent.hash),
        id=int(sent.id),
        tenant_id=sent.tenant_id,
        at=sent.at,
        actor=sent.actor,
        action=sent.action,
        target_type=sent.target_type,
        target_id=sent.target_id,
        reason=sent.reason,
        details=sent.details_json,
    )


def _shown(verdict: Verdict) -> dict[str, Any]:
    return {
        "tenant_id": verdict.tenant_id,
        "ok": verdict.broken is None,
        "links": verdict.links,
        "head": f"{verdict.head.seq}:{verdict.head.hash.hex()}",
        "broken": verdict.broken,
    }


def _say(verdict: Verdict) -> None:
    broken, head = verdict.broken, f"{verdict.head.seq}:{verdict.head.hash.hex()}"
    if broken is None:
        say(f"{good('ok  ')} {verdict.tenant_id}  {verdict.links} entries, head {head}")
    else:
        say(f"{bad('fail')} {verdict.tenant_id}  {broken.problem}: {broken.text}")
