"""Sessions on real servers, and the errors if the server refuses one."""

from __future__ import annotations

import codecs
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psycopg2
import pytest

from cdc_tasks.errors import CDCError
from harness.embedded_servers import PostgresServer
from harness.machine_servers import DebianPostgresServer
from harness.waiting import wait_until
from listener.core.source import SourceError, SourceLostError
from listener.postgres.client.connection import (
    connect,
    connect_replication,
    execute,
    fetch,
    fetch_value,
    translated,
)
from listener.postgres.client.diagnosis import explain
from listener.postgres.client.errors import PermissionDeniedError, SlotInUseError
from listener.postgres.client.slot import create_slot
from tests.support.certificates import write_certificates
from tests.support.postgres.proxy import PostgresProxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import Database

_SECRET = "s3cret:/ @"

_PINNED = {
    "DateStyle": "ISO, MDY",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "extra_float_digits": "3",
    "bytea_output": "hex",
    "client_encoding": "UTF8",
    "statement_timeout": "0",
    "quote_all_identifiers": "off",
    "standard_conforming_strings": "on",
    "default_transaction_read_only": "off",
    "default_transaction_isolation": "read committed",
    "default_transaction_deferrable": "off",
    "idle_in_transaction_session_timeout": "0",
    "client_min_messages": "warning",
    "search_path": "pg_catalog",
    "lock_timeout": "0",
}


@dataclass(frozen=True)
class Guarded:
    """A server, or a proxy before it that speaks another language."""

    server: PostgresServer
    proxy: PostgresProxy | None
    translated: Callable[[str], str]  # a message in the server's language

    def url_of(self, database: str, *, user: str = "postgres", password: str | None = None) -> str:
        url = self.server.url_of(database, user=user, password=password)
        return self.proxy.url(url) if self.proxy else url

    @property
    def url(self) -> str:
        return self.url_of("postgres")


@pytest.fixture(scope="module", params=[PostgresServer, DebianPostgresServer])
def guarded_server(request: pytest.FixtureRequest) -> Iterator[PostgresServer]:
    """A server that requires passwords and has one WAL sender, few connections, and no slot."""
    settings = {"max_wal_senders": "1", "max_connections": "8", "max_replication_slots": "0"}
    with request.param(password=_SECRET, settings=settings) as server:
        with contextlib.closing(connect(server.url)) as connection:
            for statement in (
                f"CREATE ROLE plain LOGIN PASSWORD '{_SECRET}'",
                f"CREATE ROLE reader LOGIN REPLICATION PASSWORD '{_SECRET}'",
                f"CREATE ROLE single LOGIN REPLICATION PASSWORD '{_SECRET}' CONNECTION LIMIT 1",
                f"CREATE ROLE absent NOLOGIN PASSWORD '{_SECRET}'",
                "CREATE DATABASE closed ALLOW_CONNECTIONS false",
                "CREATE DATABASE private",
                "REVOKE CONNECT ON DATABASE private FROM public",
            ):
                execute(connection, statement)
        yield server


@pytest.fixture(params=["English", "another language"])
def guarded(request: pytest.FixtureRequest, guarded_server: PostgresServer) -> Iterator[Guarded]:
    if request.param == "English":
        yield Guarded(guarded_server, None, str)
        return
    with PostgresProxy(guarded_server.port, translates=True) as proxy:
        yield Guarded(guarded_server, proxy, lambda words: codecs.encode(words, "rot13"))


@pytest.mark.parametrize("opens", [connect, connect_replication])
def test_values_look_the_same_whatever_the_role_and_the_database_set(
    any_database: Database, opens: Callable[[str], psycopg2.extensions.connection]
) -> None:
    for setting in (
        "DateStyle = 'German, MDY'",
        "IntervalStyle = 'iso_8601'",
        "TimeZone = 'Asia/Kolkata'",
        "extra_float_digits = -5",
        "bytea_output = 'escape'",
        "client_encoding = 'LATIN1'",
        "statement_timeout = '1s'",
        "quote_all_identifiers = on",
        "standard_conforming_strings = off",
        "default_transaction_read_only = on",
        "default_transaction_isolation = 'serializable'",
        "default_transaction_deferrable = on",
        "idle_in_transaction_session_timeout = '1s'",
        "client_min_messages = 'debug5'",
        "search_path = 'elsewhere'",
        "lock_timeout = '1ms'",
    ):
        any_database.execute(f'ALTER DATABASE "{any_database.name}" SET {setting}')
    server = any_database.server
    with PostgresProxy(server.port, drops=["options"]) as pooler:
        for url in (any_database.url, pooler.url(any_database.url)):
            with contextlib.closing(opens(url)) as connection:
                assert _settings(connection) == _PINNED


