"""The generators of API clients, and TypeScript's compiler: installed once, outside the checkout.

Each set of tools is locked by a file of the repository, and its folder is named after what that
file holds: `~/.cache/agent-platform-tests/NAME-HASH`.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.support.tools import ToolMissing, find_tool

ROOT = Path(__file__).parents[2]
TYPESCRIPT_CLIENT = ROOT / "clients" / "typescript"
_GENERATORS_LOCK = ROOT / "requirements" / "generators.txt"
_CLIENTS_LOCK = ROOT / "requirements" / "clients.txt"
_LIVE_CLIENTS_LOCK = ROOT / "requirements" / "live-clients.txt"
_NODE_MAJOR = 20


def node() -> str:
    """Return the path of Node.js. Raises `ToolMissing`."""
    path = find_tool("node", "nodejs")
    version = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
    if int(version.removeprefix("v").partition(".")[0]) < _NODE_MAJOR:
        raise ToolMissing(
            f"Node.js {version.strip()} is too old: {_NODE_MAJOR} or newer is needed."
        )
    return path


def node_modules() -> Path:
    """Return the `node_modules` that `clients/typescript/package-lock.json` locks."""
    return installed_node_modules(TYPESCRIPT_CLIENT, "node")


def installed_node_modules(source: Path, name: str) -> Path:
    """Return the `node_modules` that the lock in `source` names; `name` is the tools' own."""
    node()
    npm = find_tool("npm")
    files = [source / each for each in ("package.json", "package-lock.json")]

    def install(folder: Path) -> None:
        for file in files:
            shutil.copy(file, folder)
        _run([npm, "ci", "--silent", "--no-audit", "--no-fund", "--ignore-scripts"], folder)

    return _installed(name, files, install) / "node_modules"


def python_generators() -> Path:
    """Return the `bin` folder of an environment with `requirements/generators.txt`."""
    return _python_environment("python", _GENERATORS_LOCK)


def python_clients() -> Path:
    """Return the Python of an environment with `requirements/clients.txt`."""
    return _python_environment("python-clients", _CLIENTS_LOCK) / "python"


def python_live_clients() -> Path:
    """Return the Python of an environment with `requirements/live-clients.txt`."""
    return _python_environment("python-live-clients", _LIVE_CLIENTS_LOCK) / "python"


def _python_environment(name: str, requirements: Path) -> Path:
    def install(folder: Path) -> None:
        _run([sys.executable, "-m", "venv", str(folder)], folder)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        options = ["--disable-pip-version-check", "--require-hashes", "--only-binary", ":all:"]
        options.append("--no-deps")  # the lock has them all, but for those that are left out
        _run([*pip, *options, "--requirement", str(requirements)], folder)

    return _installed(name, [requirements], install) / "bin"


def _installed(name: str, locks: Sequence[Path], install: Callable[[Path], None]) -> Path:
    digest = hashlib.sha256(b"".join(lock.read_bytes() for lock in locks)).hexdigest()[:16]
    cache = (
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "agent-platform-tests"
    )
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / f"{name}-{digest}"
    done = folder / ".installed"
    # Test processes install once: whoever comes second waits, and finds it done.
    with (cache / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            install(folder)
            done.touch()
    return folder


def _run(command: Sequence[str], folder: Path) -> None:
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, f"{' '.join(command)}: {ran.stdout}{ran.stderr}"


if __name__ == "__main__":  # before the tests, so that none of them waits for it
    installed_node_modules(ROOT / "tests" / "real_clients" / "tools", "real-clients")
    python_clients()
    python_live_clients()
