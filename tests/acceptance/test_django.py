"""A project of Django's: its migrations run while the listener works; its commands, checks and tests."""

from __future__ import annotations

import json
import re
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis

from cdc_tasks.routing.enqueued import CREATE_MARKS
from harness.embedded_servers import PostgresServer, ValkeyServer
from harness.given_mysql import MariaDBServer
from harness.waiting import wait_until
from tests.conftest import fresh_database, fresh_mysql_database
from tests.support.django_shop import Project, Writer, connect, insert_into, sent_to, unlike
from tests.support.wheel import build, environment_with

if TYPE_CHECKING:
    from collections.abc import Iterator

_PAGE = (Path(__file__).resolve().parents[2] / "docs" / "django.md").read_text()
_BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", _PAGE, re.MULTILINE | re.DOTALL)
_NOT_RUN = {"pip install cdc-tasks"}  # the wheel is there
_READY = {"python manage.py cdc run": "streaming", "celery -A shop worker --loglevel=INFO": " ready."}

_MIGRATIONS = {  # each `migrate` up to one of these; on MariaDB in fewer steps
    "postgresql": ["0003", "0004", "0005", "0006", "0007", "0009"],
    "mysql": ["0004", "0006", "0009"],
}


@contextmanager
def _made(server: PostgresServer | MariaDBServer, broker_url: str, home: Path) -> Iterator[Project]:
    """Make a project whose first migration is applied."""
    fresh: Any = fresh_database if isinstance(server, PostgresServer) else fresh_mysql_database
    with fresh(server) as database:
        made = Project(home / "shop", database_url=database.url, broker_url=broker_url)
        made.environment["SHOP_STOCK"] = "yes"
        made.manage("migrate", "stock", "0001")
        yield made