def _settings(connection: psycopg2.extensions.connection) -> dict[str, str]:
    values = {}
    with connection.cursor() as cursor:
        for name in _PINNED:
            cursor.execute(f"SHOW {name}")
            (values[name],) = cursor.fetchone() or (None,)
    return values


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg2"])
def test_each_way_to_write_the_scheme_connects(database: Database, scheme: str) -> None:
    with contextlib.closing(connect(database.url.replace("postgresql", scheme, 1))) as connection:
        assert fetch(connection, "SELECT current_database(), %s", ["argument"]) == [
            (database.name, "argument")
        ]


def test_what_the_url_asks_for_is_kept(database: Database) -> None:
    url = f"{database.url}?application_name=ours&options=-c%20work_mem%3D8MB"
    with contextlib.closing(connect(url)) as connection:
        assert fetch_value(connection, "SELECT current_setting('application_name')") == "ours"
        assert fetch_value(connection, "SELECT current_setting('work_mem')") == "8MB"
        assert fetch_value(connection, "SELECT current_setting('TimeZone')") == "UTC"


@pytest.mark.parametrize("password", ["pa/ss-secret", "secret@with@at", "pa?secret"])
def test_a_url_that_cannot_be_read_shows_nothing_of_the_password(password: str) -> None:
    with pytest.raises(SourceError) as raised:
        connect(f"postgresql://user:{password}@127.0.0.1:1/name?nonsense=1")
    assert "secret" not in str(raised.value)
    assert "%40" in str(raised.value)


@pytest.mark.parametrize("opens", [connect, connect_replication])
@pytest.mark.parametrize(
    ("login", "database", "says"),
    [
        (("plain", "wrong"), "postgres", ("authentication failed for user", "ALTER ROLE plain PASSWORD")),
        (("nobody", "wrong"), "postgres", ("authentication failed for user", "CREATE ROLE nobody LOGIN")),
        (("absent", _SECRET), "postgres", ("not permitted to log in", "ALTER ROLE absent LOGIN;")),
        (("plain", _SECRET), "Nowhere", ("does not exist", 'CREATE DATABASE "Nowhere";')),
        (
            ("reader", _SECRET),
            "closed",
            ("not currently accepting", "ALTER DATABASE closed ALLOW_CONNECTIONS true;"),
        ),
        (
            ("reader", _SECRET),
            "private",
            ("permission denied", "GRANT CONNECT ON DATABASE private TO reader;"),
        ),
    ],
)
def test_a_login_that_fails_says_which_and_how_to_mend_it(
    guarded: Guarded,
    opens: Callable[[str], psycopg2.extensions.connection],
    login: tuple[str, str],
    database: str,
    says: tuple[str, str],
) -> None:
    message, hint = says
    if (opens, database) == (connect_replication, "Nowhere"):
        login = ("reader", _SECRET)  # a role without REPLICATION is refused for that first
    with pytest.raises(SourceError) as raised:
        opens(guarded.url_of(database, user=login[0], password=login[1]))
    assert guarded.translated(message) in raised.value.message
    assert hint in str(raised.value.hint)
    assert "s3cret" not in str(raised.value)


def test_a_password_that_is_missing_is_told(guarded: Guarded) -> None:
    with pytest.raises(SourceError, match="no password supplied") as raised:
        connect(guarded.url_of("postgres", user="plain"))
    assert "Check user and password in DATABASE_URL" in str(raised.value)


