"""`agent-platform`: other entries to the same use cases."""

import argparse
import os
import sys
from collections.abc import Sequence


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
    commands.add_parser("migrate", help="bring the database to this version's revision")
    commands.add_parser("needs-engine", help="tell with the exit status whether it is embedded")
    options = parser.parse_args(arguments)
    match options.command:
        case "serve":
            return _serve(options.host, options.port)
        case "migrate":
            return _migrate()
        case _:
            return _needs_engine()


def _serve(host: str | None, port: int | None) -> int:
    import uvicorn

    from app.core.config import load_settings
    from app.core.errors import StartRefused
    from app.routers.connections import PatientProtocol
    from app.state import fetch_weights

    settings = load_settings()
    try:
        fetch_weights(settings)
    except StartRefused as error:
        sys.stderr.write(f"{error}\n")
        return os.EX_CONFIG
    _allow_many_connections()
    shown_host = host or settings.host
    shown_port = settings.port if port is None else port
    sys.stderr.write(f"Starting on http://{_browsable(shown_host)}:{shown_port} ...\n")
    uvicorn.run(
        "app.main:app",
        host=shown_host,
        port=shown_port,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=75,
        http=PatientProtocol,
    )
    return 0


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
