"""Several nodes on one port: a parent that serves nothing itself, and a process for each node.

Each worker listens on the port with SO_REUSEPORT of its own, so the kernel spreads connections evenly by their
addresses. One listening socket that all of them accept from would be simpler, but gives a new connection to whichever
process woke last: with connections that stay for hours, one worker ends up with nearly all of them. The parent keeps
the port bound, without listening, so that it stays ours while workers come and go, and port 0 is one port for all.

A worker and its parent hold the two ends of a socket, the leash: the worker says on it that it serves, and each learns
by its end that the other is gone, however it died.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
import time
from collections.abc import Mapping

import structlog

from hub.cli.output import FAILURE, OK, Failed
from hub.settings import Address, Settings

log = structlog.get_logger("hub.workers")

MOST = 64
# Between a crash and the next start; back to the first after a worker has served for a while.
_BACKOFF_S = (0.5, 30.0)
_HEALTHY_S = 60.0
# What a worker may take to serve, and beyond its drain to end.
_START_S = 90.0
_STOP_S = 10.0


class _Worker:
    """One node: its name, its ports, and the process that is it at the moment."""

    def __init__(self, number: int, environ: Mapping[str, str]) -> None:
        self.number = number
        self.environ = environ
        self.process: asyncio.subprocess.Process | None = None
        self.serves = asyncio.Event()
        self.asked_to_stop = False

    def stop(self) -> None:
        self.asked_to_stop = True
        self.serves.clear()
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, which: signal.Signals) -> None:
        if self.process is not None and self.process.returncode is None:
            # It may have ended just now.
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(which)


class Workers:
    """SIGTERM and SIGINT stop all of them at once, SIGHUP one after the other, each with a successor."""

    def __init__(self, settings: Settings, environ: Mapping[str, str], count: int) -> None:
        self._settings = settings
        self._count = count
        self._environ = environ
        self._workers: list[_Worker] = []
        self._stop = asyncio.Event()
        self._roll = asyncio.Event()
        self._any_served = False
        self._exit = OK

    async def run(self) -> int:
        """Until all workers have ended; the exit code. Raises Failed where the port cannot be had."""
        with _reserved(self._settings.listen) as reserved:
            listen = Address(self._settings.listen.host, reserved.getsockname()[1])
            self._workers = [_Worker(n, self._environ_of(n, listen)) for n in range(1, self._count + 1)]
            loop = asyncio.get_running_loop()
            for name in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(name, self._stop.set)
            loop.add_signal_handler(signal.SIGHUP, self._roll.set)
            log.info("workers_starting", workers=self._count, listen=str(listen))
            async with asyncio.TaskGroup() as tasks:
                rolling = tasks.create_task(self._run_rolls())
                stopping = tasks.create_task(self._run_stop())
                await asyncio.gather(*(tasks.create_task(self._keep(worker)) for worker in self._workers))
                rolling.cancel()
                stopping.cancel()
        log.info("workers_ended", exit_code=self._exit)
        return self._exit

    def _environ_of(self, number: int, listen: Address) -> dict[str, str]:
        internal = self._settings.internal_listen
        port = internal.port + number - 1 if internal.port else 0
        if port > 65535:
            raise Failed(f"AURALINK_INTERNAL_LISTEN: no {self._count} ports from {internal.port} on")
        suffix = f"-{number}"
        return {
            **self._environ,
            "AURALINK_LISTEN": str(listen),
            "AURALINK_INTERNAL_LISTEN": str(Address(internal.host, port)),
            "AURALINK_NODE_ID": self._settings.node_id[: 64 - len(suffix)] + suffix,
        }

    # One worker

    async def _keep(self, worker: _Worker) -> None:
        """Start it, and start it again, until all are to stop."""
        wait_s = _BACKOFF_S[0]
        while not self._stop.is_set():
            started_s = time.monotonic()
            code = await self._live(worker)
            if self._stop.is_set():
                if code != OK:
                    log.error("worker_ended", worker=worker.number, exit_code=code)
                    self._exit = FAILURE
                return
            if not self._any_served:
                # Nobody ever served: what keeps this one from it keeps the others too, and its log says what it is.
                log.error("worker_never_served", worker=worker.number, exit_code=code)
                self._exit = FAILURE
                self._stop.set()
                return
            if worker.asked_to_stop:
                continue
            if time.monotonic() - started_s >= _HEALTHY_S:
                wait_s = _BACKOFF_S[0]
            log.error("worker_ended", worker=worker.number, exit_code=code, again_in_s=wait_s)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._stop.wait()
            wait_s = min(2 * wait_s, _BACKOFF_S[1])

    async def _live(self, worker: _Worker) -> int:
        """From its start to its end; its exit code."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            words = (sys.executable, "-m", "hub", "serve", "--leash", str(theirs.fileno()))
            worker.asked_to_stop = False
            worker.process = await asyncio.create_subprocess_exec(
                *words, env=dict(worker.environ), stdin=asyncio.subprocess.DEVNULL, pass_fds=(theirs.fileno(),)
            )
            theirs.close()
            if self._stop.is_set():
                # Asked while it was being started.
                worker.stop()
            reading = asyncio.create_task(self._until_it_serves(worker, ours))
            try:
                return await worker.process.wait()
            finally:
                worker.serves.clear()
                reading.cancel()
                await asyncio.wait((reading,))

    async def _until_it_serves(self, worker: _Worker, leash: socket.socket) -> None:
        leash.setblocking(False)
        if await asyncio.get_running_loop().sock_recv(leash, 1):
            self._any_served = True
            worker.serves.set()
            assert worker.process is not None
            log.info("worker_serves", worker=worker.number, pid=worker.process.pid)

    # All of them

    async def _run_stop(self) -> None:
        await self._stop.wait()
        for worker in self._workers:
            worker.stop()
        await asyncio.sleep(self._settings.drain_s + _STOP_S)
        for worker in self._workers:
            log.error("worker_killed", worker=worker.number)
            self._exit = FAILURE
            worker.kill()

    async def _run_rolls(self) -> None:
        """A restart that nobody loses anything by: each goes when all the others serve, and so its forerunner's
        successor."""
        while True:
            await self._roll.wait()
            self._roll.clear()
            for worker in self._workers:
                if not await self._all_serve():
                    break
                ending = worker.process
                if ending is None or self._stop.is_set():
                    continue
                worker.stop()
                try:
                    async with asyncio.timeout(self._settings.drain_s + _STOP_S):
                        await ending.wait()
                except TimeoutError:
                    worker.kill()
            if await self._all_serve():
                log.info("workers_restarted")

    async def _all_serve(self) -> bool:
        """Once they do; False where they do not come to it."""
        try:
            async with asyncio.timeout(_START_S):
                for worker in self._workers:
                    await worker.serves.wait()
        except TimeoutError:
            log.error("rolling_restart_given_up", waiting_for=worker.number)
            return False
        return True


def _reserved(address: Address) -> socket.socket:
    """The port, bound and not listened on; closed with the socket. Raises Failed."""
    if not hasattr(socket, "SO_REUSEPORT"):
        raise Failed("--workers needs SO_REUSEPORT, which this system does not have")
    try:
        family, kind, proto, _, place = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        held = socket.socket(family, kind, proto)
        try:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            held.bind(place)
        except OSError:
            held.close()
            raise
        return held
    except OSError as error:
        raise Failed(f"AURALINK_LISTEN: cannot listen on {address}: {error.strerror or error}") from None
