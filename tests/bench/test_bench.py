"""That the benchmark measures what it says: the load client notices what goes wrong, and the figures are put together
rightly."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hub.embedded.process import Child, free_port
from tests.bench import build, plot, report
from tests.bench.__main__ import main
from tests.bench.machine import Machine
from tests.bench.rows import MEASUREMENTS, Figure, Goal, Measurement


@pytest.fixture(scope="module")
def programs() -> tuple[Path, Path]:
    try:
        return build.load_client(print), build.bare_writer(print)
    except build.Missing as reason:
        pytest.skip(str(reason))


@contextmanager
def bare(program: Path, where: Path, *fault: str) -> Iterator[int]:
    port = free_port()
    child = Child([str(program), str(port), *fault], log=where / "bare.log", stop_signal=signal.SIGTERM)

    def listens() -> bool:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            return False
        return True

    child.wait_until(listens, what="the bare writer", timeout_s=10)
    try:
        yield port
    finally:
        child.stop()


def load(program: Path, port: int, *options: str) -> tuple[int, dict[str, Any]]:
    work, *rest = options
    command = [str(program), work, "--port", str(port), "--warm", "0.1", "--dur", "0.3", "--no-spin", *rest]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    return done.returncode, json.loads(done.stdout)


@pytest.mark.parametrize("work", [("fanout", "--n", "20"), ("rooms", "--n", "20", "--rooms", "4", "--window", "4")])
def test_a_server_without_fault_passes(programs: tuple[Path, Path], tmp_path: Path, work: tuple[str, ...]) -> None:
    with bare(programs[1], tmp_path) as port:
        code, result = load(programs[0], port, *work)
    assert code == 0
    assert result["ops"] > 20
    assert result["latencies"] > 0


@pytest.mark.parametrize(
    ("fault", "count"), [("drop", "reordered"), ("drop", "lost"), ("double", "duplicated"), ("swap", "reordered")]
)
def test_the_load_client_notices(programs: tuple[Path, Path], tmp_path: Path, fault: str, count: str) -> None:
    # An open loop: a closed one waits for what was lost.
    with bare(programs[1], tmp_path, fault) as port:
        code, result = load(programs[0], port, "fanout", "--n", "20", "--rate", "200", "--drain", "0.5")
    assert code == 1
    assert result[count] > 0


def test_commands_and_bytes_come_back_whole(programs: tuple[Path, Path], tmp_path: Path) -> None:
    with bare(programs[1], tmp_path) as port:
        for work in (("ack", "--n", "5"), ("relay", "--n", "3"), ("upload", "--n", "1", "--window", "2")):
            code, result = load(programs[0], port, *work)
            assert code == 0, work
            assert result["ops"] > 20, work


def test_stalled_members_are_let_go_without_harm_to_others(programs: tuple[Path, Path], tmp_path: Path) -> None:
    """The bare writer has a limit as well, of one MiB beyond what the kernel takes; 25 MB are more than both."""
    work = ("fanout", "--n", "5", "--stalled", "2", "--payload", "50000")
    # On a machine that is busy otherwise a healthy member may fall behind as well, so three tries.
    for _ in range(3):
        with bare(programs[1], tmp_path) as port:
            code, result = load(programs[0], port, *work, "--rate", "100", "--dur", "5")
        if code == 0:
            break
    assert (code, result["stalled_kept"]) == (0, 0)
    with bare(programs[1], tmp_path) as port:
        code, result = load(programs[0], port, *work, "--rate", "5")
    assert (code, result["stalled_kept"]) == (0, 2)


def test_the_hub_can_be_measured(programs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows of it, the whole way: figures, file, picture, and nothing lost."""
    made, drawn = tmp_path / "figures.json", tmp_path / "figures.svg"
    options = ["--servers", "hub,bare", "--rows", "fanout_100,ack", "--runs", "1", "--dur", "0.3"]
    monkeypatch.setattr("sys.argv", ["bench", *options, "--json", str(made), "--plot", str(drawn)])
    assert main() == 0
    figures = json.loads(made.read_bytes())
    assert [each["name"] for each in figures["rows"]] == ["fanout_100", "ack"]
    for each in figures["rows"]:
        assert each["hub"] > 0
        assert each["ratio_bare"] == pytest.approx(each["hub"] / each["bare"])
        assert each["node"] is None
        assert each["ratio_node"] is None
    assert drawn.read_text().startswith("<svg")


_MORE = Figure(row="r", unit="1/s", take=lambda result: 0.0, goal=Goal(node=1.5, bare=0.5))
_LESS = Figure(row="r", unit="ms", take=lambda result: 0.0, better="less", goal=Goal(node=0.3))
_WORK = Measurement(work="ack", what="some work", figures=(_MORE,))


def test_ratios_are_medians_of_runs_side_by_side() -> None:
    """The machine was three times slower in the second run, and everybody with it."""
    values: dict[str, list[float | None]] = {
        "hub": [300.0, 90.0, 310.0],
        "node": [200.0, 60.0, 100.0],
        "bare": [400.0, None, 400.0],
    }
    row = report.row(_MORE, _WORK, values, ())
    assert (row.hub, row.node, row.bare) == (300, 100, 400)
    assert row.ratio_node == 1.5
    assert row.ratio_bare == pytest.approx((0.75 + 0.775) / 2)
    assert row.reached is True
    assert report.row(_MORE, _WORK, {**values, "node": [210.0, 70.0, 100.0]}, ()).reached is False


def test_less_can_be_better() -> None:
    assert report.row(_LESS, _WORK, {"hub": [2.0], "node": [10.0]}, ()).reached is True
    assert report.row(_LESS, _WORK, {"hub": [4.0], "node": [10.0]}, ()).reached is False


def test_a_goal_without_its_peer_is_neither_reached_nor_missed() -> None:
    assert report.row(_MORE, _WORK, {"hub": [2.0], "node": [1.0]}, ()).reached is None


def test_no_row_is_there_twice() -> None:
    assert len(set(report.names())) == len(report.names()) == sum(len(each.figures) for each in MEASUREMENTS)


def test_bars_show_what_is_better_to_the_right() -> None:
    rows = [
        report.row(_MORE, _WORK, {"hub": [300.0], "node": [100.0]}, ()),
        report.row(_LESS, _WORK, {"hub": [2.0], "node": [8.0]}, ()),
    ]
    machine = Machine("a cpu", 2, "Linux", "3.11", "20", 0.1, 0, 1)
    drawn = plot.svg(report.Report(machine=machine, command="", versions={}, missing={}, faults=[], rows=rows))
    assert "AuraLink Hub: 3.00" in drawn
    assert "AuraLink Hub: 4.00" in drawn
