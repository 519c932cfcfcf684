"""A real PostgreSQL and a real PgBouncer, started for tests and for fault suites.

Both listen on a free loopback port, keep their files in a temporary folder, and end with the
process that started them, also where that is killed. Every call blocks until it is done: in a
test that shares its event loop with the application, call `start`, `stop` and `restart` in a
thread. `kill`, `freeze` and `thaw` take a few milliseconds.
"""

import atexit
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self
from urllib.parse import quote

from tests.support import planted_secrets
from tests.support.ports import free_port
from tests.support.postgres_programs import find_pgbouncer, find_postgres
from tests.support.processes import send_signal

START_SECONDS = 120
STOP_SECONDS = 30
MEMORY_FOLDER_BYTES = 2**30
PASSWORD = quote(planted_secrets.DATABASE_PASSWORD, safe="")
"""As a URL has it. Nobody checks it: both servers trust every client on loopback."""
_DUMP = r"""
SELECT format('COPY %s TO STDOUT', oid::regclass) FROM pg_class
WHERE relnamespace = to_regnamespace('agent_platform') AND relkind = 'r' \gexec
"""


class ServerFailed(RuntimeError):
    """A server or one of its tools ended with an error; the message quotes its log."""


class _Server(ABC):
    """One process on one loopback port; the port stays the same over restarts."""

    name: str
    stop_signal: signal.Signals
    orphan_signal: str

    def __init__(self, parent_folder: Path | None = None) -> None:
        self.port = free_port()
        self._account = _account()
        self.folder = Path(tempfile.mkdtemp(prefix=f"{self.name}-", dir=parent_folder))
        self._hand_over(self.folder)
        self._process: subprocess.Popen[bytes] | None = None
        self._owner_pid = os.getpid()
        self._guardian = _start_guardian(self.folder, self.orphan_signal)
        atexit.register(self.close)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """The process, or `None` where it is not running."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def start(self) -> None:
        """Start it and wait until it takes connections. Raises `ServerFailed`."""
        if self.pid is not None:
            return
        self._prepare()
        with (self.folder / "log").open("ab") as log:
            self._process = self._popen(self._command(), log.fileno())
        self._tell_guardian(self._process.pid)
        deadline = time.monotonic() + START_SECONDS
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise ServerFailed(f"{self.name} did not start:\n{self.log()[-2000:]}")
            time.sleep(0.01)

    def stop(self) -> None:
        """End it in order: clients are cut, what is committed stays."""
        if self._process is None or self.pid is None:
            return
        self.thaw()
        self._process.send_signal(self.stop_signal)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_SECONDS)
        self.kill()
        self._tell_guardian(None)

    def restart(self) -> None:
        """`stop`, then `start`, on the same port with the same data."""
        self.stop()
        self.start()

    def kill(self) -> None:
        """End it and its children at once (SIGKILL), as a power cut would."""
        if self._process is None or self.pid is None:
            return
        self._process.send_signal(signal.SIGSTOP)  # so that it starts no further child
        while children := _children(self._process.pid):
            for child in children:
                _send(child, signal.SIGKILL)
            time.sleep(0.005)
        self._process.kill()
        self._process.wait()
        self._tell_guardian(None)

    def freeze(self) -> None:
        """Stop it and its children in mid-work (SIGSTOP): connections stay open, nothing answers.

        The kernel still completes new TCP connections. `thaw` ends it.
        """
        if pid := self.pid:
            for frozen in (pid, *_children(pid)):
                _send(frozen, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen server go on."""
        if pid := self.pid:
            for frozen in (*_children(pid), pid):
                _send(frozen, signal.SIGCONT)

    def close(self) -> None:
        """End it and remove its files. Can be called twice; does nothing in a forked child."""
        if os.getpid() != self._owner_pid:
            return
        self.stop()
        with suppress(BrokenPipeError):
            self._tell_guardian(None)
            self._guardian.communicate()  # it removes the folder
        atexit.unregister(self.close)

    def log(self) -> str:
        """What it wrote so far."""
        return (self.folder / "log").read_text(errors="replace")

    def _tell_guardian(self, pid: int | None) -> None:
        if self._guardian.stdin and not self._guardian.stdin.closed:
            self._guardian.stdin.write(f"{pid or ''}\n".encode())
            self._guardian.stdin.flush()

    def _popen(self, command: Sequence[str], output: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command,
            user=self._account and self._account.pw_uid,
            group=self._account and self._account.pw_gid,
            extra_groups=[] if self._account else None,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=self.folder,
            env={"PATH": os.defpath, "LC_ALL": "C"},
            start_new_session=True,  # so that Ctrl-C reaches the tests alone
        )

    def _run(self, *command: str) -> None:
        """Run a tool as the server's user. Raises `ServerFailed` with its words."""
        with tempfile.TemporaryFile() as output:
            if self._popen(command, output.fileno()).wait():
                output.seek(0)
                words = output.read().decode(errors="replace")
                raise ServerFailed(f"{Path(command[0]).name} failed:\n{words[-2000:]}")

    def _hand_over(self, path: Path) -> None:
        if self._account:
            os.chown(path, self._account.pw_uid, self._account.pw_gid)

    @abstractmethod
    def _prepare(self) -> None: ...

    @abstractmethod
    def _command(self) -> list[str]: ...

    @abstractmethod
    def _is_ready(self) -> bool: ...