def test_a_role_that_is_not_there_is_told_how_to_be_made(any_database: Database) -> None:
    server = any_database.server
    with PostgresProxy(server.port, translates=True) as proxy:
        url = server.url_of(any_database.name, user="Mr Nobody")
        for each in (url, proxy.url(url)):
            with pytest.raises(SourceError) as raised:
                connect(each)
            assert 'CREATE ROLE "Mr Nobody" LOGIN REPLICATION' in str(raised.value)


def test_a_role_without_replication_is_told_how_to_get_it(guarded: Guarded) -> None:
    url = guarded.url_of("postgres", user="plain", password=_SECRET)
    with pytest.raises(PermissionDeniedError) as raised:
        connect_replication(url)
    assert "ALTER ROLE plain REPLICATION;" in str(raised.value)
    with pytest.raises(PermissionDeniedError) as raised, contextlib.closing(connect(url)) as connection:
        _make_slot(connection, url)
    assert "ALTER ROLE plain REPLICATION;" in str(raised.value)


def test_no_free_sender_may_pass(guarded: Guarded) -> None:
    with contextlib.closing(connect_replication(guarded.url)), pytest.raises(SourceLostError) as raised:
        connect_replication(guarded.url)
    assert "ALTER SYSTEM SET max_wal_senders" in str(raised.value)


def test_no_free_connection_may_pass(guarded: Guarded) -> None:
    url = guarded.url_of("postgres", user="plain", password=_SECRET)
    with contextlib.ExitStack() as opened, pytest.raises(SourceLostError) as raised:
        _connect_many(opened, url)
    assert "ALTER SYSTEM SET max_connections" in str(raised.value)


def test_a_limit_of_the_role_may_pass_and_can_be_lifted(guarded: Guarded) -> None:
    url = guarded.url_of("postgres", user="single", password=_SECRET)
    with contextlib.closing(connect(url)), pytest.raises(SourceLostError) as raised:
        connect(url)
    assert "ALTER ROLE single CONNECTION LIMIT -1;" in str(raised.value)


def test_no_room_for_slots_says_how_to_make_it(guarded: Guarded) -> None:
    with pytest.raises(SourceError) as raised, contextlib.closing(connect(guarded.url)) as connection:
        _make_slot(connection, guarded.url)
    assert "ALTER SYSTEM SET max_replication_slots" in str(raised.value)


@pytest.mark.parametrize("server_class", [PostgresServer, DebianPostgresServer])
def test_wal_level_and_senders_that_are_off_say_how_to_turn_them_on(
    server_class: type[PostgresServer],
) -> None:
    with (
        server_class(settings={"wal_level": "replica", "max_wal_senders": "0"}) as server,
        PostgresProxy(server.port, translates=True) as proxy,
    ):
        for url in (server.url, proxy.url(server.url)):
            with pytest.raises(SourceError) as raised, contextlib.closing(connect(url)) as connection:
                _make_slot(connection, url)
            assert "ALTER SYSTEM SET wal_level = 'logical';" in str(raised.value)
            with pytest.raises(SourceError) as raised:
                connect_replication(url)
            assert "ALTER SYSTEM SET max_wal_senders" in str(raised.value)


@pytest.mark.parametrize("server_class", [PostgresServer, DebianPostgresServer])
def test_pg_hba_without_an_entry_gives_the_line_to_add(server_class: type[PostgresServer]) -> None:
    with server_class() as server, contextlib.closing(connect(server.url)) as connection:
        execute(connection, "CREATE ROLE reader LOGIN")
        (server.data_dir / "pg_hba.conf").write_text("host all postgres 127.0.0.1/32 trust\n")
        fetch(connection, "SELECT pg_reload_conf()")
        url = server.url_of("postgres", user="reader")
        with PostgresProxy(server.port, translates=True) as proxy:
            wait_until(lambda: _error_of(url), what="the new pg_hba.conf")
            for each in (url, proxy.url(url)):
                error = _error_of(each)
                assert isinstance(error, SourceError)
                assert "host postgres reader ADDRESS_OF_THE_LISTENER/32" in str(error)


