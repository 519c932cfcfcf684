"""A run in several processes (pytest-xdist): workers run tests, the controller reports.

Everything here also holds where there is one process.
"""

import json
from typing import Any

import pytest


def is_worker(config: pytest.Config) -> bool:
    """Return whether this process runs tests for another one, which reports."""
    return hasattr(config, "workerinput")


def is_controller(config: pytest.Config) -> bool:
    """Return whether this process reports what others run."""
    return getattr(config.option, "dist", "no") != "no" and not is_worker(config)


def hand_over(config: pytest.Config, name: str, value: object) -> None:
    """Give the controller what JSON can hold when this worker ends."""
    output: dict[str, str] = getattr(config, "workeroutput")  # noqa: B009  # a worker's alone
    output[name] = json.dumps(value)


def handed_over(node: object, name: str) -> Any:  # noqa: ANN401  # what a worker handed over
    """Return what a worker handed over. Raises `KeyError` where it did not.

    A worker that crashed had no time to; the test that it was at fails the run.
    """
    return json.loads(getattr(node, "workeroutput", {})[name])
