"""What a request or a task writes names who wrote it, and the code that writes does nothing for that."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import flask
import pytest
import sqlalchemy
from celery import Celery
from sqlalchemy.orm import Session
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from structlog.testing import capture_logs

from cdc_tasks import BinlogRouter, install, write_context
from cdc_tasks.outbox.current import acting
from cdc_tasks.web.asgi import ContextMiddleware
from cdc_tasks.web.flask import init_app
from listener.testing import Recorder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Database, MySQLDatabase

_INSERT = "INSERT INTO items VALUES (:id)"


@pytest.fixture
def engine(database: Database) -> Iterator[sqlalchemy.Engine]:
    database.execute("CREATE TABLE items (id int PRIMARY KEY)")
    engine = sqlalchemy.create_engine(database.url.replace("postgresql:", "postgresql+psycopg2:"))
    write_context(engine)
    write_context(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def recorder(database: Database, engine: sqlalchemy.Engine) -> Iterator[Recorder]:  # its table
    router = BinlogRouter()
    router.register("public", "items", "insert", "shop.item")
    with Recorder(database.url, router) as recorder:
        yield recorder


def _contexts(recorder: Recorder) -> dict[int, Any]:
    return {change.row["id"]: change.context for change in recorder.changes()}


def _add(session: Session, *rows: int) -> None:
    for row in rows:
        session.execute(sqlalchemy.text(_INSERT), {"id": row})


def test_flask(engine: sqlalchemy.Engine, recorder: Recorder) -> None:
    app = flask.Flask("shop")
    asked: list[int] = []

    def who() -> dict[str, Any]:
        asked.append(1)
        with Session(engine) as session:  # it may look into the database
            (user,) = session.execute(sqlalchemy.text("SELECT 7")).one()
        return {"user_id": user, "nothing": None}

    init_app(app, context=who)

    @app.get("/read")
    def read() -> str:
        with Session(engine) as session:
            session.execute(sqlalchemy.text("/* INSERT */ SELECT txid_current_if_assigned()")).one()
            return str(session.execute(sqlalchemy.text("SELECT txid_current_if_assigned()")).scalar())

    @app.get("/write/<int:first>")
    def write(first: int) -> str:
        with Session(engine) as session, session.begin():
            with session.begin_nested() as savepoint:
                _add(session, first + 90)
                savepoint.rollback()
            _add(session, first, first + 1)
        with Session(engine) as session, session.begin():
            session.execute(
                sqlalchemy.text("WITH a AS (SELECT 1) INSERT INTO items SELECT :id"), {"id": first + 2}
            )
        return str(flask.g.cdc_request_id)

    client = app.test_client()
    assert client.get("/read").text == "None"
    assert not asked
    assert client.get("/write/1", headers={"X-Request-ID": "r-1"}).text == "r-1"
    other = client.get("/write/10", headers={"X-Request-ID": "two words"}).text
    with Session(engine) as session, session.begin():  # no request
        _add(session, 20)
    first, second = {"user_id": 7, "request_id": "r-1"}, {"user_id": 7, "request_id": other}
    assert len(other) == 36
    assert _contexts(recorder) == {1: first, 2: first, 3: first, 10: second, 11: second, 12: second, 20: None}


async def _get(app: Any, path: str) -> str:
    """Ask an ASGI application as a server does; return the body."""
    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "headers": [],
        "query_string": b"",
        "root_path": "",
    }
    body: list[bytes] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        body.append(message.get("body", b""))

    await app(scope, receive, send)
    return b"".join(body).decode()


def test_asgi_with_requests_side_by_side(engine: sqlalchemy.Engine, recorder: Recorder) -> None:
    def insert(row: int) -> None:
        for number in range(5):
            with Session(engine) as session, session.begin():
                _add(session, row * 10 + number)

    async def write(request: Any) -> PlainTextResponse:
        request.scope["user_id"] = request.path_params["row"]  # as authentication does, behind the middleware
        await run_in_threadpool(insert, request.path_params["row"])
        return PlainTextResponse(request.scope["cdc_request_id"])

    app = Starlette(routes=[Route("/{row:int}", write)])
    app.add_middleware(ContextMiddleware, context=lambda scope: {"user_id": scope.get("user_id")})

    async def requests() -> list[str]:
        return await asyncio.gather(*(_get(app, f"/{row}") for row in range(8)))

    ids = asyncio.run(requests())
    assert len(set(ids)) == 8
    assert _contexts(recorder) == {
        row * 10 + number: {"user_id": row, "request_id": ids[row]} for row in range(8) for number in range(5)
    }


def test_what_a_task_writes_names_the_task(engine: sqlalchemy.Engine, recorder: Recorder) -> None:
    app = Celery("shop", set_as_current=False)
    install(app, context=True)

    @app.task(name="shop.restock")
    def restock(row: int) -> None:
        with Session(engine) as session, session.begin():
            _add(session, row)

    result = restock.apply([1])
    result.get()
    restock(2)  # a plain call is no task's
    assert _contexts(recorder) == {1: {"task": "shop.restock", "task_id": result.id}, 2: None}


def test_no_write_fails_because_of_the_context(mariadb_database: MySQLDatabase) -> None:
    mariadb_database.execute("CREATE TABLE items (id int PRIMARY KEY)")
    engine = sqlalchemy.create_engine(mariadb_database.url.replace("mysql:", "mysql+pymysql:"))
    write_context(engine)
    with capture_logs() as logs:
        for row, values in enumerate([{"user_id": 7}, {"user_id": [7]}, {"two words": 7}]):
            with acting(lambda: values), Session(engine) as session, session.begin():  # noqa: B023  # it is called here
                _add(session, row)
        autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
        with acting(lambda: {"user_id": 7}), autocommit.connect() as connection:
            connection.execute(sqlalchemy.text(_INSERT), {"id": 3})
    engine.dispose()
    assert mariadb_database.fetch("SELECT count(*) FROM items") == [(4,)]
    told = [(line["event"], line["code"]) for line in logs]
    assert told == [
        ("context_not_written", code) for code in ("mark_no_table", "context_value", "context_name")
    ]


# --- Django ------------------------------------------------------------------------------------------------

_DJANGO = """
import asyncio, json, os, sys
import pymysql; pymysql.install_as_MySQLdb()
import django
from django.conf import settings
settings.configure(
    DATABASES={"default": json.loads(os.environ["DATABASE"])}, USE_TZ=True, SECRET_KEY="x", DEBUG=True,
    ROOT_URLCONF="__main__", ALLOWED_HOSTS=["*"], MIDDLEWARE=["cdc_tasks.django.ContextMiddleware"],
)
django.setup()
from django.db import connection, transaction
from django.http import HttpResponse
from django.test import AsyncClient, Client
from django.urls import path
from asgiref.sync import sync_to_async

