"""The fixture `cdc`: a project's own test run tells what its SQL fires, on a real server."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING

import psycopg2
import pytest

from harness.embedded_servers import PostgresServer
from listener.router import BinlogRouter
from listener.testing import Recorder, RecordingError

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Database

_TASKS = """
from celery import Celery
from cdc_tasks import DELETE, INSERT, UPDATE, became, on_change

app = Celery("shop", broker="memory://")

@on_change("orders", UPDATE, INSERT, when=became("status", "paid"), args=["id"])
@app.task(name="shop.confirm")
def confirm(order_id): ...

@on_change("notes", INSERT, DELETE, kwargs={"note": "id", "text": "text"})
@app.task(name="shop.index")
def index(note, text): ...

@on_change("orders", INSERT, args=lambda change: [1, 2, 3])
@app.task(name="shop.loose", typing=False)
def loose(order_id): ...
"""

_CONFTEST = """
import psycopg2, pytest
from contextlib import closing
from shop import app

@pytest.fixture
def cdc_app():
    return app

@pytest.fixture(scope="session", autouse=True)
def schema(cdc_database_url):
    with closing(psycopg2.connect(cdc_database_url)) as session, session, session.cursor() as cursor:
        cursor.execute(
            "DROP TABLE IF EXISTS orders, notes;"
            "CREATE TABLE orders (id int PRIMARY KEY, status text);"
            "ALTER TABLE orders REPLICA IDENTITY FULL;"
            "CREATE TABLE notes (id int PRIMARY KEY, text text)"
        )
"""

_TESTS = """
import pytest
from shop import confirm

def test_paid(cdc):
    cdc.execute("INSERT INTO orders VALUES (%s, 'new'), (8, 'new')", 7)
    cdc.clear()
    cdc.execute("UPDATE orders SET status = 'paid' WHERE id = 7")
    cdc.assert_fires(confirm, args=[7])
    (fired,) = cdc.fired()
    assert (fired.task, fired.args, fired.table, fired.event) == ("shop.confirm", [7], "public.orders", "update")
    cdc.clear()
    cdc.execute("UPDATE orders SET status = 'paid' WHERE id = 7")
    cdc.assert_fires_nothing()

def test_note(cdc):
    cdc.execute("INSERT INTO notes VALUES (1, 'a')")
    cdc.assert_fires("shop.index", kwargs={"note": 1, "text": "a"}, old_values=False)

def test_says_unknown(cdc):
    cdc.assert_fires("shop.confrim")

def test_says_nothing_fired(cdc):
    cdc.assert_fires("shop.confirm")

def test_says_old_values(cdc):
    cdc.execute("INSERT INTO notes VALUES (2, 'b')")
    cdc.assert_fires("shop.index")

def test_says_parked(cdc):
    cdc.execute("DELETE FROM notes WHERE id = 1")
    cdc.assert_fires("shop.index", times=0, old_values=False)
    cdc.execute("INSERT INTO notes VALUES (3, 'c')")
    cdc.assert_fires("shop.index", old_values=False)

def test_says_arguments(cdc):
    cdc.execute("INSERT INTO orders VALUES (9, 'new')")
    cdc.assert_fires("shop.loose")
    import shop
    shop.loose.typing = True
    cdc.assert_fires("shop.loose")
"""


def _run(home: Path, **environment: str) -> str:
    (home / "shop.py").write_text(_TASKS)
    (home / "conftest.py").write_text(_CONFTEST)
    (home / "test_shop.py").write_text(_TESTS)
    plugins = ["-p", "no:cacheprovider"]  # ours is found as an installed one
    given = {name: value for name, value in os.environ.items() if not name.startswith(("CDC_", "PYTEST_"))}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *plugins, "-q", "test_shop.py"],
        cwd=home, env={**given, **environment}, check=False, capture_output=True, text=True,
    )  # fmt: skip
    return done.stdout + done.stderr


def test_a_projects_tests_tell_what_its_sql_fires_and_what_is_wrong(
    database: Database, tmp_path: Path
) -> None:
    output = _run(tmp_path, CDC_TEST_DATABASE_URL=database.url)
    failed = {line.split("::")[1].split()[0] for line in output.splitlines() if line.startswith("FAILED")}
    wrong = ("unknown", "nothing_fired", "old_values", "parked", "arguments")
    assert failed == {f"test_says_{what}" for what in wrong}, output
    assert "The app shop has no task shop.confrim. Did you mean shop.confirm?" in output
    assert "What was committed fires shop.confirm 0 times, not 1. Nothing fired" in output
    assert "a DELETE does not have text, only id" in output
    assert "ALTER TABLE" in output
    assert "parks a change" in output
    assert "did not send text of public.notes with this DELETE" in output
    assert "shop.loose(order_id) does not take shop.loose(1, 2, 3): too many positional arguments" in output
    slots = "SELECT count(*) FROM pg_replication_slots WHERE database = %s"
    assert database.fetch(slots, database.name) == [(0,)]
    assert database.fetch("SELECT count(*) FROM pg_publication") == [(0,)]


def test_without_a_url_the_server_of_the_wheel_is_used_and_ended(tmp_path: Path) -> None:
    output = _run(tmp_path)
    assert "5 failed, 2 passed" in output, output


def test_a_server_that_cannot_be_recorded_says_what_to_set() -> None:
    with PostgresServer(settings={"wal_level": "replica"}) as server:
        with pytest.raises(
            RecordingError, match=r"wal_level of the test database's server is replica"
        ) as caught:
            Recorder(server.url, BinlogRouter())
        assert "ALTER SYSTEM SET wal_level = logical" in str(caught.value)


def test_a_role_that_may_not_read_the_log_and_an_open_transaction_are_told(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.execute(f"CREATE ROLE plain_{database.name} LOGIN")
    with pytest.raises(RecordingError, match="may not read the log"):
        Recorder(database.server.url_of(database.name, user=f"plain_{database.name}"), BinlogRouter())
    database.execute(f"DROP ROLE plain_{database.name}")
    monkeypatch.setattr("listener.testing._PATIENCE", "1s")
    with closing(psycopg2.connect(database.url)) as other, other.cursor() as cursor:
        cursor.execute("CREATE TABLE t (id int)")  # and no commit
        with pytest.raises(RecordingError, match="has written and is still open"):
            Recorder(database.url, BinlogRouter())


def test_pytest_loads_nothing_of_it_in_projects_that_do_not_use_it() -> None:
    code = "import pytest, sys; had = set(sys.modules); import cdc_tasks.pytest_plugin; print(*set(sys.modules) - had)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert set(loaded.split()) == {"cdc_tasks", "cdc_tasks.pytest_plugin"}