def test_tls_that_the_server_does_not_speak_is_told(any_database: Database) -> None:
    with pytest.raises(SourceError) as raised:
        connect(f"{any_database.url}?sslmode=require")
    assert "ssl = on" in str(raised.value)


def test_tls_with_the_wrong_authority_or_host_is_told() -> None:
    with DebianPostgresServer() as server:  # the one out of the wheel speaks no TLS
        _turn_on_tls(server, host="db.example")
        url = server.url.replace("127.0.0.1", "db.example") + "?hostaddr=127.0.0.1&sslmode=verify-full"
        authority = f"&sslrootcert={server.home / 'ca.crt'}"
        with contextlib.closing(connect(url + authority)) as connection:
            assert fetch_value(connection, "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()") is True
        other_host = url.replace("db.example", "localhost")
        for bad in (
            f"{url}&sslrootcert=/nowhere/ca.crt",
            other_host + authority,
            f"{url}&sslrootcert=system",
        ):
            with pytest.raises(SourceError) as raised:
                connect(bad)
            assert "sslrootcert=/path/of/ca.crt" in str(raised.value), bad


def test_a_slot_in_use_is_another_listeners(any_database: Database) -> None:
    any_database.execute(
        "SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", f"taken_{any_database.name}"
    )
    any_database.execute("CREATE PUBLICATION nothing")
    with (
        contextlib.closing(connect_replication(any_database.url)) as first,
        contextlib.closing(connect_replication(any_database.url)) as second,
    ):
        _start(first, any_database)
        with pytest.raises(SlotInUseError) as raised:
            _start(second, any_database)
        assert "takes over" in str(raised.value)


def test_a_server_that_is_away_restarted_or_killed_may_come_back() -> None:
    with PostgresServer() as server:
        with contextlib.closing(connect(server.url)) as connection:
            server.restart()
            with pytest.raises(SourceLostError):
                fetch(connection, "SELECT 1")
            with pytest.raises(SourceLostError, match="closed"):
                fetch(connection, "SELECT 1")
        with contextlib.closing(connect(server.url)) as connection:
            server.kill()
            with pytest.raises(SourceLostError):
                fetch(connection, "SELECT 1")
        with pytest.raises(SourceLostError) as raised:
            connect(server.url)
        assert "Is PostgreSQL running there?" in str(raised.value)
    with pytest.raises(SourceLostError, match="could not translate host name"):
        connect("postgresql://no-such-host.invalid/name")


def test_a_session_that_an_administrator_ended_may_come_back(database: Database) -> None:
    with contextlib.closing(connect(database.url)) as connection:
        database.execute("SELECT pg_terminate_backend(%s)", connection.info.backend_pid)
        with pytest.raises(SourceLostError):
            fetch(connection, "SELECT 1")


def test_a_statement_that_is_wrong_is_nothing_to_retry(database: Database) -> None:
    with contextlib.closing(connect(database.url)) as connection, pytest.raises(SourceError, match="nowhere"):
        fetch(connection, "SELECT 1 FROM nowhere")


def _start(connection: psycopg2.extensions.connection, database: Database) -> None:
    options = {"proto_version": "1", "publication_names": "nothing"}
    with translated():
        connection.cursor().start_replication(  # type: ignore[attr-defined]
            slot_name=f"taken_{database.name}", options=options, decode=False
        )


def _make_slot(connection: psycopg2.extensions.connection, url: str) -> None:
    try:
        create_slot(connection, "x", "pgoutput")
    except CDCError as error:
        raise explain(error, lambda: connect(url), "x", plugin="pgoutput", streams=False) from error


def _connect_many(opened: contextlib.ExitStack, url: str) -> None:
    for _ in range(20):
        opened.enter_context(contextlib.closing(connect(url)))


def _error_of(url: str) -> Exception | None:
    try:
        connect(url).close()
    except (SourceError, SourceLostError) as error:
        return error
    return None


def _turn_on_tls(server: PostgresServer, *, host: str) -> None:
    write_certificates(server.home, host=host, owner=server._owner())
    server.settings |= {
        "ssl": "on",
        "ssl_cert_file": str(server.home / "server.crt"),
        "ssl_key_file": str(server.home / "server.key"),
    }
    server.restart()
