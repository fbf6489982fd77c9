"""What `check` says of the variables of MySQL on a managed host, where SET PERSIST is not allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from listener.mysql.check import find_in_server
from listener.mysql.client.server import Host, Server

_PAGES = Path(__file__).resolve().parents[2] / "docs" / "hosts"
_UNPREPARED = {
    "version_comment": "",
    "server_id": "1",
    "server_uuid": "u",
    "log_bin": "OFF",
    "binlog_format": "MIXED",
    "binlog_row_metadata": "MINIMAL",
    "binlog_row_image": "MINIMAL",
    "gtid_mode": "OFF",
    "binlog_expire_logs_seconds": "3600",
}
_AURORA = Server(variables={**_UNPREPARED, "version": "8.0.39", "aurora_version": "3.08.2"})
_RDS = Server(variables={**_UNPREPARED, "version": "8.0.40", "basedir": "/rdsdbbin/mysql-8.0.40.R2/"})
_CLOUD_SQL = Server(variables={**_UNPREPARED, "version": "8.0.31-google"})
_ELSEWHERE = Server(variables={**_UNPREPARED, "version": "8.0.40", "basedir": "/usr/"})


@pytest.mark.parametrize(
    ("server", "host"),
    [(_AURORA, Host.AMAZON), (_RDS, Host.AMAZON), (_CLOUD_SQL, Host.GOOGLE), (_ELSEWHERE, None)],
)
def test_a_host_is_known_by_its_variables(server: Server, host: Host | None) -> None:
    assert server.host is host


@pytest.mark.parametrize("server", [_AURORA, _RDS, _CLOUD_SQL])
def test_on_a_host_no_hint_asks_for_what_only_its_owner_can_do(server: Server) -> None:
    hints = {each.code: each.hint for each in find_in_server(server)}
    assert [hint for hint in hints.values() if "SET " in hint or "server's configuration" in hint] == []
    place = "parameter group" if server.host is Host.AMAZON else "the database flag"
    for name in ("binlog_format", "binlog_row_metadata", "binlog_row_image", "gtids"):
        assert place in hints[name]


def test_amazons_own_retention_is_told_and_not_the_servers() -> None:
    (found,) = [each for each in find_in_server(_AURORA) if each.code == "log_retention"]
    assert "binlog retention hours" in found.found
    (found,) = [each for each in find_in_server(_CLOUD_SQL) if each.code == "log_retention"]
    assert found.hint == "the database flag binlog_expire_logs_seconds = 604800 of the instance"


@pytest.mark.parametrize(("server", "page"), [(_AURORA, "rds-aurora.md"), (_CLOUD_SQL, "cloud-sql.md")])
def test_the_page_of_a_host_quotes_what_check_says(server: Server, page: str) -> None:
    text = (_PAGES / page).read_text()
    for each in find_in_server(server):
        if each.code in {"log_bin", "binlog_row_metadata"}:
            assert f"{each.what}: {each.found}\n  {each.hint}\n" in text


def test_elsewhere_the_hints_are_sql() -> None:
    hints = {each.code: each.hint for each in find_in_server(_ELSEWHERE)}
    assert hints["binlog_format"] == "SET PERSIST binlog_format = ROW;"
    assert hints["gtids"].startswith("SET PERSIST enforce_gtid_consistency = ON;\n")
