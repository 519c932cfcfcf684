"""Loads uvicorn and FastAPI without what they bring along that a server never uses: 5 MB of it."""

import sys
from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any, cast


def load() -> None:
    """Import both; to be called before anything else does."""
    # FastAPI asks of every route whether it is of pydantic's first version: 1.4 MB.
    sys.modules["pydantic.v1"] = cast("ModuleType", None)
    # What pydantic and OpenTelemetry would need for packages in zip files: 0.3 MB.
    with _standing_in("zipfile"):
        import_module("importlib.metadata")
    # uvicorn's own command line, with click and multiprocessing, and logging by file: 2 MB.
    own_commands = _standing_in("uvicorn.main", Server=None, main=None, run=None)
    with own_commands, _standing_in("logging.config"):
        uvicorn: Any = import_module("uvicorn")
    uvicorn.Server = import_module("uvicorn.server").Server
    # The models of an OpenAPI document are built once somebody asks for one: 1.2 MB.
    from pydantic import BaseModel

    BaseModel.model_config["defer_build"] = True
    try:
        import_module("fastapi.openapi.models")
    finally:
        del BaseModel.model_config["defer_build"]


@contextmanager
def _standing_in(name: str, **attributes: Any) -> Generator[None]:
    """Let an import of `name` find an empty module; after the block it finds the real one."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = ModuleType(name)
    vars(sys.modules[name]).update(attributes)
    try:
        yield
    finally:
        del sys.modules[name]
