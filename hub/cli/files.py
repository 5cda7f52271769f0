"""file: bring a file into a call and get one out of it, in frames, from a shell."""

from __future__ import annotations

import hashlib
import mimetypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal

import cyclopts
import msgspec

from hub.cli import environment
from hub.cli.client import Client, Json, Token, Url, ask
from hub.cli.output import OK, emit_json, fail, say

Hours = Annotated[int | None, cyclopts.Parameter(validator=cyclopts.validators.Number(gte=1))]


def add_to(app: cyclopts.App) -> None:
    group = cyclopts.App(name="file", help="Bring files into a call of a running hub, and get them.")
    group.command(put)
    group.command(get)
    app.command(group)


def put(
    path: Path,
    call_id: str,
    *,
    access: Literal["public", "call_participants", "private"] = "call_participants",
    expires_in_hours: Hours = None,
    name: str | None = None,
    url: Url = None,
    token: Token = None,
    json: Json = False,
) -> int:
    """Bring a file into a call. Interrupted, the same command goes on where it stopped.

    Parameters
    ----------
    path
        The file.
    call_id
        The call.
    access
        Who may have it.
    expires_in_hours
        Have it deleted after so many hours.
    name
        What it is called there; its own name if not given.
    """
    from hub.cli.sending import Failed, Upload

    if not path.is_file():
        fail(f"{path} is not a file")
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    offer: dict[str, Any] = {"call_id": call_id, "name": name or path.name, "mime": kind, "access_level": access}
    if expires_in_hours is not None:
        offer["expires_in_hours"] = expires_in_hours

    size_bytes = path.stat().st_size

    async def bring(hub: Client) -> dict[str, Any]:
        note = _Note(hub.url, path, offer)
        with _bar(path.name, size_bytes) as told:
            upload = Upload([hub.url], hub.token, path, offer, transfer_id=note.transfer_id, begun=note.keep, told=told)
            try:
                file = await upload.run()
            except Failed as error:
                fail(str(error))
        note.forget()
        return file

    file = ask(url, token, bring)
    if json:
        emit_json(file)
    else:
        say(f"{file['file_id']}  {file['name']}  {file['size_bytes']} bytes, scan: {file['scan_status']}")
    return OK


def get(
    file_id: str,
    path: Path | None = None,
    *,
    force: bool = False,
    url: Url = None,
    token: Token = None,
    json: Json = False,
) -> int:
    """Get a file out of a call. Interrupted, the same command goes on where it stopped.

    Parameters
    ----------
    file_id
        The file.
    path
        Where to; its name in the current directory if not given.
    force
        Replace what is there.
    """
    from hub.cli.sending import Download, Failed

    async def fetch(hub: Client) -> tuple[dict[str, Any], Path]:
        file = await hub.get(f"/api/v1/files/{file_id}")
        target = path or Path(_own_name(file["name"]))
        if target.is_dir():
            target = target / _own_name(file["name"])
        if target.exists() and not force:
            fail(f"{target} is there already: --force replaces it")
        with _bar(target.name, file["size_bytes"]) as told:
            try:
                await Download([hub.url], hub.token, file, target, told=told).run()
            except Failed as error:
                fail(str(error))
        return file, target

    file, target = ask(url, token, fetch)
    if json:
        emit_json({"path": str(target), "file": file})
    else:
        say(f"{target}  {file['size_bytes']} bytes")
    return OK


def _own_name(name: str) -> str:
    """A name that somebody else gave, as the name of a file here."""
    own = "".join(ch if ch.isprintable() else "_" for ch in PurePath(name.replace("\\", "/")).name).strip()
    return own if own.strip(".") else "file"


class _Note:
    """Which transfer a file goes by, kept beside the hub's own data until it is through."""

    def __init__(self, url: str, path: Path, offer: dict[str, Any]) -> None:
        facts = path.stat()
        what = [url, str(path.resolve()), facts.st_size, facts.st_mtime_ns, offer]
        mark = hashlib.sha256(msgspec.json.encode(what, order="deterministic")).hexdigest()[:32]
        self._path = environment.data_dir(environment.environ()) / "transfers" / mark
        self.transfer_id: str | None = None
        with suppress(OSError):
            self.transfer_id = self._path.read_text(encoding="ascii").strip() or None

    def keep(self, transfer_id: str) -> None:
        with suppress(OSError):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._path.write_text(transfer_id, encoding="ascii")

    def forget(self) -> None:
        with suppress(OSError):
            self._path.unlink()


@contextmanager
def _bar(name: str, size_bytes: int) -> Iterator[Any]:
    """A progress bar on stderr, where somebody looks."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    shown = "".join(ch if ch.isprintable() else "·" for ch in name)
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task(escape(shown[:40]), total=size_bytes)
        yield lambda offset: progress.update(task, completed=offset)