class User:
    pk, is_authenticated = 7, True

def add(*rows):
    with connection.cursor() as cursor:
        for row in rows:
            cursor.execute("INSERT INTO items VALUES (%s)", [row])

@transaction.atomic
def save(*rows):
    add(*rows)

def view(request, first):
    request.user = User()
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    save(first, first + 1)
    with transaction.atomic():
        try:
            with transaction.atomic():
                add(first + 90)
                raise ValueError
        except ValueError:
            pass
        add(first + 2)
    try:
        with transaction.atomic():
            add(first + 91)
            raise ValueError
    except ValueError:
        pass
    save(first + 3)
    add(first + 4)  # a transaction of its own
    return HttpResponse(request.cdc_request_id)

async def aview(request, first):
    return await sync_to_async(view)(request, first)

urlpatterns = [path("sync/<int:first>", view), path("async/<int:first>", aview)]
found = Client().get("/sync/1", headers={"X-Request-ID": "r-1"}).content.decode()
also = asyncio.run(AsyncClient().get("/async/11")).content.decode()
save(30)  # no request
said = [each["sql"] for each in connection.queries if "cdc_tasks_marks" in each["sql"] and "INSERT" in each["sql"]]
print(json.dumps({"ids": [found, also], "marks": len(said)}))
"""


def _django(url: str, engine: str) -> dict[str, Any]:
    address = urlsplit(url)
    database = {
        "ENGINE": f"django.db.backends.{engine}", "NAME": address.path.strip("/"), "USER": address.username or "",
        "PASSWORD": address.password or "", "HOST": address.hostname, "PORT": str(address.port),
    }  # fmt: skip
    environment = {**os.environ, "DATABASE": json.dumps(database)}
    run = subprocess.run(
        [sys.executable, "-c", _DJANGO],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    found: dict[str, Any] = json.loads(run.stdout)
    return found


def test_django(database: Database, recorder: Recorder) -> None:
    first, second = _django(database.url, "postgresql")["ids"]
    assert first == "r-1"
    expected = {30: None}
    for start, request in ((1, first), (11, second)):
        said = {"user_id": 7, "request_id": request}
        expected |= dict.fromkeys(range(start, start + 4), said) | {start + 4: None}
    assert _contexts(recorder) == expected


def test_django_on_mariadb_writes_one_mark_in_each_transaction(mariadb_database: MySQLDatabase) -> None:
    mariadb_database.execute(
        "CREATE TABLE cdc_tasks_marks (id CHAR(36) CHARACTER SET ascii PRIMARY KEY,"
        " says MEDIUMTEXT CHARACTER SET utf8mb4 NOT NULL) ENGINE = InnoDB",
        "CREATE TABLE items (id int PRIMARY KEY)",
    )
    # Of the last request: once in each of four transactions, and once more behind a savepoint's rollback.
    assert _django(mariadb_database.url, "mysql")["marks"] == 5
