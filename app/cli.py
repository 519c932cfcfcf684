"""The command line `agent-platform`: run the server, migrate, manage keys and workspaces."""

import argparse
import gc
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

from app import __version__

DEFAULT_WORKSPACE_ID = UUID("01900000-0000-7000-8000-000000000001")
"""A copy of the constant in `core.security`, whose imports would make `--help` slow."""


def main(arguments: Sequence[str] | None = None) -> int:  # noqa: PLR0911  # one per command
    """Run one command; return the process's exit status."""
    parser = argparse.ArgumentParser(
        prog="agent-platform",
        description="A self-hosted backend for AI agents that talk, in text and by voice.",
        epilog="Settings are environment variables: see .env.example.",
    )
    parser.add_argument("--version", action="version", version=f"agent-platform {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="run the server")
    serve.add_argument("--host", help="address to listen on (default: HOST, or 127.0.0.1)")
    serve.add_argument("--port", type=int, help="port to listen on (default: PORT, or 8000)")
    serve.add_argument(
        "--workers",
        type=int,
        choices=range(1, 257),
        metavar="N",
        help="number of processes that share the port (default: WORKERS, or 1)",
    )
    serve.add_argument(
        "--check", action="store_true", help="only check that the server could start"
    )
    migrate = commands.add_parser(
        "migrate", help="upgrade the database to the revision of this version"
    )
    migrate.add_argument(
        "--to",
        metavar="REVISION",
        help="another revision, such as 0006; an older one loses what only newer ones store",
    )
    copy = commands.add_parser(
        "copy-database", help="copy all data to another database, such as SQLite to PostgreSQL"
    )
    copy.add_argument("--from", dest="source", metavar="URL", help="(the SQLite file of DATA_DIR)")
    copy.add_argument("--to", dest="target", metavar="URL", help="(DATABASE_URL)")
    _add_import_command(commands)
    doctor = commands.add_parser("doctor", help="check settings, database, providers and folders")
    doctor.add_argument("--json", action="store_true", help="print a JSON document")
    commands.add_parser(
        "needs-engine", help="exit with status 0 if the embedded engine is used, else 1"
    )
    _add_admin_commands(commands)
    options = parser.parse_args(arguments)
    match options.command:
        case "keys" | "workspaces" | "secrets":
            from app import admin_cli

            return admin_cli.run(options)
        case "serve":
            return _serve(options)
        case "migrate":
            return _migrate(options.to)
        case "copy-database":
            from app import database_copy

            return database_copy.run(options.source, options.target)
        case "import":
            from app import importers

            return importers.run(options)
        case "doctor":
            from app import doctor

            return doctor.run(as_json=options.json)
        case _:
            return _needs_engine()


def _add_import_command(commands: Any) -> None:  # noqa: ANN401  # argparse has no public name
    importing = commands.add_parser("import", help="import conversations of another system")
    importing.add_argument("format", choices=("openai-threads", "letta", "jsonl"))
    importing.add_argument("file", type=Path, metavar="FILE", help="a file, or a folder of files")
    importing.add_argument("--agent", type=UUID, metavar="ID", help="the agent of all sessions")
    importing.add_argument("--dry-run", action="store_true", help="only report what would be done")
    importing.add_argument(
        "--workspace",
        type=UUID,
        default=DEFAULT_WORKSPACE_ID,
        metavar="ID",
        help="id of the workspace (default: the default workspace)",
    )


def _add_admin_commands(commands: Any) -> None:  # noqa: ANN401  # argparse has no public name
    keys = commands.add_parser("keys", help="create, list, rotate and revoke API keys")
    actions = keys.add_subparsers(dest="action", required=True, metavar="ACTION")
    workspace_option = argparse.ArgumentParser(add_help=False)
    workspace_option.add_argument(
        "--workspace",
        type=UUID,
        default=DEFAULT_WORKSPACE_ID,
        help="id of the workspace (default: the default workspace)",
    )
    with_workspace = {"parents": [workspace_option]}
    create = actions.add_parser("create", **with_workspace, help="create a key and print it")
    create.add_argument("--name", required=True, help="name of the key, shown in lists")
    create.add_argument(
        "--scope",
        action="append",
        help="such as usage:read; may be repeated (default: what conversations need)",
    )
    create.add_argument(
        "--expires-days", type=int, help="days until the key expires (default: never)"
    )
    actions.add_parser("list", **with_workspace, help="print the keys, without their secrets")
    revoke = actions.add_parser("revoke", **with_workspace, help="revoke a key permanently")
    revoke.add_argument("id", help="id of the key")
    rotate = actions.add_parser("rotate", **with_workspace, help="print a new secret for a key")
    rotate.add_argument("id", help="id of the key")
    rotate.add_argument(
        "--grace-seconds",
        type=int,
        default=86400,
        help="how long the old secret stays valid (default: 86400)",
    )
    workspaces = commands.add_parser("workspaces", help="create and list workspaces")
    actions = workspaces.add_subparsers(dest="action", required=True, metavar="ACTION")
    create = actions.add_parser("create", help="create a workspace and print its id")
    create.add_argument("--name", required=True)
    actions.add_parser("list", help="print the workspaces")
    secrets = commands.add_parser("secrets", help="re-encrypt the secrets of tools")
    actions = secrets.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("rotate", help="put every secret under the first key of SECRETS_KEY")


def _serve(arguments: argparse.Namespace) -> int:
    host: str | None = arguments.host
    port: int | None = arguments.port
    workers: int | None = arguments.workers
    gc.disable()  # a start leaves little behind, and a tenth of it went into looking; see `state`
    from app.server import lean_imports

    lean_imports.load_frameworks()
    from uvicorn.config import STARTUP_FAILURE, Config

    from app.core.config import load_settings
    from app.core.errors import StartRefused
    from app.http.protocol import WEBSOCKET_MESSAGE_BYTES, DeadlineHttpProtocol
    from app.providers import fetch_weights
    from app.server.draining_server import DrainingServer

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
        "http": DeadlineHttpProtocol,
        "ws": "websockets-sansio",
        "ws_max_size": WEBSOCKET_MESSAGE_BYTES,
        "ws_per_message_deflate": False,  # sound does not get smaller, and each frame costs CPU
        "workers": 1,  # otherwise uvicorn reads WEB_CONCURRENCY
    }
    starting = f"Starting on http://{_browsable(shown_host)}:{shown_port} ...\n"
    try:
        if count > 1 or "AGENT_PLATFORM_SUPERVISOR" in os.environ:
            from app.server import workers as several

            if count > 1:
                several.require_several(settings)
            if arguments.check:
                return _check(options)
            _allow_many_connections()
            sys.stderr.write(starting)
            return several.serve(settings, count, options)
        if arguments.check:
            return _check(options)
        fetch_weights(settings)
    except StartRefused as error:
        sys.stderr.write(f"{error}\n")
        return os.EX_CONFIG
    _allow_many_connections()
    sys.stderr.write(starting)
    server = DrainingServer(Config("app.main:app", **options))
    with suppress(KeyboardInterrupt):  # uvicorn raises it again once it has shut down
        server.run()
    return 0 if server.started else STARTUP_FAILURE


