"""The client that the conformance suite starts: it hands its server to the process of the tests.

Only the standard library, and that sparingly: the suite starts one for each scenario.
`python -S conformance_client.py PORT URL` sends URL, scenario and context as one line of JSON, and
exits with the status that comes back.
"""

import json
import os
import socket
import sys

_VARIABLES = ("SCENARIO", "CONTEXT", "PROTOCOL_VERSION")


def main() -> None:
    port, url = sys.argv[1:]
    fields = {name: os.environ.get(f"MCP_CONFORMANCE_{name}") for name in _VARIABLES}
    with socket.create_connection(("127.0.0.1", int(port))) as connection:
        connection.sendall(json.dumps({"url": url} | fields).encode() + b"\n")
        answer = connection.makefile().readline()
    sys.stderr.write(answer)
    sys.exit(0 if answer.startswith("ok") else 1)


if __name__ == "__main__":
    main()