@pytest.fixture(params=["postgres_server", "mariadb_server"])
def project(
    request: pytest.FixtureRequest, valkey_server: ValkeyServer, broker: object, tmp_path: Path
) -> Iterator[Project]:
    with _made(request.getfixturevalue(request.param), valkey_server.url, tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def project_on_postgres(
    postgres_server: PostgresServer, valkey_server: ValkeyServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Project]:
    with _made(postgres_server, valkey_server.url, tmp_path_factory.mktemp("django")) as made:
        yield made


def test_migrations_run_while_the_listener_works_and_nothing_is_lost(project: Project) -> None:
    names = ["stock_item", "stock_article"]
    with redis.Redis.from_url(project.environment["SHOP_BROKER"]) as broker, ExitStack() as stack:
        listener = stack.enter_context(project.listen())
        writers = [Writer(project.database_url, names, seed=seed) for seed in (1, 2)]
        with writers[0], writers[1]:
            for migration in _MIGRATIONS[project.environment["SHOP_ENGINE"]]:
                wait_until(lambda: all(each.transactions > 5 or each.error for each in writers))
                project.manage("migrate", "stock", migration)
                if migration == "0006":
                    _fill_new_table(project)
                if migration == "0004":
                    listener.kill()
                    listener = stack.enter_context(project.listen())
                for each in writers:
                    each.transactions = 0
        assert [each.error for each in writers] == [None, None]
        wait_until(
            lambda: not unlike(project.database_url, [args for _, args in sent_to(broker, "celery")]),
            timeout=30,
            what="each change of the ledger once in the queue",
        )
        tables = {args[0] for _, args in sent_to(broker, "celery")}
        assert tables == {"stock_item", "stock_article", "stock_shelf"}
        assert '"gap"' not in listener.log
        _enqueue(project)
        wait_until(lambda: ["receipt 2"] in _receipts(broker), timeout=30, what="the last task")
        assert _receipts(broker) == [["receipt 1"], ["receipt 2"]]


_ENQUEUES = """
from django.db import transaction
from orders.tasks import send_receipt

with transaction.atomic():
    send_receipt.delay("receipt 1")
    early = transaction.savepoint()
    send_receipt.delay("rolled back")
    transaction.savepoint_rollback(early)
with transaction.atomic():
    send_receipt.delay_on_commit("rolled back")
    transaction.set_rollback(True)
with transaction.atomic():
    send_receipt.apply_async(["receipt 2"], priority=3)
"""


def _enqueue(project: Project) -> None:
    if project.environment["SHOP_ENGINE"] == "mysql":
        with connect(project.database_url) as connection, connection.cursor() as cursor:
            cursor.execute(CREATE_MARKS)
    project.manage("shell", "-c", _ENQUEUES)


def _receipts(broker: redis.Redis) -> list[Any]:
    queues = [key.decode() for key in broker.scan_iter("celery*") if broker.type(key) == b"list"]
    sent = [each for queue in queues for each in sent_to(broker, queue)]
    return sorted(args for task, args in sent if task == "orders.tasks.send_receipt")


def _fill_new_table(project: Project) -> None:
    """Write to it when `status` shows that it is published, or that nobody has to."""
    with connect(project.database_url) as connection, connection.cursor() as cursor:
        if "postgresql" in project.database_url:
            wait_until(lambda: _is_published(cursor), what="the new table in the publication")
        cursor.execute(insert_into("stock_shelf", project.database_url))
        connection.commit()


def _is_published(cursor: object) -> bool:
    cursor.execute("SELECT 1 FROM pg_publication_tables WHERE tablename = 'stock_shelf'")  # type: ignore[attr-defined]
    return bool(cursor.fetchone())  # type: ignore[attr-defined]


def test_migrate_tells_before_it_begins_what_it_would_do_to_watched_tables(
    project_on_postgres: Project,
) -> None:
    shop = project_on_postgres
    check = ["check", "--tag", "cdc", "--database", "default"]
    told = shop.manage("migrate", "--plan", SHOP_NAMES_COLUMNS="1")
    assert told.count("(cdc.") == told.count("HINT:") == 12
    assert (
        "(cdc.W001) stock.0008_rename_table: public.stock_item is renamed to public.stock_article; stock.priced"
        " fires for only one of the names: public.stock_article has no such route." in told
    )
    assert (
        "(cdc.W003) stock.0003_rename_column: public.stock_item.note is renamed to remark; the route to"
        " stock.priced names it in columns=." in told
    )
    assert (
        "(cdc.W004) stock.0004_drop_column: public.stock_item.old is dropped; the route to stock.seen has"
        in told
    )
    assert (
        "price gets the type varchar(20) instead of integer; the route to stock.priced names it in when=."
        in told
    )
    assert "(cdc.W008) stock.0006_new_table: public.stock_shelf is new, stock.seen fires for it, and" in told
    assert (
        "(cdc.I001) orders.0001_initial: public.orders_tag is new; search.tasks.index fires for it." in told
    )
    assert "stock_item.name gets" not in told  # a longer text, and a larger integer, look the same in a task
    # Without the database nothing is said of migrations: most commands of manage.py look at no database.
    assert "cdc." not in shop.manage("check")
    # What a pipeline that deploys asks.
    shop.manage(*check, "--fail-level", "WARNING", status=1, SHOP_NAMES_COLUMNS="1")
    shop.manage("migrate")
    assert "(cdc." not in shop.manage(*check)


def test_manage_py_cdc_is_the_listeners_command_line(project_on_postgres: Project) -> None:
    shop = project_on_postgres
    found = json.loads(shop.manage("cdc", "check", "--json"))
    assert found["ready"] is True
    assert "Usage: manage.py cdc status [OPTIONS]" in shop.manage("cdc", "status", "--help")
    with _more_settings(shop, 'CDC_NAME = "orders"\nCDC_DURABILTY = "fsync"'):
        assert json.loads(shop.manage("cdc", "status", "--json", status=1))["name"] == "orders"
        status = json.loads(shop.manage("cdc", "status", "--json", status=1, CDC_NAME="shop"))
        assert (status["name"], status["listener"]) == ("shop", "never started")
        told = shop.manage("check")
        assert "(cdc.W009) cdc-tasks has no setting CDC_DURABILTY" in told
        assert "Did you mean CDC_DURABILITY?" in told
    with _more_settings(shop, "DATABASES['lite'] = {'ENGINE': 'django.db.backends.sqlite3', 'NAME': 'x'}"):
        refused = shop.manage("cdc", "status", status=1, CDC_DATABASE="lite")
    assert "error: DATABASES['lite'] cannot be watched: django.db.backends.sqlite3 has no log" in refused


@contextmanager
def _more_settings(shop: Project, lines: str) -> Iterator[None]:
    path = shop.home / "shop" / "settings.py"
    before = path.read_text()
    path.write_text(f"{before}\n{lines}\n")
    yield
    path.write_text(before)


def test_mistakes_in_routes_are_told_by_check_with_their_place(project_on_postgres: Project) -> None:
    shop = project_on_postgres
    routes = shop.home / "orders" / "cdc.py"
    routes.write_text("from orders.models import Purchase\n")
    model = shop.manage("check", status=1)
    routes.write_text("from cdc_tasks.django import register\nregister('orders_order', 'updated', 'x')\n")
    event = shop.manage("check", status=1)
    routes.unlink()
    assert "orders/cdc.py:1: ImportError: cannot import name 'Purchase'" in model
    assert "events='updated' names no known event (" in event
    assert "orders/cdc.py:2)." in event


@pytest.mark.oldest
def test_who_follows_the_page_has_a_task_that_ran_because_of_an_update(
    postgres_server: PostgresServer, valkey_server: ValkeyServer, broker: object, tmp_path: Path
) -> None:
    python = str(environment_with(build(tmp_path), tmp_path / "venv"))
    url = valkey_server.url
    with fresh_database(postgres_server) as database, ExitStack() as running:
        shop = Project(tmp_path / "shop", database_url=database.url, broker_url=url, python=python)
        reader = _Reader(shop, running)
        for language, text in _BLOCKS:
            reader.follow(language, text)
        (mail,) = (shop.home / "mails").iterdir()
        assert "Order 1 is paid." in mail.read_text()


class _Reader:
    """Somebody who has a project, and does to it what the page says."""

    def __init__(self, shop: Project, running: ExitStack) -> None:
        self._shop, self._running = shop, running

    def follow(self, language: str, text: str) -> None:
        if language == "python":
            self._edit(text)
        elif language == "sql":
            with connect(self._shop.database_url) as connection, connection.cursor() as cursor:
                cursor.execute(text)
        else:
            for line in text.splitlines():
                self._type(line.removeprefix("$ "))

    def _edit(self, text: str) -> None:
        name, _, what = text.partition("\n")[0].removeprefix("# ").partition(": ")
        path = self._shop.home / name
        path.write_text(f"{path.read_text()}\n{text}" if what == "add" else text)

    def _type(self, line: str) -> None:
        if line in _READY:
            self._running.enter_context(
                self._shop.start("/bin/bash", "-c", f"exec {line}", ready=_READY[line])
            )
        elif line not in _NOT_RUN:
            is_update = "update(" in line
            if is_update:
                create = "Order.objects.create(customer='ann@example.com')"
                self._shop.manage("shell", "-c", f"from orders.models import Order; {create}")
            self._shop.run(["/bin/bash", "-c", line])
            if is_update:
                wait_until((self._shop.home / "mails").exists, timeout=30, what="the mail of the task")


def test_the_projects_own_tests_pass(project_on_postgres: Project) -> None:
    printed = project_on_postgres.manage("test", "orders", "--noinput", SHOP_CONFIRMS="yes")
    assert "\nRan 9 tests" in printed
    assert "slot_created" not in printed  # the listener's lines are no part of a test's output