class PostgresServer(_Server):
    """A PostgreSQL cluster of its own.

    `fsync=False` gives up durability for speed, and keeps the data in memory where the machine
    has room for it: only for tests that neither kill nor measure it.
    `programs` is a folder with `initdb`, `postgres` and `psql`; by default `find_postgres()`.
    Raises `ToolMissing`.
    """

    name = "postgres"
    stop_signal = signal.SIGINT  # fast shutdown
    orphan_signal = "QUIT"  # immediate shutdown

    def __init__(self, *, fsync: bool = True, programs: Path | None = None) -> None:
        programs = programs or find_postgres()
        super().__init__(None if fsync else _memory_folder())
        self.fsync = fsync
        self.programs = self._readable(programs)
        self.data = self.folder / "data"

    def url(self, database: str = "postgres", *, user: str = "postgres") -> str:
        """`postgresql://` URL with a password that nobody checks; `postgres` is a superuser."""
        return f"postgresql://{user}:{PASSWORD}@127.0.0.1:{self.port}/{database}"

    def create_database(self, name: str, template: str | None = None) -> None:
        """Make a database, as a copy of `template`, to which nobody may be connected."""
        # To copy files is half the work of writing them to the log, where nothing need be durable.
        copies_files = not self.fsync and int((self.data / "PG_VERSION").read_text()) >= 15
        strategy = "STRATEGY FILE_COPY" if copies_files else ""
        self.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template or "template1"}" {strategy}')

    def drop_database(self, name: str) -> None:
        """Search and remove a database, if it is there, and end the connections to it."""
        self.search(name)
        self.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def execute(self, sql: str, database: str = "postgres") -> None:
        """Run SQL as superuser, outside a transaction. Raises `ServerFailed`."""
        psql = str(self.programs / "psql")
        self._run(psql, "--no-psqlrc", "-qv", "ON_ERROR_STOP=1", "-c", sql, self.url(database))

    def search(self, database: str = "postgres") -> None:
        """Look for planted secrets in every row of ours."""
        if not planted_secrets.is_on:
            return
        command = [self.programs / "psql", "--no-psqlrc", "-qAt", "-f", "-", self.url(database)]
        environment = {"LC_ALL": "C", "PGOPTIONS": "-c bytea_output=escape"}
        dump = subprocess.run(
            command, input=_DUMP.encode(), capture_output=True, env=environment, check=False
        )
        planted_secrets.search(planted_secrets.Place.DATABASE, dump.stdout, "PostgreSQL")

    def crash(self) -> None:
        """End it as `pg_ctl stop -m immediate` does: what runs is cut off without an answer."""
        if self._process is None or self.pid is None:
            return
        self._process.send_signal(signal.SIGQUIT)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_SECONDS)
        self.kill()
        self._tell_guardian(None)

    def close(self) -> None:
        """End it and remove its files, and the shared memory that a kill left behind."""
        if os.getpid() == self._owner_pid:
            if self.pid is not None:
                self.thaw()
                self.search()
                planted_secrets.search(planted_secrets.Place.LOG, self.log(), "PostgreSQL's log")
            self.stop()
            _remove_shared_memory(self.data / "postmaster.pid")
            super().close()

    def _prepare(self) -> None:
        if self.data.exists():
            return
        initdb = str(self.programs / "initdb")
        options = "--username=postgres --auth=trust --encoding=UTF8 --locale=C.UTF-8 --no-sync"
        self._run(initdb, *options.split(), f"--pgdata={self.data}")
        if self.fsync:
            self._run(initdb, "--sync-only", f"--pgdata={self.data}")

    def _command(self) -> list[str]:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "max_connections": "100",
            "dynamic_shared_memory_type": "mmap",  # in the data folder, so a kill leaves nothing
        }
        if not self.fsync:
            settings |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        command = [str(self.programs / "postgres"), "-D", str(self.data)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        return command

    def _is_ready(self) -> bool:
        # What `pg_ctl --wait` looks at; a killed server leaves its file, with another pid.
        try:
            lines = (self.data / "postmaster.pid").read_text().split()
        except FileNotFoundError:
            return False
        return bool(lines) and lines[0] == str(self.pid) and lines[-1] == "ready"

    def _readable(self, programs: Path) -> Path:
        """Copy the programs where the server's user cannot reach them, as under `/root`."""
        with suppress(PermissionError):
            self._run(str(programs / "postgres"), "--version")
            return programs
        package = programs.parent.parent
        copied = self.folder / package.name / programs.parent.name
        shutil.copytree(programs.parent, copied, symlinks=True)
        libraries = package.with_suffix(".libs")  # the wheel's, found relative to the programs
        if libraries.exists():
            shutil.copytree(libraries, self.folder / libraries.name)
        return copied / programs.name


class PgBouncer(_Server):
    """A PgBouncer in transaction mode before a `PostgresServer`, as Supabase's port 6543 is.

    Clients may give any user and password, and become `user` on the server. `pool_size` is the
    number of server connections per database. Raises `ToolMissing`.
    """

    name = "pgbouncer"
    stop_signal = signal.SIGTERM
    orphan_signal = "KILL"

    def __init__(
        self, server: PostgresServer, *, pool_size: int = 20, user: str = "postgres"
    ) -> None:
        self._program = find_pgbouncer()
        super().__init__()
        self._server = server
        self._pool_size = pool_size
        self._user = user

    def url(self, database: str = "postgres") -> str:
        """`postgresql://` URL in the form of Supabase's pooler."""
        return f"postgresql://postgres.project:{PASSWORD}@127.0.0.1:{self.port}/{database}"

    def _prepare(self) -> None:
        configuration = f"""\
[databases]
* = host=127.0.0.1 port={self._server.port} user={self._user}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {self.port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {self._pool_size}
max_client_conn = 1000
ignore_startup_parameters = extra_float_digits
server_login_retry = 1
"""
        path = self.folder / "pgbouncer.ini"
        path.write_text(configuration)
        self._hand_over(path)

    def _command(self) -> list[str]:
        raise_limit = 'ulimit -n "$(ulimit -Hn)"; exec "$@"'  # a client takes a file descriptor
        program = [self._program, "--quiet", str(self.folder / "pgbouncer.ini")]
        return ["/bin/sh", "-c", raise_limit, "sh", *program]

    def _is_ready(self) -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self.port)) == 0


