"""What refusals mean, by SQLSTATE and routine, in no language."""

from __future__ import annotations

import pytest

from listener.core.source import SourceError, SourceLostError
from listener.postgres.client.errors import (
    NotAcceptingError,
    PermissionDeniedError,
    Refusal,
    TooManyConnectionsError,
    _parse,
    refused,
)

_PARAMETERS = {"user": "reader", "dbname": "helpdesk"}
_REPLICATION = {**_PARAMETERS, "replication": "database"}


@pytest.mark.parametrize(
    ("sqlstate", "routine", "parameters", "kind", "hint"),
    [
        ("28P01", "auth_failed", _PARAMETERS, SourceError, "ALTER ROLE reader PASSWORD"),
        ("28000", "auth_failed", _PARAMETERS, SourceError, "ALTER ROLE reader PASSWORD"),
        ("28000", "InitializeSessionUserId", _PARAMETERS, SourceError, "ALTER ROLE reader LOGIN;"),
        ("28000", "ClientAuthentication", _PARAMETERS, SourceError, "host helpdesk reader"),
        ("28000", None, _PARAMETERS, SourceError, "host helpdesk reader"),
        ("3D000", "InitPostgres", _PARAMETERS, SourceError, "CREATE DATABASE helpdesk;"),
        ("55000", "CheckMyDatabase", _PARAMETERS, SourceError, "ALLOW_CONNECTIONS true;"),
        ("42501", "CheckMyDatabase", _REPLICATION, PermissionDeniedError, "GRANT CONNECT ON DATABASE"),
        ("42501", "InitPostgres", _REPLICATION, PermissionDeniedError, "ALTER ROLE reader REPLICATION;"),
        ("53300", "InitProcess", _REPLICATION, TooManyConnectionsError, "max_wal_senders"),
        ("53300", "InitializeSessionUserId", _REPLICATION, TooManyConnectionsError, "CONNECTION LIMIT -1"),
        ("53300", "ProcessStartupPacket", _PARAMETERS, TooManyConnectionsError, "max_connections"),
        ("57P03", "ProcessStartupPacket", _PARAMETERS, NotAcceptingError, "starting up or shutting down"),
        ("58030", None, _PARAMETERS, SourceLostError, ""),
        ("0A000", None, _PARAMETERS, SourceError, ""),
        ("42704", None, _PARAMETERS, SourceError, "options"),
        (None, None, _PARAMETERS, SourceLostError, "Is PostgreSQL running there?"),
        (None, None, {**_PARAMETERS, "target_session_attrs": "primary"}, SourceLostError, "Name the primary"),
    ],
)
def test_a_refusal_is_known_without_its_words(
    sqlstate: str | None, routine: str | None, parameters: dict[str, str], kind: type, hint: str
) -> None:
    error = refused("Worte", Refusal("Worte", sqlstate, routine), parameters)
    assert type(error) is kind
    assert "Worte" in str(error)
    assert hint in (error.hint or "")


def test_a_server_that_lets_the_second_try_in_may_be_tried_again() -> None:
    assert type(refused("gone", None, _PARAMETERS)) is SourceLostError


def test_a_pooler_s_words_are_never_translated() -> None:
    told = Refusal("unsupported startup parameter: replication", "08P01")
    assert "connection pooler" in str(refused("no", told, _REPLICATION))
    other = Refusal("pgbouncer cannot connect to server", "08P01")
    assert type(refused("no", other, _PARAMETERS)) is SourceLostError


def test_of_several_hosts_the_last_one_s_refusal_counts() -> None:
    text = (
        'connection to server at "a", port 1 failed: FATAL:  57P03: das Datenbanksystem startet\n'
        "LOCATION:  ProcessStartupPacket, postmaster.c:1\n"
        'connection to server at "b", port 2 failed: SCHWERER FEHLER:  28P01: Passwort falsch\n'
        "DETAIL:  Zeile 1:  ABCDE gehört dazu\n"
        "ORT:  auth_failed, auth.c:317\n"
    )
    assert _parse(text, needs_password=False) == Refusal("Passwort falsch", "28P01", "auth_failed")
