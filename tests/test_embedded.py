"""The embedded servers keep their data, refuse a second master, survive kill -9, and run as root and as anybody."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from hub.embedded import EmbeddedError, LiveKit, Postgres, Valkey, find_livekit, free_port
from hub.embedded.postgres import NOBODY

FAST = {"fsync": "off"}
REPOSITORY = Path(__file__).parent.parent
# A hub in small: starts a server on the directory it is given, says where, waits until it is killed.
HOLDER = """
import sys, pathlib
from hub.embedded import Postgres
server = Postgres(pathlib.Path(sys.argv[1]), settings={"fsync": "off"}).start()
print(server.dsn(), server.pid, flush=True)
sys.stdin.read()
server.stop()
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory whose parents let everybody through, as `tmp_path` does not."""
    with tempfile.TemporaryDirectory(prefix="auralink-embedded-") as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


async def ask(dsn: str, sql: str) -> object:
    connection = await asyncpg.connect(dsn, timeout=10)
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


def speak(valkey: Valkey, *words: str) -> str:
    password = valkey.url.split(":")[2].split("@")[0]
    with socket.create_connection(("127.0.0.1", valkey.port), timeout=5) as connection:
        connection.sendall(f"AUTH {password}\r\n{' '.join(words)}\r\n".encode())
        answer = b""
        while answer.count(b"\r\n") < (3 if words[0] == "GET" else 2):
            answer += connection.recv(1000)
    return answer.decode().split("\r\n", 1)[1].strip()


def gone(pid: int, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


async def test_postgres_keeps_data_and_address_over_a_restart(place: Path) -> None:
    with Postgres(place, settings=FAST) as server:
        first = server.dsn()
        await ask(first, "CREATE TABLE kept AS SELECT 41 + 1 AS answer")
    with Postgres(place, settings=FAST) as server:
        assert server.dsn() == first
        assert await ask(server.dsn(), "SELECT answer FROM kept") == 42


async def test_postgres_sorts_by_code_point_in_utf8_and_utc(postgres: Postgres) -> None:
    """The same order on every machine, whatever locales it has."""
    assert await ask(postgres.dsn(), "SELECT string_agg(x, '' ORDER BY x) FROM unnest('{ä,b,a,Z}'::text[]) x") == "Zabä"
    assert await ask(postgres.dsn(), "SELECT upper('ä')") == "Ä"
    assert await ask(postgres.dsn(), "SHOW server_encoding") == "UTF8"
    assert await ask(postgres.dsn(), "SHOW timezone") == "UTC"
    assert await ask(postgres.dsn(), "SHOW max_connections") == "200"


async def test_postgres_wants_the_password_and_listens_on_loopback_only(postgres: Postgres) -> None:
    with pytest.raises(asyncpg.InvalidPasswordError):
        await ask(postgres.dsn(password="guessed"), "SELECT 1")
    assert await ask(postgres.dsn(), "SHOW listen_addresses") == "127.0.0.1"
    assert await ask(postgres.dsn(), "SHOW unix_socket_directories") == ""
    assert await ask(postgres.dsn(), "SELECT bool_and(rolpassword LIKE 'SCRAM%') FROM pg_authid WHERE rolcanlogin")


async def test_postgres_comes_back_after_kill_9_with_its_rows(place: Path) -> None:
    with Postgres(place) as server:
        await ask(server.dsn(), "CREATE TABLE kept AS SELECT 42 AS answer")
        before, dsn = server.pid, server.dsn()
        server.kill()
        assert (place / "cluster" / "postmaster.pid").exists()
        server.start()
        assert (server.dsn(), server.pid != before) == (dsn, True)
        assert await ask(dsn, "SELECT answer FROM kept") == 42


async def test_a_stale_pid_that_now_belongs_to_somebody_else_does_not_block_the_start(place: Path) -> None:
    with Postgres(place, settings=FAST) as server:
        server.kill()
        pid_file = place / "cluster" / "postmaster.pid"
        # PostgreSQL itself refuses here: the process lives, and has the same uid.
        pid_file.write_text(re.sub(r"^\d+", str(os.getpid()), pid_file.read_text()))
        server.start()
        assert await ask(server.dsn(), "SELECT 1") == 1


def test_a_second_master_of_a_data_directory_is_told_who_holds_it(place: Path) -> None:
    with Postgres(place / "pg", settings=FAST):
        with pytest.raises(EmbeddedError, match=rf"in use by process {os.getpid()}\b"):
            Postgres(place / "pg").start()
    with Valkey(place / "valkey"):
        with pytest.raises(EmbeddedError, match=rf"in use by process {os.getpid()}\b"):
            Valkey(place / "valkey").start()


async def test_servers_end_with_a_process_that_is_killed_and_the_next_one_takes_over(place: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(place)],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None
        dsn, pid = holder.stdout.readline().split()
        await ask(dsn, "CREATE TABLE kept AS SELECT 42 AS answer")
        with pytest.raises(EmbeddedError, match=f"in use by process {holder.pid}"):
            Postgres(place).start()
    finally:
        holder.kill()
        holder.communicate(timeout=10)
    with Postgres(place, settings=FAST) as server:
        assert await ask(server.dsn(), "SELECT answer FROM kept") == 42
    assert gone(int(pid), within_s=10)


def test_an_interrupted_initdb_leaves_nothing_that_blocks(place: Path) -> None:
    half = place / "cluster.part"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18\n")
    with Postgres(place, settings=FAST) as server:
        assert server.port
    assert not half.exists()


def test_data_of_another_major_version_is_refused_by_name(place: Path) -> None:
    with Postgres(place, settings=FAST):
        pass
    (place / "cluster" / "PG_VERSION").write_text("9\n")
    with pytest.raises(EmbeddedError, match="made by PostgreSQL 9"):
        Postgres(place).start()


def test_a_server_that_cannot_start_shows_its_last_words(place: Path) -> None:
    with pytest.raises(EmbeddedError, match="no_such_setting"):
        Postgres(place, settings={"no_such_setting": "1"}).start()
    with pytest.raises(EmbeddedError, match="no-such-setting"):
        Valkey(place / "valkey", settings={"no-such-setting": "1"}).start()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
async def test_an_ordinary_user_runs_the_servers(place: Path) -> None:
    """S-149: as root and as anybody. Every other test here runs as whoever you are."""
    assert await as_user(place, NOBODY) == NOBODY


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to disguise itself")
async def test_as_root_without_namespaces_the_server_becomes_nobody(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a container without CAP_SYS_ADMIN allows: unshare fails, setuid works."""
    blind = place / "path"
    blind.mkdir()
    (blind / "unshare").write_text("#!/bin/sh\nexit 1\n")
    (blind / "unshare").chmod(0o755)
    monkeypatch.setenv("PATH", f"{blind}:{os.environ['PATH']}")
    with Postgres(place / "pg", settings=FAST) as server:
        assert Path(f"/proc/{server.pid}").stat().st_uid == NOBODY
        server.kill()
        server.start()
        assert await ask(server.dsn(), "SELECT 1") == 1
    # Whoever made the files opens them again, also when namespaces are back.
    monkeypatch.undo()
    with Postgres(place / "pg", settings=FAST) as server:
        assert Path(f"/proc/{server.pid}").stat().st_uid == NOBODY


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may look into somebody's closed directory")
async def test_as_root_below_a_closed_directory_of_somebody_else_the_data_lies_elsewhere(place: Path) -> None:
    home = place / "home"
    home.mkdir(mode=0o700)
    os.chown(home, NOBODY - 1, NOBODY - 1)
    server = Postgres(home / "data", settings=FAST)
    try:
        with server:
            await ask(server.dsn(), "CREATE TABLE kept AS SELECT 42 AS answer")
            assert not server.data_dir.is_relative_to(home)
        # Once there, it stays there.
        home.chmod(0o755)
        with Postgres(home / "data", settings=FAST) as again:
            assert again.data_dir == server.data_dir
            assert await ask(again.dsn(), "SELECT answer FROM kept") == 42
    finally:
        if not server.data_dir.is_relative_to(place):
            shutil.rmtree(server.data_dir)


