"""The command line without a hub: help, usage, settings, tokens, documents."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import pytest

from db.audit_chain import FIRST, Link, digest
from hub.__main__ import main
from hub.protocol.admin import AuditLink
from tests.test_settings import MINIMUM

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _environ(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The minimum set, and nothing a developer's shell may hold."""
    for name in list(os.environ):
        if name.startswith(("AURALINK_", "LIVEKIT_", "DATABASE_", "REDIS_", "SUPABASE_", "AWS_")):
            monkeypatch.delenv(name)
    for name, value in MINIMUM.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AURALINK_DATA_DIR", str(tmp_path))


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for command in (
        *("serve", "dev", "migrate", "check-config", "config-doc", "token", "doctor"),
        *("file", "reconcile", "webhook", "audit", "storage", "spec", "room", "version"),
    ):
        assert command in text


@pytest.mark.parametrize(
    "words",
    [
        ["nonsense"],
        ["token", "create"],
        ["token", "create", "ada", "--ttl-s", "-5"],
        ["spec", "swagger"],
        ["migrate", "--sideways"],
    ],
)
def test_wrong_words_end_with_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_check_config_shows_everything_but_the_secrets(capsys: pytest.CaptureFixture[str]) -> None:
    """S-154: secrets are redacted in the dump."""
    assert main(["check-config", "--json"]) == 0
    text = capsys.readouterr().out
    shown = json.loads(text)
    assert shown["ok"] is True
    assert shown["settings"]["LIVEKIT_URL"] == MINIMUM["LIVEKIT_URL"]
    assert MINIMUM["LIVEKIT_API_SECRET"] not in text


def test_a_bad_setting_ends_with_1_and_names_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AURALINK_DRAIN_S", "soon")
    for words in (["check-config"], ["serve"]):
        assert main(words) == 1
        error = capsys.readouterr().err
        assert "AURALINK_DRAIN_S" in error
        assert "Traceback" not in error


def test_config_doc_has_a_row_for_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config-doc"]) == 0
    text = capsys.readouterr().out
    assert all(f"`{name}`" in text for name in MINIMUM)


def test_a_token_made_is_a_token_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["token", "create", "ada", "--name", "Ada", "--admin", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert main(["token", "verify", made["token"], "--json"]) == 0
    read = json.loads(capsys.readouterr().out)
    assert read["ok"] is True
    assert (read["actor"]["user_id"], read["actor"]["hub_role"]) == ("ada", "admin")


def test_a_foreign_token_is_refused_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["token", "verify", "not.a.token"]) == 1
    assert "token_invalid" in capsys.readouterr().err


def test_version_tells_what_it_runs_on(capsys: pytest.CaptureFixture[str]) -> None:
    """S-103: the version and its parts."""
    assert main(["version", "--json"]) == 0
    assert {"version", "python", "python-socketio", "livekit-api"} <= set(json.loads(capsys.readouterr().out))


@pytest.mark.parametrize("document", ["openapi", "asyncapi"])
def test_the_documents_in_docs_are_what_the_code_says(document: str, capsys: pytest.CaptureFixture[str]) -> None:
    """S-225: no drift between the code and the generated contract."""
    assert main(["spec", document]) == 0
    assert capsys.readouterr().out == (ROOT / "docs" / f"{document}.json").read_text(encoding="utf-8")


def test_a_hub_that_does_not_answer_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["room", "list", "--url", "http://127.0.0.1:9"]) == 1
    assert "http://127.0.0.1:9" in capsys.readouterr().err


def test_a_user_id_that_the_hub_would_refuse_is_refused_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["token", "create", "a b"]) == 1
    assert "without spaces" in capsys.readouterr().err


def test_a_missing_secret_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("AURALINK_JWT_SECRET")
    for words in (["token", "create", "ada"], ["room", "list"]):
        assert main(words) == 1
        assert "AURALINK_JWT_SECRET" in capsys.readouterr().err


def test_a_body_that_cannot_be_read_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = str(tmp_path / "absent.json")
    assert main(["webhook", "simulate", "room_started", "room_a_1", "--body", missing]) == 1
    assert missing in capsys.readouterr().err


def test_config_doc_is_data_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config-doc", "--json"]) == 0
    assert set(MINIMUM) <= {one["name"] for one in json.loads(capsys.readouterr().out)}


def test_an_export_of_the_audit_log_is_verified_without_a_database(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """S-247: whoever keeps an export can prove it later; a changed line is named, and one cut off by the noted head."""
    links: list[AuditLink] = []
    for seq in range(1, 4):
        previous = bytes.fromhex(links[-1].hash) if links else FIRST
        at = datetime(2026, 1, 5, 9, 30, seq, 17, tzinfo=UTC)
        fields: dict[str, Any] = {
            "actor": "ada",
            "action": "room:end",
            "target_type": "call",
            "target_id": "ü",
            "reason": None,
        }
        sealed = Link(
            seq=seq, prev_hash=previous, hash=b"", id=seq + 10, tenant_id=UUID(int=7), at=at, details="{}", **fields
        )
        links.append(
            AuditLink(
                seq=seq,
                id=str(sealed.id),
                tenant_id=sealed.tenant_id,
                at=at,
                details_json="{}",
                prev_hash=previous.hex(),
                hash=digest(sealed).hex(),
                **fields,
            )
        )
    file, head = tmp_path / "log.ndjson", f"3:{links[-1].hash}"

    def verified(*kept: AuditLink) -> tuple[int, str | None]:
        file.write_bytes(b"\n".join(msgspec.json.encode(link) for link in kept))
        code = main(["audit", "verify", "--file", str(file), "--known", head, "--json"])
        (found,) = json.loads(capsys.readouterr().out)["tenants"]
        return code, found["broken"] and found["broken"]["problem"]

    assert verified(*links) == (0, None)
    assert verified(links[0], msgspec.structs.replace(links[1], actor="eve"), links[2]) == (1, "changed")
    assert verified(links[0], links[2]) == (1, "link_missing")
    assert verified(*links[:2]) == (1, "head_wrong")
    file.write_text("no export")
    assert main(["audit", "verify", "--file", str(file)]) == 1
    assert main(["audit", "verify", "--known", "x"]) == 1