def _account() -> pwd.struct_passwd | None:
    """Return who runs the servers: for root `postgres` or `nobody`, as both refuse root."""
    if os.geteuid() != 0:
        return None
    with suppress(KeyError):
        return pwd.getpwnam("postgres")
    return pwd.getpwnam("nobody")


def _start_guardian(folder: Path, orphan_signal: str) -> subprocess.Popen[bytes]:
    """Start what clears up once this process is gone, however it went.

    It reads the server's pid, line by line, from a pipe that ends with this process.
    """
    script = """
        while read -r line; do pid=$line; done
        if [ -n "$pid" ] && kill -"$2" "$pid" 2>/dev/null; then
            kill -CONT "$pid"
            while kill -0 "$pid" 2>/dev/null; do sleep 0.1; done
        fi
        rm -rf "$1"
    """
    return subprocess.Popen(
        ["/bin/sh", "-c", script, "guardian", folder, orphan_signal],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # so that no signal to the tests' group reaches it
    )


def _memory_folder() -> Path | None:
    """Return a file system in memory with room for many databases, or `None`."""
    folder = Path("/dev/shm")  # noqa: S108
    has_room = folder.is_dir() and shutil.disk_usage(folder).free > MEMORY_FOLDER_BYTES
    return folder if has_room else None


def _children(parent: int) -> list[int]:
    """Return the living children of a process: PostgreSQL's have process groups of their own."""
    listing = subprocess.check_output(["ps", "-A", "-o", "pid=,ppid=,state="], text=True)
    rows = [line.split() for line in listing.splitlines()]
    return [int(pid) for pid, ppid, state in rows if int(ppid) == parent and state[0] != "Z"]


def _send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        send_signal(pid, number)


def _remove_shared_memory(pid_file: Path) -> None:
    # Its seventh line is "key id" of the segment by which PostgreSQL finds a living predecessor.
    with suppress(FileNotFoundError, IndexError):
        segment = pid_file.read_text().splitlines()[6].split()[1]
        subprocess.run(["ipcrm", "-m", segment], capture_output=True, check=False)
