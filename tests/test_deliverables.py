"""What must be there as a whole, and what must not be there at all."""

from __future__ import annotations

import re
from pathlib import Path

import asyncpg
import pytest

from hub import contract, settings
from hub.actions import all_commands
from tests.conftest import TestDatabase

ROOT = Path(__file__).resolve().parents[1]

BRIEF_TABLES = {"calls", "call_participants", "files", "shareable_links", "quality_metrics", "contacts"}
BRIEF_ROOM_ROUTES = {
    ("post", "/api/v1/rooms"),
    ("get", "/api/v1/rooms"),
    ("get", "/api/v1/rooms/{call_id}"),
    ("delete", "/api/v1/rooms/{call_id}"),
    ("post", "/api/v1/rooms/{call_id}/token"),
}


def test_the_briefs_room_endpoints_are_in_the_document() -> None:
    """S-099, S-110, S-230: all five, where clients are generated from."""
    paths = contract.openapi(all_commands())["paths"]
    routes = {(method, path) for path, methods in paths.items() for method in methods}
    assert routes >= BRIEF_ROOM_ROUTES
    assert ("post", "/webhooks/livekit") in routes


BRIEF_LINK_ROUTES = {
    ("post", "/api/v1/links"),
    ("get", "/api/v1/links"),
    ("get", "/api/v1/links/{link_id}"),
    ("patch", "/api/v1/links/{link_id}"),
    ("delete", "/api/v1/links/{link_id}"),
    ("post", "/api/v1/links/validate/{short_code}"),
}


def test_the_briefs_link_endpoints_are_in_the_document() -> None:
    """S-101, S-232: all six."""
    paths = contract.openapi(all_commands())["paths"]
    assert {(method, path) for path, methods in paths.items() for method in methods} >= BRIEF_LINK_ROUTES


async def test_the_briefs_tables_and_views_are_there(database: TestDatabase) -> None:
    """S-217, S-227: every table of the brief, each with forced row level security, and both views."""
    connection = await asyncpg.connect(database.owner_dsn)
    try:
        forced = await connection.fetch(
            "SELECT relname FROM pg_class WHERE relkind = 'r' AND relrowsecurity AND relforcerowsecurity"
        )
        views = await connection.fetch("SELECT viewname FROM pg_views WHERE schemaname = 'public'")
    finally:
        await connection.close()
    assert {row["relname"] for row in forced} >= BRIEF_TABLES
    assert {row["viewname"] for row in views} >= {"active_calls", "call_history"}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        pytest.param("S-198", ("ai compression", "ai-driven"), id="S-198 compression by AI"),
        pytest.param("S-199", ("neural",), id="S-199 neural codecs"),
        pytest.param("S-200", ("rtp extension", "rtp_extension"), id="S-200 RTP extension hooks"),
        pytest.param("S-201", ("80 %", "80% reduction"), id="S-201 the bandwidth claim"),
        pytest.param("S-202", ("transcri", "speech_to_text", "caption"), id="S-202 speech to text"),
        pytest.param("S-203", ("text_to_speech", "text-to-speech"), id="S-203 text to speech"),
        pytest.param("S-204", ("translat",), id="S-204 translation"),
        pytest.param("S-205", ("ai memory", "ai_memory"), id="S-205 AI memory"),
        pytest.param("S-206", ("noise_cancel", "noise cancel"), id="S-206 noise cancellation"),
        pytest.param("S-207", ("mcp",), id="S-207 MCP"),
        pytest.param("S-208", ("ai agent", "dispatch_agent", "create_dispatch"), id="S-208 AI agents"),
        pytest.param("S-209", ("workflow",), id="S-209 workflow automation"),
    ],
)
def test_what_belongs_to_later_phases_is_absent(row: str, words: tuple[str, ...]) -> None:
    """S-198, S-199, S-200, S-201, S-202, S-203: nowhere to be called.

    S-204, S-205, S-206, S-207, S-208, S-209, S-238: neither.
    """
    commands = all_commands()
    surface = " ".join(
        (
            *(f"{command.name} {command.summary} {command.http.path if command.http else ''}" for command in commands),
            *(f"{setting.name} {setting.meaning}" for setting in settings.SETTINGS),
            contract.text(contract.openapi(commands)),
            contract.text(contract.asyncapi(commands)),
            (ROOT / "README.md").read_text(encoding="utf-8"),
        )
    ).lower()
    assert not [word for word in words if re.search(rf"(?<![a-z]){re.escape(word)}", surface)], row


def test_nothing_shipped_is_marked_as_unfinished() -> None:
    """S-239: no mark of work left over in what runs."""
    marks = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
    sources = [
        path
        for room in ("hub", "db", "storage")
        for path in (ROOT / room).rglob("*")
        if path.suffix in (".py", ".sql", ".lua")
    ]
    assert len(sources) > 100
    assert not [path.name for path in sources if marks.search(path.read_text(encoding="utf-8"))]
