"""Becomes a program of the operator's: `python -m app.services.mcp_service.program COMMAND ARG...`.

The program ends with the worker process, has the usual signals, and no variable of ours.
"""

import os
import signal
import sys

import orjson

from app.services.sandbox.limits import die_with_parent

_CANNOT_RUN = 127
ENVIRONMENT = "MCP_PROGRAM_ENVIRONMENT"
"""Holds the program's variables as JSON until it is started."""


def main() -> None:
    """Replace this process with the program."""
    die_with_parent()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    environment: dict[str, str] = orjson.loads(os.environ[ENVIRONMENT])
    try:
        os.execvpe(sys.argv[1], sys.argv[1:], environment)  # noqa: S606  # the operator names it
    except OSError:
        os._exit(_CANNOT_RUN)


if __name__ == "__main__":
    main()