def test_valkey_keeps_data_and_address_over_a_restart(place: Path) -> None:
    with Valkey(place) as server:
        first = server.url
        assert speak(server, "SET", "kept", "42") == "+OK"
    with Valkey(place) as server:
        assert server.url == first
        assert speak(server, "GET", "kept").endswith("42")
        server.kill()
        server.start()
        assert speak(server, "GET", "kept").endswith("42")


def test_valkey_refuses_who_has_no_password(valkey: Valkey) -> None:
    with socket.create_connection(("127.0.0.1", valkey.port), timeout=5) as connection:
        connection.sendall(b"GET secret\r\n")
        assert connection.recv(100).startswith(b"-NOAUTH")


def test_a_frozen_valkey_accepts_and_answers_nothing_until_thawed(place: Path) -> None:
    with Valkey(place) as server:
        server.freeze()
        with socket.create_connection(("127.0.0.1", server.port), timeout=0.3) as connection:
            connection.sendall(b"PING\r\n")
            with pytest.raises(TimeoutError):
                connection.recv(10)
            server.thaw()
            connection.settimeout(5)
            assert connection.recv(10)


def test_secrets_lie_in_files_that_only_their_owner_reads(place: Path) -> None:
    with Postgres(place / "pg", settings=FAST), Valkey(place / "valkey"):
        for file in ("pg/password", "valkey/password", "valkey/valkey.conf"):
            assert (place / file).stat().st_mode & 0o077 == 0
        assert (place / "pg" / "cluster").stat().st_mode & 0o077 == 0


