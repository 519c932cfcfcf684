"""What the programs share: their arguments, the provider's script, and the object they print."""

import json
import sys
import time
import traceback
import urllib.request
from collections.abc import Callable
from typing import Any

SERVER, PROVIDER, KEY = sys.argv[1:4]
BASE_URL = f"{SERVER}/v1"
results: dict[str, Any] = {}


def check(work: Callable[[], Any]) -> None:
    """Run a check, and note what it found."""
    name = work.__name__.replace("_", " ")
    try:
        results[name] = work()
    except Exception:
        results[name] = traceback.format_exc()[-900:]


def _call(path: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(f"{PROVIDER}{path}", data=data) as response:
        return json.load(response)


def script(**orders: Any) -> None:
    """Tell the provider what to do next."""
    _call("/_control", orders)


def last_request_is_aborted() -> bool:
    """Tell whether the model's answer was cut short, once it has ended."""
    for _ in range(1200):
        last = _call("/_requests")[-1]
        if last["is_aborted"] or last["is_ended"]:
            return last["is_aborted"]
        time.sleep(0.05)
    return False


class slowly:
    """During the block, the provider waits before each word."""

    def __init__(self, seconds: float = 0.2) -> None:
        self._seconds = seconds

    def __enter__(self) -> None:
        script(chat={"token_delay_seconds": self._seconds})

    def __exit__(self, *_: object) -> None:
        script(chat={"token_delay_seconds": 0})


class calling:
    """During the block, the model calls a tool."""

    def __init__(self, name: str, arguments: str) -> None:
        self._call = [[name, arguments]]

    def __enter__(self) -> None:
        script(chat={"calls": self._call})

    def __exit__(self, *_: object) -> None:
        script(chat={"calls": []})


def break_next_answer() -> None:
    """Let the provider break the connection behind the second word."""
    script(faults=[{"fault": "reset_at_token", "times": 1, "at": 2}])


def print_results() -> None:
    print(json.dumps(results))