def _check(options: dict[str, Any]) -> int:
    """Load all that a server loads before it listens; what is wrong ends the process."""
    from uvicorn.config import Config

    Config("app.main:app", **options).load()
    return 0


def _allow_many_connections() -> None:
    """Raise the soft limit of open files, which is low for servers, to the hard limit."""
    if sys.platform == "win32":
        return
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _browsable(host: str) -> str:
    return "127.0.0.1" if host in {"0.0.0.0", "::"} else host  # noqa: S104  # only printed


def _migrate(revision: str | None) -> int:
    from app.core.config import load_settings
    from app.core.database.migrations import UnknownRevision, move_to
    from app.core.errors import AppError

    settings = load_settings()
    try:
        move_to(settings, revision)
    except UnknownRevision as error:
        sys.stderr.write(f"{error}\n")
        return os.EX_USAGE
    except AppError as error:
        sys.stderr.write(f"{error.detail}\n")
        return os.EX_TEMPFAIL
    state = f"at revision {revision}" if revision else "up to date"
    sys.stderr.write(f"The database is {state}: {settings.parsed_database_url}\n")
    return 0


def _needs_engine() -> int:
    from app.core.config import load_settings

    return 0 if load_settings(warn=False).embedded_capabilities else 1


if __name__ == "__main__":
    sys.exit(main())