def test_livekit_is_healthy_and_returns_on_the_same_address_after_kill_9(
    start_livekit: Callable[..., LiveKit],
) -> None:
    server = start_livekit()
    before = (server.url, server.api_key, server.api_secret, server.pid)
    server.kill()
    server.start()
    assert (server.url, server.api_key, server.api_secret) == before[:3]
    assert server.pid != before[3]
    with urllib.request.urlopen(server.url, timeout=5) as answer:
        assert answer.status == 200
    assert len(server.api_secret) >= 32
    assert server.webhook_url == f"http://127.0.0.1:{server.webhook_port}/webhooks/livekit"


def test_livekit_that_exits_0_at_the_start_is_an_error_with_its_words(livekit_path: Path, place: Path) -> None:
    with pytest.raises(EmbeddedError, match="nonsense"):
        LiveKit(place, binary=livekit_path, webhook_url="http://127.0.0.1:9/", settings={"nonsense": 1}).start()


def test_livekit_named_in_the_environment_wins(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = place / "mine"
    mine.write_text("#!/bin/sh\n")
    monkeypatch.setenv("LIVEKIT_SERVER_BIN", str(mine))
    with pytest.raises(EmbeddedError, match="no executable"):
        find_livekit()
    mine.chmod(0o755)
    assert find_livekit() == mine


def test_where_livekit_cannot_be_built_the_error_says_what_to_do_instead(place: Path) -> None:
    """No module proxy: the build ends with words, not with a hang or a traceback, and leaves no scratch behind."""
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    environment |= {"XDG_CACHE_HOME": str(place), "GOPROXY": "off", "GOFLAGS": "-mod=mod"}
    done = subprocess.run(
        [sys.executable, "-m", "hub.embedded"],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == 1
    assert "LIVEKIT_URL" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert not list(place.glob("**/build-*"))


def test_free_ports_are_free_below_the_ephemeral_range_and_never_the_same(place: Path) -> None:
    ports = [free_port() for _ in range(50)]
    assert len(set(ports)) == 50
    assert all(1024 < port < 32768 for port in ports)


async def as_user(place: Path, uid: int) -> int:
    """Run HOLDER as `uid`, ask its server, end it; the uid the server had."""
    home = place / "home"
    home.mkdir()
    os.chown(home, uid, uid)
    paths = [str(REPOSITORY), *(path for path in sys.path if path.endswith("site-packages"))]
    run_as: dict[str, Any] = {
        "cwd": "/",
        "env": {"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": os.pathsep.join(paths)},
        "user": uid,
        "group": uid,
        "extra_groups": [],
        "text": True,
    }
    python = next(filter(partial(can_import_the_launchers, run_as=run_as), (sys.executable, "/usr/bin/python3")), None)
    if python is None:
        pytest.skip("every Python here that could run the launchers is closed to other users")
    holder = subprocess.Popen(
        [python, "-c", HOLDER, str(home / "data")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, **run_as
    )
    try:
        assert holder.stdout is not None
        dsn, pid = holder.stdout.readline().split()
        assert await ask(dsn, "SELECT 1") == 1
        owner = Path(f"/proc/{pid}").stat().st_uid
    finally:
        holder.communicate("", timeout=20)
    assert holder.returncode == 0
    return owner


def can_import_the_launchers(python: str, run_as: dict[str, Any]) -> bool:
    try:
        return subprocess.run([python, "-c", "import hub.embedded"], capture_output=True, **run_as).returncode == 0
    except OSError:
        # The interpreter lies in root's closed home.
        return False
