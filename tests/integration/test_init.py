"""`python -m listener init` writes a file of routes that imports, passes lint, and that `check` accepts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harness.waiting import at_most

if TYPE_CHECKING:
    from tests.conftest import Broker, Database
    from tests.support.mysql.source import MySQLDatabase

_CHECKOUT = Path(__file__).resolve().parents[2]


class Project:
    """A directory without routes, on a database of its own."""

    def __init__(self, home: Path, url: str, broker: Broker, name: str) -> None:
        self.home = home
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("CDC_", "CELERY_"))}
        self._environment = {
            **kept,
            "PYTHONPATH": str(_CHECKOUT),
            "DATABASE_URL": url,
            "CELERY_BROKER_URL": broker.url,
            "CACHE_URL": broker.cache_url,
            "CDC_NAME": name,
        }

    def runs(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=self.home,
            env={**self._environment, **environment},
            capture_output=True,
            text=True,
            timeout=at_most(60),
            check=False,
        )
        assert "Traceback" not in done.stderr
        return done

    def asks(self, *command: str, **environment: str) -> Any:
        return json.loads(self.runs("listener", *command, "--json", **environment).stdout)

    def assert_good(self, file: Path) -> None:
        """Look at the file as a linter, a formatter and `check` do."""
        for command in (["check", "--isolated"], ["format", "--isolated", "--check", "--diff"]):
            done = self.runs("ruff", *command, "--no-cache", file.name)
            assert done.returncode == 0, done.stdout + file.read_text()
        checked = self.asks("check", CDC_ROUTES=f"{file.stem}:setup_router")
        problems = [each for each in checked["findings"] if each["state"] == "problem"]
        assert problems == []
        assert not [each for each in checked["findings"] if each["code"] in {"old_values", "table_missing"}]


def test_the_file_has_the_tables_of_postgresql_with_what_is_to_know_of_each(
    database: Database, broker: Broker, tmp_path: Path
) -> None:
    database.execute(
        """
        CREATE TABLE orders (id int PRIMARY KEY, status text, "weird ""name" text);
        CREATE TABLE "Order Items[1]" (order_id int, line int, PRIMARY KEY (line, order_id));
        CREATE TABLE whole (id int PRIMARY KEY, email text); ALTER TABLE whole REPLICA IDENTITY FULL;
        CREATE TABLE by_index (code text NOT NULL UNIQUE, note text);
        ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_code_key;
        CREATE TABLE keyless (note text);
        CREATE TABLE closed (id int PRIMARY KEY); ALTER TABLE closed REPLICA IDENTITY NOTHING;
        CREATE UNLOGGED TABLE scratch (id int PRIMARY KEY);
        CREATE TABLE django_migrations (id int PRIMARY KEY);
        CREATE VIEW seen AS SELECT * FROM orders;
        CREATE TABLE parted (id int, day date, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
        CREATE TABLE parted_all PARTITION OF parted DEFAULT;
        CREATE TABLE long_name_of_a_table_with_many_columns (
            first_column_of_the_key int, second_column_of_the_key int, third_column_of_the_key int,
            PRIMARY KEY (first_column_of_the_key, second_column_of_the_key, third_column_of_the_key));
        CREATE SCHEMA billing; CREATE TABLE billing.invoices (number text PRIMARY KEY)
        """
    )
    project = Project(tmp_path, database.url, broker, database.name)
    done = project.runs("listener", "init")
    file = tmp_path / "cdc_routes.py"
    assert (done.returncode, done.stderr) == (0, "")
    assert "cdc_routes.py has 7 tables." in done.stdout
    assert "export CDC_ROUTES=cdc_routes:setup_router" in done.stdout
    text = file.read_text()
    assert '    "orders": ["id"],' in text
    assert '"Order Items[[]1]": ["line", "order_id"],' in text
    assert (
        'REPLICA IDENTITY FULL: an UPDATE and a DELETE have the whole old row.\n    "whole": ["id"],' in text
    )
    assert 'unique index, not the primary key.\n    "by_index": ["code"],' in text
    assert '# "keyless": no primary key' in text
    assert "ALTER TABLE public.keyless REPLICA IDENTITY FULL;" in " ".join(text.replace("#", "").split())
    assert '("billing", "invoices"): ["number"],' in text
    project.assert_good(file)
    routes = project.asks("routes", CDC_ROUTES="cdc_routes:setup_router")
    assert {each["table"] for each in routes} == {
        "public.orders",
        "public.Order Items[[]1]",
        "public.whole",
        "public.by_index",
        "public.parted",
        "public.long_name_of_a_table_with_many_columns",
        "billing.invoices",
    }


def test_no_file_is_overwritten(database: Database, broker: Broker, tmp_path: Path) -> None:
    database.execute("CREATE TABLE orders (id int PRIMARY KEY)")
    project = Project(tmp_path, database.url, broker, database.name)
    (tmp_path / "cdc_routes.py").write_text("mine = 1\n")
    assert project.asks("init") == {
        "file": str(tmp_path / "cdc_routes_2.py"),
        "tables": ["public.orders"],
        "left_out": {},
        "next": [
            "export CDC_ROUTES=cdc_routes_2:setup_router",
            "python -m listener check",
            "python -m listener run",
        ],
    }
    assert (tmp_path / "cdc_routes.py").read_text() == "mine = 1\n"
    project.assert_good(tmp_path / "cdc_routes_2.py")


def test_an_empty_database_is_told(database: Database, broker: Broker, tmp_path: Path) -> None:
    project = Project(tmp_path, database.url, broker, database.name)
    assert project.asks("init")["code"] == "first_routes"
    database.execute("CREATE TABLE keyless (note text)")
    assert "keyless is left out: no primary key" in project.runs("listener", "init").stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fixture", ["mariadb_database", "mysql_database"])
def test_the_file_has_the_tables_of_mysql_and_mariadb(
    request: pytest.FixtureRequest, fixture: str, broker: Broker, tmp_path: Path
) -> None:
    database: MySQLDatabase = request.getfixturevalue(fixture)
    database.execute("CREATE TABLE orders (id int PRIMARY KEY, status text)")
    database.execute("CREATE TABLE items (line int, order_id int, PRIMARY KEY (order_id, line))")
    database.execute("CREATE TABLE keyless (note text)")
    database.execute("CREATE VIEW seen AS SELECT * FROM orders")
    project = Project(tmp_path, database.url, broker, database.name)
    found = project.asks("init")
    assert found["tables"] == [f"{database.name}.items", f"{database.name}.orders"]
    assert list(found["left_out"]) == [f"{database.name}.keyless"]
    text = (tmp_path / "cdc_routes.py").read_text()
    assert '    "items": ["order_id", "line"],' in text
    assert f'def setup_router(schema: str = "{database.name}")' in text
    project.assert_good(tmp_path / "cdc_routes.py")
