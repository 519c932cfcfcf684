"""Loads uvicorn and FastAPI without the parts that this server never uses.

That is 5 of the 77 MB of an idle server (resident memory after the import of `app.main`).
"""

import sys
from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any, cast


def load_frameworks() -> None:
    """Import both; to be called before anything else does."""
    # FastAPI asks of every route whether it is of pydantic's first version: 1.6 MB.
    sys.modules["pydantic.v1"] = cast("ModuleType", None)
    # uvicorn's own command line, with click and multiprocessing, and logging by file: 2 MB.
    own_commands = _stub_module("uvicorn.main", Server=None, main=None, run=None)
    with own_commands, _stub_module("logging.config"):
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
def _stub_module(name: str, **attributes: Any) -> Generator[None]:
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
