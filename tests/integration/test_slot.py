"""The replication slot on real servers: created, found, lost, in use."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from harness.embedded_servers import PostgresServer
from harness.machine_servers import DebianPostgresServer
from harness.waiting import wait_until
from listener.core.source import Saved, SourceError, SourceLostError
from listener.core.wakeup import Wakeup
from listener.postgres.client.connection import connect, connect_replication, execute, fetch_value, translated
from listener.postgres.client.errors import SlotInUseError
from listener.postgres.client.slot import (
    Slot,
    check_slot,
    create_slot,
    drop_slot,
    gap_of,
    open_transactions,
    read_slot,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from listener.postgres.client.connection import Connection
    from tests.conftest import Database


@pytest.fixture
def connection(any_database: Database) -> Iterator[Connection]:
    with contextlib.closing(connect(any_database.url)) as opened:
        yield opened


def _found(connection: Connection, name: str) -> Slot:
    slot = read_slot(connection, name)
    assert slot is not None
    return slot


def test_a_slot_that_was_made_is_found_with_all_the_server_knows(
    connection: Connection, any_database: Database
) -> None:
    name = any_database.name
    assert read_slot(connection, name) is None
    create_slot(connection, name, "pgoutput")
    any_database.execute("CREATE TABLE filler AS SELECT generate_series(1, 10000)")
    slot = _found(connection, name)
    assert (slot.kind, slot.plugin, slot.database, slot.active_pid) == ("logical", "pgoutput", name, None)
    assert slot.wal_status == "reserved"
    assert not slot.is_lost
    assert gap_of(slot) is None
    assert slot.retained_bytes is not None
    assert slot.unconfirmed_bytes is not None
    assert slot.retained_bytes >= slot.unconfirmed_bytes > 100_000
    check_slot(slot, plugin="pgoutput", database=name)
    drop_slot(connection, name)
    assert read_slot(connection, name) is None


@pytest.mark.parametrize(
    ("making", "message"),
    [
        ("SELECT pg_create_physical_replication_slot(%s)", "is physical"),
        (
            "SELECT pg_create_logical_replication_slot(%s, 'test_decoding')",
            "created for the plugin test_decoding",
        ),
    ],
)
def test_somebody_elses_slot_of_our_name_is_refused(
    connection: Connection, any_database: Database, making: str, message: str
) -> None:
    name = any_database.name
    any_database.execute(making, name)
    try:
        with pytest.raises(SourceError, match=message) as raised:
            check_slot(_found(connection, name), plugin="pgoutput", database=name)
        assert f"SELECT pg_drop_replication_slot('{name}');" in str(raised.value)
    finally:
        drop_slot(connection, name)


def test_a_slot_of_another_database_is_refused(connection: Connection, any_database: Database) -> None:
    create_slot(connection, any_database.name, "pgoutput")
    with pytest.raises(SourceError, match=f"belongs to the database {any_database.name}, not to elsewhere"):
        check_slot(_found(connection, any_database.name), plugin="pgoutput", database="elsewhere")


@pytest.mark.parametrize("server_class", [PostgresServer, DebianPostgresServer])
def test_a_slot_that_the_server_gave_up_is_a_gap_with_both_its_ends(
    server_class: type[PostgresServer],
) -> None:
    settings = {"max_slot_wal_keep_size": "1MB", "min_wal_size": "32MB", "max_wal_size": "32MB"}
    with server_class(settings=settings) as server, contextlib.closing(connect(server.url)) as connection:
        create_slot(connection, "ours", "pgoutput")
        before = _found(connection, "ours").confirmed_flush_lsn
        with connection.cursor() as cursor:
            for _ in range(4):
                cursor.execute("SELECT pg_switch_wal(), pg_logical_emit_message(false, 'x', 'y')")
            cursor.execute("CHECKPOINT")
        lost = _found(connection, "ours")
        assert lost.is_lost
        gap = gap_of(lost)
        assert gap is not None
        assert f"committed after {before}" in gap.message
        assert f"starts after {lost.current_lsn}" in gap.message
        assert "--accept-gap" in str(gap.hint)
        drop_slot(connection, "ours")


def test_a_slot_that_was_idle_for_too_long_is_a_gap_whose_hint_is_about_that() -> None:
    with (
        PostgresServer(settings={"max_slot_wal_keep_size": "-1"}) as server,
        contextlib.closing(connect(server.url)) as connection,
    ):
        execute(connection, "ALTER SYSTEM SET idle_replication_slot_timeout = 1")
        execute(connection, "SELECT pg_reload_conf()")
        create_slot(connection, "ours", "pgoutput")

        def is_lost() -> bool:
            execute(connection, "CHECKPOINT")
            return _found(connection, "ours").is_lost

        wait_until(is_lost, timeout=30, what="the server to give the slot up")
        lost = _found(connection, "ours")
        gap = gap_of(lost, Saved("0/10:8-7-6:0"))
        assert gap is not None
        assert (
            f"committed after 0/10:0 (the slot: {lost.confirmed_flush_lsn}) and not published" in gap.message
        )
        assert "idle_timeout" in gap.message
        hint = (gap.hint or "").partition("from now on: ")[2]
        for statement in hint.rstrip(";").split(";"):  # as psql does with what is pasted
            execute(connection, statement)
        wait_until(
            lambda: fetch_value(connection, "SHOW idle_replication_slot_timeout") == "0",
            what="the hint to work",
        )


@pytest.mark.parametrize(
    ("reason", "hint"),
    [
        (None, "max_slot_wal_keep_size = '100GB'; SELECT pg_reload_conf();"),
        ("wal_removed", "max_slot_wal_keep_size = '100GB'; SELECT pg_reload_conf();"),
        ("rows_removed", "hot_standby_feedback = on; SELECT pg_reload_conf();"),
        ("wal_level_insufficient", "wal_level = 'logical'"),
        ("of a later version", "--accept-gap"),
    ],
)
def test_each_reason_for_a_lost_slot_has_its_hint(
    connection: Connection, any_database: Database, reason: str | None, hint: str
) -> None:
    create_slot(connection, any_database.name, "pgoutput")
    slot = replace(_found(connection, any_database.name), wal_status="lost", invalidation_reason=reason)
    gap = gap_of(slot)
    assert gap is not None
    assert hint in (gap.hint or "")


def test_a_slot_waits_for_open_transactions_and_the_wait_can_be_ended(
    connection: Connection, any_database: Database
) -> None:
    any_database.execute("CREATE TABLE written (number int)")
    with contextlib.closing(any_database.connect()) as other:
        with other.cursor() as cursor:
            cursor.execute("INSERT INTO written VALUES (1)")
        assert open_transactions(connection) == [other.info.backend_pid]
        wakeup = Wakeup()
        ended = threading.Timer(0.5, wakeup.set)
        ended.start()
        with pytest.raises(SourceLostError, match="cancel"):
            create_slot(connection, any_database.name, "pgoutput", wakeup=wakeup)
        assert read_slot(connection, any_database.name) is None

        making = threading.Thread(target=create_slot, args=(connection, any_database.name, "pgoutput"))
        making.start()
        wait_until(
            lambda: any_database.fetch(
                "SELECT 1 FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'"
            ),
            what="the slot to wait for the transaction",
        )
        other.rollback()
    making.join()
    assert read_slot(connection, any_database.name) is not None


def test_a_slot_in_use_is_not_dropped(connection: Connection, any_database: Database) -> None:
    any_database.execute("CREATE PUBLICATION nothing")
    create_slot(connection, any_database.name, "pgoutput")
    with contextlib.closing(connect_replication(any_database.url)) as reader:
        with translated(), reader.cursor() as cursor:
            cursor.start_replication(
                slot_name=any_database.name, options={"proto_version": "1", "publication_names": "nothing"}
            )
        with pytest.raises(SlotInUseError):
            drop_slot(connection, any_database.name)
        assert _found(connection, any_database.name).active_pid == reader.info.backend_pid


def test_a_failover_slot_is_made_where_the_server_knows_them(any_database: Database) -> None:
    name = any_database.name
    with contextlib.closing(connect(any_database.url)) as connection:
        if connection.info.server_version >= 17_00_00:
            create_slot(connection, name, "pgoutput", failover=True)
            assert _found(connection, name).failover is True
        else:
            with pytest.raises(SourceError, match="17"):
                create_slot(connection, name, "pgoutput", failover=True)
            create_slot(connection, name, "pgoutput")
            assert _found(connection, name).failover is None
