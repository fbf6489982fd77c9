"""MariaDB and MySQL of this machine, with row-based binlogs that name the columns."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import ClassVar

import pymysql

from harness.server_process import ServerError, ServerProcess

__all__ = ["MariaDBServer", "MySQLServer"]

_UNPACK_MYSQL = Path(__file__).resolve().parents[1] / "scripts" / "unpack-mysql"
_SYSTEM_DIRECTORIES = ("/usr/sbin", "/usr/local/sbin", "/usr/local/bin", "/opt/homebrew/bin")
_OR_NAME_ONE = "or give the URL of an empty database on a running server: DATABASE_URL=mysql://…/cdc_demo"


class _BinlogServer(ServerProcess):
    """The common part of both servers."""

    clients: ClassVar[tuple[str, ...]]  # command-line clients, the best first
    templates: ClassVar[Path | None] = (
        None  # a directory in which the first keeps its new data for the others
    )

    def __init__(self, *, port: int | None = None, arguments: Sequence[str] = ()) -> None:
        """`arguments` are options of the server, which override ours."""
        super().__init__(port=port)
        self.arguments = list(arguments)

    @property
    def url(self) -> str:
        """The superuser's URL, without a database."""
        return self.url_of("")

    def url_of(self, database: str, *, user: str = "root") -> str:
        return f"mysql://{user}@127.0.0.1:{self.port}/{database}"

    def client_of(self, database: str) -> str:
        """Return the command-line client's command; append `-e 'SELECT 1'` to run a statement."""
        client = next(filter(shutil.which, self.clients), self.clients[0])
        return f"{client} --host=127.0.0.1 --port={self.port} --user=root {database}"

    def create_database(self, name: str) -> str:
        """Create an empty database, and return its URL."""
        with closing(self.connect()) as connection, connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
        return self.url_of(name)

    def connect(self, database: str | None = None) -> pymysql.connections.Connection[pymysql.cursors.Cursor]:
        """Return a session of the superuser in autocommit mode; the caller closes it."""
        return pymysql.connect(
            host="127.0.0.1",
            port=self.port,
            user="root",
            database=database,
            connect_timeout=5,
            autocommit=True,
        )

    @abstractmethod
    def _make_data(self) -> list[str]:
        """Return the command that fills `data_dir`, which exists and is empty."""

    @abstractmethod
    def _server(self) -> list[str]:
        """Return the server's command without the common options."""

    def _prepare(self) -> None:
        template = None if self.templates is None else self.templates / self._template()
        if template is None:
            self._fill()
        elif template.is_dir():
            _copy(template, self.data_dir)
        else:
            self._fill()
            (self.data_dir / "auto.cnf").unlink(missing_ok=True)  # MySQL's UUID: each server has its own
            copy = _copy(self.data_dir, self.home / "template")
            with suppress(OSError):  # another process was faster
                copy.rename(template)

    def _template(self) -> str:
        """Return the name of a copy with the same contents: some options count when the directory is filled."""
        options = [word for word in self._make_data() if str(self.home) not in word]
        return f"{self.name}-template-{hashlib.sha256(repr(options).encode()).hexdigest()[:12]}"

    def _fill(self) -> None:
        command = self._make_data()
        super()._prepare()
        result = subprocess.run(command, cwd=self.home, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise ServerError(
                f"{self.name} could not create its data directory", hint=result.stdout + result.stderr
            )

    def _command(self) -> list[str]:
        return [
            *self._server(),
            *self._account(),
            f"--datadir={self.data_dir}",
            f"--socket={self.home}/socket",
            f"--pid-file={self.home}/pid",
            f"--tmpdir={self.home}",
            f"--port={self.port}",
            "--bind-address=127.0.0.1",
            "--server-id=1",
            f"--log-bin={self.data_dir}/binlog",
            "--binlog-format=ROW",
            "--binlog-row-image=FULL",
            "--binlog-row-metadata=FULL",
            "--sync-binlog=0",  # with the next option: survives a crash of the server, but not of the machine
            "--innodb-flush-log-at-trx-commit=2",
            *self.arguments,
        ]

    def _account(self) -> list[str]:
        """Return the option that the server requires to run as root."""
        return ["--user=root"] if os.geteuid() == 0 else []

    def _is_ready(self) -> bool:
        try:
            self.connect().close()
        except pymysql.OperationalError:
            return False
        return True


class MariaDBServer(_BinlogServer):
    """The MariaDB of this machine: 10.11 on Debian 12."""

    name = "mariadb"
    clients = ("mariadb", "mysql")

    def _make_data(self) -> list[str]:
        return [
            _find_mariadb("mariadb-install-db", "CDC_TEST_MARIADB_INSTALL_DB"),
            "--no-defaults",
            *self._account(),
            f"--datadir={self.data_dir}",
            f"--tmpdir={self.home}",  # two servers with the same directory delete each other's files
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
        ]

    def _server(self) -> list[str]:
        return [_find_mariadb("mariadbd", "CDC_TEST_MARIADB_SERVER"), "--no-defaults"]


class MySQLServer(_BinlogServer):
    """MySQL with GTIDs: `CDC_TEST_MYSQL_SERVER`, or MySQL 9 of Debian unstable, unpacked once into the user's cache."""

    name = "mysql"
    clients = ("mysql", "mariadb")

    def _make_data(self) -> list[str]:
        return [*self._server(), *self._account(), "--initialize-insecure", f"--datadir={self.data_dir}"]

    def _server(self) -> list[str]:
        if chosen := os.environ.get("CDC_TEST_MYSQL_SERVER"):
            if not shutil.which(chosen):
                raise _missing_mysql(f"there is no program {chosen}")
            return [chosen, "--no-defaults", *self._options()]
        root = _unpacked_mysql()
        libraries = next(root.glob("usr/lib/*-linux-gnu"))
        # Use its own loader and libraries, which are newer than this machine's.
        loader = next(libraries.glob("ld-linux-*.so.*"))
        search = f"{libraries}:{root}/usr/lib/mysql/private"
        share = root / "usr/share/mysql"
        return [
            *(str(loader), "--library-path", search, str(root / "usr/sbin/mysqld"), "--no-defaults"),
            f"--basedir={root}/usr",
            f"--plugin-dir={root}/usr/lib/mysql/plugin",
            f"--lc-messages-dir={share}",
            f"--character-sets-dir={share}/charsets",
            *self._options(),
        ]

    def _options(self) -> list[str]:
        return ["--mysqlx=OFF", "--secure-file-priv=", "--gtid-mode=ON", "--enforce-gtid-consistency=ON"]


def _copy(source: Path, target: Path) -> Path:
    """Copy a directory; most of new data are zeroes."""
    sparse = ["--sparse=always"] if sys.platform == "linux" else []
    subprocess.run(["cp", "-a", *sparse, str(source), str(target)], check=True)
    return target


def _find_mariadb(program: str, variable: str) -> str:
    search = os.pathsep.join([*_SYSTEM_DIRECTORIES, os.environ.get("PATH", "")])
    found = shutil.which(os.environ.get(variable) or program, path=search)
    if not found:
        raise ServerError(
            f"MariaDB is not on this machine: there is no {program}",
            hint="install it (Debian, Ubuntu: apt-get install mariadb-server; macOS: brew install mariadb), "
            f"or set {variable}=/path/of/{program}, {_OR_NAME_ONE}",
        )
    return found


def _unpacked_mysql() -> Path:
    try:
        result = subprocess.run([str(_UNPACK_MYSQL)], capture_output=True, text=True, check=False)
    except OSError as error:  # no bash, or no checkout
        raise _missing_mysql(f"Debian's could not be unpacked: {error}") from error
    if result.returncode != 0:
        raise _missing_mysql(f"Debian's could not be unpacked:\n{result.stderr.strip()}")
    return Path(result.stdout.strip())


def _missing_mysql(reason: str) -> ServerError:
    return ServerError(
        f"MySQL is not on this machine: {reason}",
        hint=f"install one and set CDC_TEST_MYSQL_SERVER=/path/of/mysqld, {_OR_NAME_ONE}",
    )
