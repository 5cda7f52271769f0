"""storage: does the object store hold what the database says, and nothing else?"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import cyclopts

from db.errors import DatabaseUnavailable
from hub.cli import environment
from hub.cli.output import FAILURE, OK, Failed, bad, emit_json, good, say
from hub.stocktaking import Stock, take
from storage.errors import StorageError

_SHOWN = 20


def add_to(app: cyclopts.App) -> None:
    group = cyclopts.App(name="storage", help="Look after the object store.")
    group.command(check)
    app.command(group)


def check(*, fix: bool = False, deep: bool = False, json: bool = False) -> int:
    """Compare the files of the database with the objects of the store. Exit 1 where they differ.

    Parameters
    ----------
    fix
        Remove objects and multipart uploads, a day old or more, that nothing knows. Files without bytes stay listed.
    deep
        Read every file and compare its SHA-256, not only its size.
    json
        Print a JSON object.
    """
    stock = asyncio.run(_take(fix=fix, deep=deep))
    if json:
        emit_json({"ok": stock.sound, **_shown(stock)})
    else:
        _say(stock, fix=fix)
    return OK if stock.sound else FAILURE


async def _take(*, fix: bool, deep: bool) -> Stock:
    from hub.app import CannotServe, open_database, open_store

    loaded = environment.load("DATABASE_URL")
    if not loaded.stores_files:
        raise Failed("AURALINK_STORAGE is not set: there is no store to look at")
    try:
        async with open_database(loaded) as db, open_store(loaded) as store:
            return await take(db, store, datetime.now(UTC), fix=fix, deep=deep)
    except (CannotServe, StorageError, DatabaseUnavailable) as error:
        raise Failed(str(error)) from None


def _shown(stock: Stock) -> dict[str, object]:
    return {
        "files": stock.files,
        "objects": stock.objects,
        "bytes": stock.bytes,
        "wrong": stock.wrong,
        "stray_objects": stock.stray_objects,
        "stray_uploads": stock.stray_uploads,
        "removed": stock.removed,
        "foreign": stock.foreign,
        "wrong_files": stock.wrong_files,
        "strays": stock.strays,
    }


def _say(stock: Stock, *, fix: bool) -> None:
    for wrong in stock.wrong_files[:_SHOWN]:
        say(f"{bad(wrong.what.ljust(15))} file {wrong.file_id} of tenant {wrong.tenant_id}")
    for key in stock.strays[:_SHOWN]:
        say(f"{bad('stray'.ljust(15))} {key}")
    unnamed = stock.wrong + stock.stray_objects + stock.stray_uploads - min(len(stock.wrong_files), _SHOWN)
    unnamed -= min(len(stock.strays), _SHOWN)
    if unnamed > 0:
        say(f"… and {unnamed} more")
    say(f"{stock.files} files, {stock.objects} objects, {stock.bytes} bytes")
    if stock.foreign:
        say(f"{stock.foreign} of them are of no call of this database and left alone")
    if fix and stock.removed:
        say(f"{stock.removed} strays removed")
    elif stock.stray_objects or stock.stray_uploads:
        say("auralink-hub storage check --fix removes the strays")
    if stock.sound:
        say(good("the store holds what the database says"))
