"""The machine a benchmark runs on, and who of us runs on which core."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec


class Machine(msgspec.Struct, frozen=True):
    """What a figure depends on besides the program."""

    cpu: str
    cores: int
    kernel: str
    python: str
    node: str | None
    # Of the last minute, before the first run: above 1 somebody else was using the cores.
    load: float
    server_core: int
    client_core: int


def look() -> Machine:
    cores = sorted(os.sched_getaffinity(0))
    return Machine(
        cpu=_cpu(),
        cores=len(cores),
        kernel=f"{platform.system()} {platform.release().split('-')[0]}",
        python=platform.python_version(),
        node=_version("node"),
        load=round(os.getloadavg()[0], 2),
        server_core=cores[0],
        client_core=cores[-1],
    )


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """What is started inside stays on that core, its threads too; we ourselves go back to where we were."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def prefer(pid: int) -> None:
    """Before whatever else runs here. `nice` counts only within a session, and each of ours has its own: so it is the
    session's weight that is raised, where the kernel has such groups and lets us.
    """
    with suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text("-12")


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _version(program: str) -> str | None:
    if shutil.which(program) is None:
        return None
    answer = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=20, check=False)
    return answer.stdout.strip().lstrip("v") or None
