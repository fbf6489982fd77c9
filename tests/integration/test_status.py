"""What the status says of a real slot in each of its states."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from harness.embedded_servers import PostgresServer
from listener.core.source import SourceLostError
from listener.core.source_status import Reader, SourceStatus
from listener.daemon.status import SavedPosition, Status
from listener.postgres.client.connection import connect, connect_replication
from listener.postgres.client.slot import create_slot
from listener.postgres.status import read_postgres_status

if TYPE_CHECKING:
    from tests.conftest import Database


def _read(database: Database, checkpoint: str | None = None) -> SourceStatus:
    return read_postgres_status(database.url, database.name, checkpoint)


def test_a_slot_says_who_reads_and_how_much_is_left(any_database: Database) -> None:
    never = _read(any_database)
    assert (never.reader, never.lag_bytes) == (Reader.NEVER_STARTED, None)
    with closing(connect(any_database.url)) as connection:
        create_slot(connection, any_database.name, "pgoutput")
    any_database.execute(
        "CREATE PUBLICATION nothing; CREATE TABLE filler AS SELECT generate_series(1, 10000)"
    )
    nobody = _read(any_database)
    assert nobody.reader is Reader.NONE
    assert nobody.lag_bytes is not None
    assert nobody.lag_bytes > 100_000
    published = _read(any_database, f"{nobody.current}:7")
    assert published.lag_bytes is not None
    assert published.lag_bytes < nobody.lag_bytes
    with closing(connect_replication(any_database.url)) as reader:
        with reader.cursor() as cursor:
            options = {"proto_version": "1", "publication_names": "nothing"}
            cursor.start_replication(slot_name=any_database.name, options=options, decode=False)
        running = _read(any_database)
        assert running.reader is Reader.RUNNING
        assert str(reader.info.backend_pid) in running.detail


def test_a_lost_slot_says_so_and_one_that_is_about_to_be_lost_warns() -> None:
    settings = {"max_slot_wal_keep_size": "64MB", "min_wal_size": "32MB", "max_wal_size": "32MB"}
    with PostgresServer(settings=settings) as server, closing(connect(server.url)) as connection:
        create_slot(connection, "ours", "pgoutput")
        with connection.cursor() as cursor:
            for _ in range(3):
                cursor.execute("SELECT pg_switch_wal(), pg_logical_emit_message(false, 'x', 'y')")
            close = _status(read_postgres_status(server.url, "ours", None))
            assert "log_soon_dropped" in close.alarm_codes
            for _ in range(6):
                cursor.execute("SELECT pg_switch_wal(), pg_logical_emit_message(false, 'x', 'y')")
            cursor.execute("CHECKPOINT")
        lost = _status(read_postgres_status(server.url, "ours", None))
    assert lost.source.reader is Reader.LOST
    assert not lost.is_healthy
    assert next(lost.alarms).startswith("no listener reads: slot ours is lost")


def test_a_server_that_is_away_is_an_error() -> None:
    with pytest.raises(SourceLostError):
        read_postgres_status("postgresql://127.0.0.1:1/nowhere", "ours", None)


def test_the_lag_in_seconds_is_the_age_of_what_was_published_last() -> None:
    an_hour_ago = datetime.now(UTC) - timedelta(hours=1)
    behind = _status(_source(lag_bytes=5), SavedPosition("0/1:0", an_hour_ago, 0))
    assert behind.lag_seconds == pytest.approx(3600, abs=5)
    assert _status(_source(lag_bytes=0), SavedPosition("0/1:0", an_hour_ago, 0)).lag_seconds == 0
    assert _status(_source(lag_bytes=5)).lag_seconds is None


def test_alarms_name_what_a_person_should_look_at() -> None:
    alarmed = _status(
        _source(lag_bytes=5, retained_bytes=2000, unseen=("public.roles",)), SavedPosition("0/1:0", None, 3)
    )
    told = "\n".join(alarmed.alarms)
    for word in ("2,000 bytes", "CDC_LAG_ALARM", "public.roles", "3 changes are parked"):
        assert word in told
    assert list(alarmed.alarm_codes) == ["lag", "tables_unseen", "parked"]
    assert not alarmed.is_healthy
    assert list(_status(_source(lag_bytes=5)).alarms) == []


def _source(
    *, lag_bytes: int, retained_bytes: int = 0, unseen: tuple[str, ...] = (), reader: Reader = Reader.RUNNING
) -> SourceStatus:
    return SourceStatus(
        reader=reader,
        detail="",
        current="0/2",
        acknowledged="0/1",
        lag_bytes=lag_bytes,
        retained_bytes=retained_bytes,
        safe_bytes=None,
        unseen=unseen,
    )


def _status(source: SourceStatus, saved: SavedPosition | None = None) -> Status:
    return Status(name="ours", source=source, saved=saved or SavedPosition(None, None, 0), lag_alarm=1000)
