"""This machine: settings, folders, disk, port."""

import difflib
import http.client
import os
import shutil
import socket
import stat
from collections.abc import Sequence
from pathlib import Path

from app.core.config import AppEnv, Settings
from app.doctor.checks import Check, broken, ok, warning

_ENV_FILE = ".env"
_LEAST_FREE_BYTES = 1 << 30
_SHORTEST_KEY = 16
_OWN_HEALTH = b'{"status":"ok"}'


def check_settings(settings: Settings) -> Sequence[Check]:
    """Look for names in `.env` that no setting has."""
    chosen = ", ".join(
        f"{capability.value}: {provider.value}"
        for capability, provider in settings.chosen_providers.items()
    )
    checks = [ok("settings", f"APP_ENV={settings.app_env.value}; {chosen}")]
    names = {name.upper() for name in Settings.model_fields}
    for given in _names_in(Path(_ENV_FILE)):
        near = difflib.get_close_matches(given, names, 1, 0.8)
        if given not in names and near:
            checks.append(
                warning("settings", f"{given} in {_ENV_FILE} is unknown", f"Is {near[0]} meant?")
            )
    return checks


def check_folders(settings: Settings) -> Sequence[Check]:
    """Look at the data folder, what is in it, and the disk that it is on."""
    folder = settings.data_dir.absolute()
    place = folder
    while not place.exists():
        place = place.parent
    if not os.access(place, os.W_OK | os.X_OK):
        return [
            broken(
                "data folder",
                f"{folder}: this user cannot write it",
                "Change its owner, or set DATA_DIR to another folder.",
            )
        ]
    checks = [_permissions(folder)] if folder.exists() else [
        ok("data folder", f"{folder}: not there yet; the first start makes it")
    ]  # fmt: skip
    free_bytes = shutil.disk_usage(place).free
    finding = f"{free_bytes / (1 << 30):.1f} GB free for {folder}"
    advice = "Free some space: a full disk stops every turn."
    checks.append(
        ok("disk", finding) if free_bytes >= _LEAST_FREE_BYTES else warning("disk", finding, advice)
    )
    checks += _admin_key(folder / "admin.key", settings)
    if settings.models_dir and not settings.models_dir.is_dir():
        checks.append(
            broken(
                "models folder",
                f"{settings.models_dir} is no folder",
                "Change MODELS_DIR, or leave it empty.",
            )
        )
    return checks


def check_port(settings: Settings) -> Check:
    """See whether the server could listen, or listens already."""
    name, address = "port", f"{settings.host} port {settings.port}"
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            if _is_own_server(settings):
                return ok(name, f"{address}: this platform listens there")
            return broken(
                name,
                f"{address}: {os.strerror(error.errno or 0)}",
                "Stop what listens there, or set HOST and PORT.",
            )
    return ok(name, f"{address} is free")


def _names_in(path: Path) -> list[str]:
    if not path.is_file():
        return []
    lines = path.read_text(errors="replace").splitlines()
    pairs = (line.strip().removeprefix("export ").partition("=") for line in lines)
    return [name.strip() for name, equals, _ in pairs if equals and not name.startswith("#")]


def _permissions(folder: Path) -> Check:
    is_open = folder.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO)
    if is_open and os.name == "posix":
        return warning(
            "data folder",
            f"{folder}: other users of this machine can look into it",
            f"Run `chmod 700 {folder}`.",
        )
    return ok("data folder", f"{folder}: its owner's alone")


def _admin_key(path: Path, settings: Settings) -> list[Check]:
    if settings.admin_api_key:
        return [ok("admin key", "ADMIN_API_KEY is set")]
    if not path.exists():
        return [ok("admin key", f"the first start makes {path}")]
    if path.is_symlink() or path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        return [
            warning(
                "admin key",
                f"{path} is a link, or other users of this machine can read it",
                "Remove the file: the next start makes a new one.",
            )
        ]
    if len(path.read_text(errors="replace").strip()) < _SHORTEST_KEY:
        return [
            broken(
                "admin key", f"{path} holds no usable key", "Remove it: the next start makes one."
            )
        ]
    finding = f"{path}, readable by its owner alone"
    return [ok("admin key", finding)] if settings.app_env is AppEnv.DEVELOPMENT else []


def _is_own_server(settings: Settings) -> bool:
    host = "127.0.0.1" if settings.host in {"0.0.0.0", "::"} else settings.host  # noqa: S104
    connection = http.client.HTTPConnection(host, settings.port, timeout=2)
    try:
        connection.request("GET", "/health/live")
        return connection.getresponse().read(100) == _OWN_HEALTH
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
