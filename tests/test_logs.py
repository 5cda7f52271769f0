"""Logs are one JSON object a line, and hold no token."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from hub import logs

TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ1MSIsImV4cCI6MX0.c2lnbmF0dXJl"


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def test_every_line_is_one_json_object_even_with_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    """S-185: one structured line a request; a forged line break stays inside its field."""
    logs.configure(log_format="json", level="info", node_id="n1")
    structlog.get_logger("hub").info("command", command="room:join\nFAKE \x1b[31m", call_id=None)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    line = json.loads(lines[0])
    assert (line["event"], line["node_id"], line["level"]) == ("command", "n1", "info")


def test_tokens_are_cut_out_of_fields_and_tracebacks(capsys: pytest.CaptureFixture[str]) -> None:
    """S-185, S-251: no token reaches the logs, whoever logged it."""
    logs.configure(log_format="json", level="info")
    try:
        raise ValueError(f"invalid token: {TOKEN}")
    except ValueError:
        structlog.get_logger("hub").exception("failed", token=TOKEN, url=f"https://x/?a={TOKEN}")
        logging.getLogger("livekit").warning("refused %s", TOKEN)
    text = capsys.readouterr().err
    assert TOKEN not in text
    assert "c2lnbmF0dXJl" not in text
    assert "[token]" in text
    assert all(json.loads(line) for line in text.splitlines())
