"""`auralink-hub`: the command line. `python -m hub` is the same.

Exit codes: 0 it worked, 1 it did not, 2 the call's words were off. Human output by default, `--json` where there is a
result to read by program.
"""

from __future__ import annotations

import sys

import cyclopts

from hub.cli import configuration, database, operate, run, tokens
from hub.cli.output import FAILURE, OK, USAGE, Failed, note

app = cyclopts.App(
    name="auralink-hub",
    help="Real-time signaling and presence hub in front of LiveKit.",
    version_flags=["--version"],
    version=configuration.version_text,
    help_format="plaintext",
    default_parameter=cyclopts.Parameter(negative=()),
)
for part in (run, configuration, database, tokens, operate):
    part.add_to(app)


def main(arguments: list[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    try:
        result = app(
            sys.argv[1:] if arguments is None else arguments,
            exit_on_error=False,
            print_error=True,
            result_action="return_value",
        )
    except cyclopts.CycloptsError:
        return USAGE
    except Failed as failure:
        note(f"auralink-hub: {failure}")
        return FAILURE
    except KeyboardInterrupt:
        return FAILURE
    except BrokenPipeError:
        # The reader of our output has enough.
        sys.stderr.close()
        return OK
    return result if isinstance(result, int) else OK


if __name__ == "__main__":
    sys.exit(main())
