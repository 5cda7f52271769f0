"""How a command is declared: one line on the one function that does it.

That line drives validation, permission, rate limit, ack, the REST route, both documents, metrics and logs. Each module
of `actions/` makes a `Commands` table of its own; `app.py` merges them, and a name or a route declared twice refuses to
start.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import Any, ClassVar, Literal, get_args, get_type_hints

import msgspec

from hub.policy import PERMISSIONS, ROLE_PERMISSIONS, ROLES, Permission

Need = Literal["public", "anyone", "user", "member", "owner", "admin", "operator"] | Permission
"""Who may call: the `public`, without a token (REST only; a token that is sent must be good), `anyone` with a token
(guests too), a `user` (no guest), a `member` of the call named by `call_id`, its `owner` (an admin of the tenant too),
an `admin` of the tenant, an `operator` of the installation (a service token), or a member (or owner) of the call with
that permission."""

Caller = Literal["guest", "user", "viewer", "participant", "moderator", "host", "owner", "admin", "operator"]
"""Everybody there is to be told apart: a guest and a user without a part in the call, the roles in it, its owner, an
admin of the tenant and an operator of the installation."""
CALLERS: tuple[Caller, ...] = get_args(Caller)

NEEDS: frozenset[str] = frozenset(("public", "anyone", "user", "member", "owner", "admin", "operator", *PERMISSIONS))

_NAME = re.compile(r"[a-z_]+:[a-z_]+")


class Rate(msgspec.Struct, frozen=True):
    """`times` per `per_s` seconds, per user and command, with a burst of `times`. `shared`: counted over all nodes."""

    times: int
    per_s: float
    shared: bool = False


DEFAULT_RATE = Rate(50, per_s=1)

# Socket.IO namespaces: of apps, and of chunk frames, which have a connection of their own.
APPS, FILES = "/", "/files"
NAMESPACES = (APPS, FILES)


class Http(msgspec.Struct, frozen=True):
    """The REST twin: `path` below `/api/v1`, with `{field}` parts that fill fields of the message.

    GET and DELETE take the other fields from the query, the rest from a JSON body. `location` is the template of the
    Location header, filled from the answer. `content`: of an answer that is no JSON, but a struct with a `body`.

    `redirect`: the field of the answer that holds a URL to which the door redirects, unless the message's own field
    `redirect` is false. `form`: the fields come in a multipart form beside a part `file`, which is `Context.body`.
    """

    method: Literal["GET", "POST", "PATCH", "PUT", "DELETE"]
    path: str
    status: int = 200
    location: str | None = None
    content: str = "application/json"
    redirect: str | None = None
    form: bool = False

    @property
    def fields(self) -> tuple[str, ...]:
        return tuple(re.findall(r"{(\w+)}", self.path))


class Empty(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """No data."""


class Event(msgspec.Struct, frozen=True):
    """Base of what the server sends. `recorded` events get an offset and come again after a reconnect."""

    name: ClassVar[str]
    recorded: ClassVar[bool] = True


Action = Callable[..., Coroutine[Any, Any, Any]]


class Command(msgspec.Struct, frozen=True):
    name: str
    run: Action
    message: type[Any]
    answer: type[Any]
    needs: Need
    rate: Rate
    emits: tuple[type[Event], ...]
    http: Http | None
    socket: bool
    namespaces: tuple[str, ...]
    mutates: bool
    deadline_s: float
    summary: str

    @property
    def noun(self) -> str:
        return self.name.partition(":")[0]


def callers(needs: Need) -> tuple[Caller, ...]:
    """The published table: who gets past the gate of a command that needs this. Some commands ask for more inside."""
    match needs:
        case "public" | "anyone":
            return CALLERS
        case "user":
            return tuple(caller for caller in CALLERS if caller != "guest")
        case "admin":
            return ("admin", "operator")
        case "operator":
            return ("operator",)
        case "owner":
            return ("owner", "admin", "operator")
        case "member":
            return (*ROLES, "owner", "admin", "operator")
    return (*(role for role in ROLES if needs in ROLE_PERMISSIONS[role]), "owner", "admin", "operator")


class Commands:
    """A table of declared commands."""

    def __init__(self) -> None:
        self._by_name: dict[str, Command] = {}

    def add(
        self,
        name: str,
        *,
        needs: Need,
        rate: Rate = DEFAULT_RATE,
        emits: Iterable[type[Event]] = (),
        http: Http | None = None,
        socket: bool = True,
        namespaces: Iterable[str] = (APPS,),
        mutates: bool = True,
        deadline_s: float = 3.0,
    ) -> Callable[[Action], Action]:
        """Declare the decorated `async def action(ctx, message: M) -> A` as the command `name`.

        `mutates=False` marks a question, or what may be done twice without harm and answers with a secret that must not
        be kept: it takes no `op_id`. The docstring's first line is its documentation. `namespaces`: where sockets may
        say it.
        """

        def declare(run: Action) -> Action:
            hints = get_type_hints(run)
            parameters = list(inspect.signature(run).parameters)
            summary = (inspect.getdoc(run) or "").strip()
            if not _NAME.fullmatch(name) or needs not in NEEDS or not summary or len(parameters) != 2:
                raise TypeError(f"{run.__qualname__}: not a well-declared command")
            self._insert(
                Command(
                    name=name,
                    run=run,
                    message=hints[parameters[1]],
                    answer=hints["return"],
                    needs=needs,
                    rate=rate,
                    emits=tuple(emits),
                    http=http,
                    socket=socket,
                    namespaces=tuple(namespaces),
                    mutates=mutates,
                    deadline_s=deadline_s,
                    summary=summary,
                )
            )
            return run

        return declare

    def merge(self, *tables: Commands) -> Commands:
        for table in tables:
            for command in table:
                self._insert(command)
        return self

    def get(self, name: str) -> Command | None:
        return self._by_name.get(name)

    def __iter__(self) -> Iterator[Command]:
        return iter(self._by_name.values())

    def __len__(self) -> int:
        return len(self._by_name)

    def _insert(self, command: Command) -> None:
        if command.name in self._by_name:
            raise ValueError(f"two commands with the name {command.name}")
        route = command.http and (command.http.method, re.sub(r"{\w+}", "{}", command.http.path))
        for other in self:
            if route and other.http and route == (other.http.method, re.sub(r"{\w+}", "{}", other.http.path)):
                raise ValueError(f"{command.name} and {other.name} have the same route")
        missing = set(command.http.fields if command.http else ()) - set(command.message.__struct_fields__)
        if missing:
            raise ValueError(f"{command.name}: the path names {sorted(missing)}, the message does not")
        self._by_name[command.name] = command


assert set(get_args(Permission)) <= NEEDS
