"""Requests made up out of a hub's own OpenAPI document, sent to it by schemathesis."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

# As many to each route as the time allows: FUZZ_EXAMPLES=1000 for a night.
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "40"))
SEED = os.environ.get("FUZZ_SEED", "1")
# A good request may still meet a call that has ended, or a tag that is stale.
_CONFIG = """
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "401", "403", "404", "409", "410", "412", "429"]
# And a bad one may meet the call's end first: what HTTP itself trims of a header is not seen.
[checks.negative_data_rejection]
expected-statuses = ["4xx", "5xx"]
"""


async def fuzz(
    url: str, token: str, directory: Path, *, paths: str, examples: int = EXAMPLES, strict: bool = True
) -> None:
    """Fail with what was found, as requests that can be sent again. `paths`: a regular expression.

    `strict`: whatever fits the document must be taken. Not so where rules go beyond a schema, as with cursors.
    """
    config = directory / "schemathesis.toml"
    config.write_text(_CONFIG)
    run = await asyncio.create_subprocess_exec(
        *(str(Path(sys.executable).with_name("schemathesis")), "--config-file", str(config), "--no-color"),
        *("run", f"{url.rstrip('/')}/openapi.json", "--header", f"Authorization: Bearer {token}"),
        *("--include-path-regex", paths, "--checks", "all", "--phases", "examples,coverage,fuzzing"),
        *("--max-examples", str(examples), "--seed", SEED, "--suppress-health-check", "all"),
        *("--generation-database", "none", *(() if strict else ("--exclude-checks", "positive_data_acceptance"))),
        cwd=directory,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await run.communicate()
    finally:
        if run.returncode is None:
            run.kill()
            await run.wait()
    assert run.returncode == 0, output.decode()
