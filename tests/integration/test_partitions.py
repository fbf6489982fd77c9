"""Tables with partitions, as people have them."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from listener.postgres.client.connection import connect
from tests.support.postgres.findings import INSERT, UPDATE, WARNING, Findings, router_to
from tests.support.postgres.publications import listed, prepare, published

if TYPE_CHECKING:
    from tests.conftest import Database

EVENTS = "CREATE TABLE events (id int, year int, kind text, body text, PRIMARY KEY (id, year)) PARTITION BY LIST (year)"


def test_a_publication_made_by_hand_is_given_the_root_before_a_list_of_columns(
    any_database: Database,
) -> None:
    any_database.execute(EVENTS)
    any_database.execute("CREATE PUBLICATION ours FOR TABLE events")  # without publish_via_partition_root
    with closing(connect(any_database.url)) as connection:
        prepare(connection, router_to(("events", [INSERT], "kind")))
        assert published(connection) == {"events": listed(connection, "id", "year", "kind")}


def test_an_update_in_a_partition_that_came_later_passes_a_list_of_columns(any_database: Database) -> None:
    any_database.execute(EVENTS)
    with closing(connect(any_database.url)) as connection:
        prepare(connection, router_to(("events", [UPDATE], "kind")))
    any_database.execute("CREATE TABLE events_2026 PARTITION OF events FOR VALUES IN (2026)")
    any_database.execute("INSERT INTO events VALUES (1, 2026, 'new')")
    any_database.execute("UPDATE events SET kind = 'old'")


def test_a_partition_without_a_log_is_a_warning(any_database: Database) -> None:
    any_database.execute(EVENTS.replace(", PRIMARY KEY (id, year)", ""))
    any_database.execute("ALTER TABLE events REPLICA IDENTITY FULL")
    any_database.execute("CREATE UNLOGGED TABLE events_2024 PARTITION OF events FOR VALUES IN (2024)")
    any_database.execute(
        "CREATE FOREIGN DATA WRAPPER archive; CREATE SERVER archive FOREIGN DATA WRAPPER archive"
    )
    any_database.execute(
        "CREATE FOREIGN TABLE events_2025 PARTITION OF events FOR VALUES IN (2025) SERVER archive"
    )
    found = Findings(any_database.url, router_to(("events", [INSERT, UPDATE])))
    assert found.problems == []
    assert found.about("changes of public.events_2024, public.events_2025 are not logged").state is WARNING


def test_sql_to_paste_makes_a_server_notice_partitions(any_database: Database) -> None:
    """Versions 13 and 14; that the statement helps: `postgres_changes/test_partitions.py`."""
    any_database.execute(EVENTS)
    found = Findings(any_database.url, router_to(("events", [INSERT])))
    hints = [each.hint for each in found.all if each.what == "partitions"]
    sql = "ALTER PUBLICATION ours SET (publish_via_partition_root = true);"
    is_old = any_database.connection.info.server_version < 15_00_00
    assert [sql in (hint or "") for hint in hints] == ([True] if is_old else [])
