"""What refusals mean, by SQLSTATE and routine, in any language; and the codes of errors and findings."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from listener import postgres
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
def test_a_refusal_is_recognized_without_its_message(
    sqlstate: str | None, routine: str | None, parameters: dict[str, str], kind: type, hint: str
) -> None:
    error = refused("Worte", Refusal("Worte", sqlstate, routine), parameters)
    assert type(error) is kind
    assert "Worte" in str(error)
    assert hint in (error.hint or "")


@pytest.mark.parametrize(
    ("sqlstate", "routine", "code"),
    [
        ("28P01", "auth_failed", "authentication"),
        ("28000", "auth_failed", "authentication"),
        ("28000", "InitializeSessionUserId", "login"),
        ("28000", "ClientAuthentication", "pg_hba"),
        ("3D000", "InitPostgres", "database_missing"),
        ("55000", "CheckMyDatabase", "database_closed"),
        ("42501", "CheckMyDatabase", "permission_denied"),
        ("42501", "InitPostgres", "replication_role"),
        ("53300", "InitProcess", "wal_senders"),
        ("53300", "InitializeSessionUserId", "too_many_connections"),
        ("57P03", "ProcessStartupPacket", "not_accepting"),
        ("58030", None, "source_lost"),
        ("0A000", None, "source"),
        ("42704", None, "connection_options"),
        (None, None, "unreachable"),
    ],
)
def test_a_refusal_has_a_code(sqlstate: str | None, routine: str | None, code: str) -> None:
    assert refused("Worte", Refusal("Worte", sqlstate, routine), _REPLICATION).code == code


def test_a_server_that_accepts_the_second_attempt_is_retried() -> None:
    assert type(refused("gone", None, _PARAMETERS)) is SourceLostError


def test_a_pooler_is_recognized_by_its_english_message() -> None:
    message = Refusal("unsupported startup parameter: replication", "08P01")
    assert "connection pooler" in str(refused("no", message, _REPLICATION))
    other = Refusal("pgbouncer cannot connect to server", "08P01")
    assert type(refused("no", other, _PARAMETERS)) is SourceLostError


def test_the_refusal_of_the_last_of_several_hosts_counts() -> None:
    text = (
        'connection to server at "a", port 1 failed: FATAL:  57P03: das Datenbanksystem startet\n'
        "LOCATION:  ProcessStartupPacket, postmaster.c:1\n"
        'connection to server at "b", port 2 failed: SCHWERER FEHLER:  28P01: Passwort falsch\n'
        "DETAIL:  Zeile 1:  ABCDE gehört dazu\n"
        "ORT:  auth_failed, auth.c:317\n"
    )
    assert _parse(text, needs_password=False) == Refusal("Passwort falsch", "28P01", "auth_failed")


# Codes are for programs: once given, they stay. Those of whole classes are in test_codes.
_CODES = """
backfill_no_key backfill_no_right backfill_no_table backfill_partition backfill_unsupported
backfill_where
authentication column_list column_missing connection connection_options database_closed database_missing database_url
generated_column host idle_slot_timeout log_gone log_restored login no_answer old_values partition partition_identity
partitioned_table partitions_overlooked pg_hba plugin pooler publication publication_gone replica_identity
replication_role replication_slots rows_missing slot slot_failover slot_gone slot_lag slot_lost slot_moved standby
stuck_transaction table table_missing table_not_logged table_renamed tls undecodable unreachable version virtual_column
wal_level wal_retention wal_senders
not_published watch_too_slow
"""


def _texts(node: ast.expr | None) -> set[str]:
    if isinstance(node, ast.IfExp):
        return _texts(node.body) | _texts(node.orelse)
    return {node.value} if isinstance(node, ast.Constant) and isinstance(node.value, str) else set()


def _names(target: ast.expr) -> list[str]:
    targets = target.elts if isinstance(target, ast.Tuple) else [target]
    return [each.id if isinstance(each, ast.Name) else "" for each in targets]


def _codes_in(module: ast.Module) -> set[str]:
    """Return the codes in `code=`, in an assignment to `code`, and in the calls that take one by its place."""
    found = set[str]()
    places = {"_Meaning": 2, "_problem": 1, "_warning": 1}
    for node in ast.walk(module):
        if isinstance(node, ast.Call):
            found |= {code for each in node.keywords if each.arg == "code" for code in _texts(each.value)}
            at = places.get(node.func.id) if isinstance(node.func, ast.Name) else None
            found |= _texts(node.args[at]) if at is not None and at < len(node.args) else set()
        elif isinstance(node, ast.Assign) and "code" in (names := _names(node.targets[0])):
            values = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
            found |= _texts(values[names.index("code")])
    return found


def test_no_code_of_a_finding_or_error_was_taken_away_or_changed() -> None:
    room = Path(postgres.__file__).parent
    found = [_codes_in(ast.parse(path.read_text())) for path in room.rglob("*.py")]
    assert set[str]().union(*found) == set(_CODES.split())


def test_each_finding_has_a_code() -> None:
    room = Path(postgres.__file__).parent
    calls = [node for path in room.rglob("*.py") for node in ast.walk(ast.parse(path.read_text()))]
    for call in calls:
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "Finding":
            assert "code" in {each.arg for each in call.keywords}, ast.unparse(call)
