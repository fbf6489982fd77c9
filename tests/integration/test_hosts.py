"""What `check` says on managed hosts: on local servers that are set to look like them.

Nothing here has run on the hosts themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg2
import pytest

from harness.embedded_servers import PostgresServer
from listener.core.source import SourceError
from listener.postgres.client.connection import connect
from listener.postgres.client.diagnosis import explained
from listener.postgres.client.slot import create_slot
from tests.support.postgres.findings import UPDATE, Findings, router_to

_ROLES = {
    "rds_superuser": "Amazon RDS or Aurora",
    "cloudsqlsuperuser": "Google Cloud SQL",
    "azure_pg_admin": "Azure Database for PostgreSQL",
    "neon_superuser": "Neon",
    "supabase_admin": "Supabase",
}
_WAL_LEVEL = {
    "rds_superuser": "rds.logical_replication = 1 in the DB parameter group (Aurora: in the DB cluster parameter "
    "group); then reboot",
    "cloudsqlsuperuser": "the database flag cloudsql.logical_decoding = on of the instance, which restarts",
    "azure_pg_admin": "the server parameter wal_level = logical in the portal; then restart the server",
    "neon_superuser": "enable Logical Replication in the settings of the project; this restarts all computes, and "
    "cannot be undone",
    "supabase_admin": "supabase --experimental --project-ref REF postgres-config update --config wal_level=logical",
}
_REPLICATION = {
    "rds_superuser": 'GRANT rds_replication TO "my listener";',
    "cloudsqlsuperuser": 'ALTER USER "my listener" WITH REPLICATION;',
    "azure_pg_admin": 'ALTER ROLE "my listener" WITH REPLICATION;',
    "neon_superuser": "Create the role in Neon's console, CLI or API",
    "supabase_admin": 'ALTER ROLE "my listener" REPLICATION;   as postgres',
}
_PAGES = Path(__file__).resolve().parents[2] / "docs" / "hosts"
_PAGE = {
    "rds_superuser": "rds-aurora.md",
    "cloudsqlsuperuser": "cloud-sql.md",
    "azure_pg_admin": "azure.md",
    "neon_superuser": "neon.md",
    "supabase_admin": "supabase.md",
}


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """A server that is not prepared, with a role that is no superuser."""
    settings = {"wal_level": "replica", "max_wal_senders": "0", "max_replication_slots": "0"}
    with PostgresServer(settings=settings) as started:
        _run(started.url, 'CREATE ROLE "my listener" LOGIN', "CREATE TABLE t (id int PRIMARY KEY)")
        yield started


@pytest.fixture(params=_ROLES)
def role(request: pytest.FixtureRequest, server: PostgresServer) -> Iterator[str]:
    """The role by which a host is known; the server has it."""
    _run(server.url, f"CREATE ROLE {request.param}")
    yield request.param
    _run(server.url, f"DROP ROLE {request.param}")


def _run(url: str, *statements: str) -> None:
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        for statement in statements:
            cursor.execute(statement)


def test_on_a_host_no_hint_asks_for_what_only_a_superuser_can_do(server: PostgresServer, role: str) -> None:
    found = Findings(server.url_of("postgres", user="my listener"), router_to(("t", UPDATE)))
    assert found["host"].found == _ROLES[role]
    assert found["wal_level"].hint == _WAL_LEVEL[role]
    assert found["REPLICATION"].hint.startswith(_REPLICATION[role])
    assert "max_replication_slots" in found["max_replication_slots"].hint
    assert [each.hint for each in found.all if "ALTER SYSTEM" in each.hint or "(on Amazon" in each.hint] == []


def test_the_listener_itself_has_the_same_hint(server: PostgresServer, role: str) -> None:
    with (
        pytest.raises(SourceError) as caught,
        closing(connect(server.url)) as connection,
        explained(lambda: connect(server.url), "ours", plugin="pgoutput"),
    ):
        create_slot(connection, "ours", "pgoutput")
    assert (caught.value.code, caught.value.hint) == ("wal_level", _WAL_LEVEL[role])


def test_the_page_of_a_host_quotes_what_check_says(server: PostgresServer, role: str) -> None:
    page = (_PAGES / _PAGE[role]).read_text()
    found = Findings(server.url_of("postgres", user="my listener"))
    replication = found["REPLICATION"].hint.replace('"my listener"', "cdc")
    assert f"ok       host                    {found['host'].found}\n" in page
    assert f"REPLICATION: cdc does not have it\n  {replication}\n" in page
    if role != "supabase_admin":  # there it is logical from the beginning
        assert f"wal_level: replica\n  {found['wal_level'].hint}\n" in page


def test_elsewhere_the_hints_are_sql(server: PostgresServer) -> None:
    found = Findings(server.url_of("postgres", user="my listener"))
    assert [each.what for each in found.all if each.what == "host"] == []
    assert found["wal_level"].hint.startswith("ALTER SYSTEM SET wal_level = 'logical';")
    assert found["REPLICATION"].hint.startswith('ALTER ROLE "my listener" REPLICATION;')
