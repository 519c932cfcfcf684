"""`agent-platform`: other entries to the same use cases."""

import argparse
import gc
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from uuid import UUID

DEFAULT_WORKSPACE_ID = UUID("01900000-0000-7000-8000-000000000001")
"""As in `core.security`, whose imports would make `--help` slow."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the process's exit status."""
    parser = argparse.ArgumentParser(
        prog="agent-platform",
        description="A self-hosted backend for AI agents that talk, in text and by voice.",
        epilog="Settings are environment variables: see .env.example.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="run the server")
    serve.add_argument("--host", help="where to listen (HOST, by default 127.0.0.1)")
    serve.add_argument("--port", type=int, help="which port (PORT, by default 8000)")
    serve.add_argument(
        "--workers",
        type=int,
        choices=range(1, 257),
        metavar="N",
        help="how many processes share the port (WORKERS, by default 1)",
    )
    commands.add_parser("migrate", help="bring the database to this version's revision")
    commands.add_parser("needs-engine", help="tell with the exit status whether it is embedded")
    _add_admin_commands(commands)
    options = parser.parse_args(arguments)
    match options.command:
        case "keys" | "workspaces":
            from app import admin_cli

            return admin_cli.run(options)
        case "serve":
            return _serve(options.host, options.port, options.workers)
        case "migrate":
            return _migrate()
        case _:
            return _needs_engine()


def _add_admin_commands(commands: Any) -> None:  # noqa: ANN401  # argparse has no public name
    keys = commands.add_parser("keys", help="make, list, rotate and revoke keys")
    actions = keys.add_subparsers(dest="action", required=True, metavar="ACTION")
    of_workspace = argparse.ArgumentParser(add_help=False)
    of_workspace.add_argument(
        "--workspace", type=UUID, default=DEFAULT_WORKSPACE_ID, help="its id (the default one)"
    )
    create = actions.add_parser("create", parents=[of_workspace], help="make a key and print it")
    create.add_argument("--name", required=True)
    create.add_argument(
        "--scope", action="append", help="such as turns:write; may be repeated (everything)"
    )
    create.add_argument("--expires-days", type=int, help="how long it lives (until it is revoked)")
    actions.add_parser("list", parents=[of_workspace], help="print the keys, without their secrets")
    revoke = actions.add_parser("revoke", parents=[of_workspace], help="end a key for good")
    revoke.add_argument("id")
    rotate = actions.add_parser("rotate", parents=[of_workspace], help="print a key's new secret")
    rotate.add_argument("id")
    rotate.add_argument("--grace-seconds", type=int, default=86400, help="of the old one (86400)")
    places = commands.add_parser("workspaces", help="make and list workspaces")
    actions = places.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("create", help="make a workspace and print its id").add_argument("name")
    actions.add_parser("list", help="print the workspaces")


def _serve(host: str | None, port: int | None, workers: int | None) -> int:
    gc.disable()  # a start leaves little behind, and a tenth of it went into looking; see `state`
    from app import frameworks

    frameworks.load()
    from uvicorn.config import STARTUP_FAILURE, Config
    from uvicorn.server import Server

    from app.core.config import load_settings
    from app.core.errors import StartRefused
    from app.routers.connections import PatientProtocol
    from app.state import fetch_weights

    settings = load_settings()
    shown_host = host or settings.host
    shown_port = settings.port if port is None else port
    count = settings.workers if workers is None else workers
    options: dict[str, Any] = {
        "host": shown_host,
        "port": shown_port,
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "proxy_headers": False,
        "timeout_keep_alive": 75,
        "http": PatientProtocol,
        "workers": 1,  # else uvicorn reads WEB_CONCURRENCY
    }
    starting = f"Starting on http://{_browsable(shown_host)}:{shown_port} ...\n"
    try:
        if count > 1:
            from app import workers as several

            several.require_several(settings)
            _allow_many_connections()
            sys.stderr.write(starting)
            return several.serve(settings, count, options)
        fetch_weights(settings)
    except StartRefused as error:
        sys.stderr.write(f"{error}\n")
        return os.EX_CONFIG
    _allow_many_connections()
    sys.stderr.write(starting)
    server = Server(Config("app.main:app", **options))
    with suppress(KeyboardInterrupt):  # uvicorn raises it again once it has shut down
        server.run()
    return 0 if server.started else STARTUP_FAILURE


def _allow_many_connections() -> None:
    """Raise the limit of open files, which systems set for desktop programs, as far as allowed."""
    if sys.platform == "win32":
        return
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _browsable(host: str) -> str:
    return "127.0.0.1" if host in {"0.0.0.0", "::"} else host  # noqa: S104  # only shown


def _migrate() -> int:
    from app.core.config import load_settings
    from app.core.errors import AppError
    from app.core.migrations import upgrade

    settings = load_settings()
    try:
        upgrade(settings)
    except AppError as error:
        sys.stderr.write(f"{error.detail}\n")
        return os.EX_TEMPFAIL
    sys.stderr.write(f"The database is up to date: {settings.parsed_database_url}\n")
    return 0


def _needs_engine() -> int:
    from app.core.config import load_settings

    return 0 if load_settings().needs_embedded_engine else 1


if __name__ == "__main__":
    sys.exit(main())
