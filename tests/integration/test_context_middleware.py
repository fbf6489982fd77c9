"""What a request or a task writes names who wrote it, and the code that writes does nothing for that."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

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
from harness.waiting import at_most, wait_until
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
    """Return the contexts of the rows, by their ids, and of each enqueued task, by minus its argument."""
    return {
        change.row["id"] if change.row else -int(change.arguments): change.context
        for change in recorder.changes()
    }


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


# With postponed annotations FastAPI would not find these names: its program is one of its own.
_FASTAPI = """
import asyncio, os, sys
import sqlalchemy, uvicorn
from fastapi import BackgroundTasks, Depends, FastAPI, Request
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
import cdc_tasks
from cdc_tasks.web.asgi import ContextMiddleware

URL = os.environ["URL"]
sync = sqlalchemy.create_engine(URL.replace("postgresql:", "postgresql+psycopg:"))
async_engines = {
    name: create_async_engine(URL.replace("postgresql:", f"postgresql+{name}:")) for name in ("asyncpg", "psycopg")
}
cdc_tasks.write_context(sync)
cdc_tasks.write_context(async_engines["asyncpg"])
cdc_tasks.write_context(async_engines["psycopg"].sync_engine)

def authenticate(request: Request):
    request.state.user_id = int(request.headers["x-user"])

app = FastAPI(dependencies=[Depends(authenticate)])
app.add_middleware(ContextMiddleware, context=lambda scope: {"user_id": scope.get("state", {}).get("user_id")})
INSERT = sqlalchemy.text("INSERT INTO items VALUES (:id)")

def session():
    with Session(sync) as session, session.begin():
        yield session

@app.post("/sync/{row}")
def write(row: int, request: Request, session: Session = Depends(session)):
    session.execute(INSERT, {"id": row})
    return request.scope["cdc_request_id"]

async def later(engine, row):
    async with AsyncSession(engine) as session, session.begin():
        await session.execute(INSERT, {"id": row})

@app.post("/async/{driver}/{row}")
async def write_async(driver: str, row: int, request: Request, tasks: BackgroundTasks):
    engine = async_engines[driver]
    async with AsyncSession(engine) as session, session.begin():
        await session.execute(INSERT, {"id": row})
        await asyncio.sleep(0.01)  # others write meanwhile
        async with session.begin_nested() as savepoint:
            await session.execute(INSERT, {"id": row + 50})
            await savepoint.rollback()
        await session.execute(INSERT, {"id": row + 1})
        await session.run_sync(cdc_tasks.enqueue, "shop.send", row)
    tasks.add_task(later, engine, row + 2)
    return request.scope["cdc_request_id"]

@app.post("/own/{row}")
async def own(row: int):
    async with AsyncSession(async_engines["asyncpg"]) as session, session.begin():
        await session.run_sync(cdc_tasks.context, step="import")
        await session.execute(INSERT, {"id": row})

config = uvicorn.Config(app, port=0, log_level="warning", lifespan="off")
server = uvicorn.Server(config)
original = server.startup

async def startup(sockets=None):
    await original(sockets=sockets)
    print(server.servers[0].sockets[0].getsockname()[1], flush=True)

server.startup = startup
server.run()
"""


@contextmanager
def _fastapi(url: str) -> Iterator[str]:
    """Run the application in uvicorn; yield its address."""
    with subprocess.Popen(
        [sys.executable, "-c", _FASTAPI], env={**os.environ, "URL": url}, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


def _post(address: str, user: int, request_id: str) -> str:
    headers = {"x-user": str(user), "x-request-id": request_id}
    with urlopen(Request(address, method="POST", headers=headers), timeout=at_most(30)) as answer:
        return str(json.load(answer))


def test_fastapi_with_a_sync_engine_and_two_async_ones(
    database: Database, engine: sqlalchemy.Engine, recorder: Recorder
) -> None:
    places = ("/sync/{}", "/async/asyncpg/{}00", "/async/psycopg/{}00")
    paths = {row: places[row % 3].format(row) for row in range(12)}
    with _fastapi(database.url) as address, ThreadPoolExecutor(len(paths)) as pool:
        ids = list(pool.map(lambda row: _post(address + paths[row], row, f"r-{row}"), paths))
        _post(f"{address}/own/5000", 50, "r-50")
        written = lambda: database.fetch("SELECT count(*) FROM items") == [(29,)]  # noqa: E731
        wait_until(written, what="what is written behind the answers", timeout=30)
    assert ids == [f"r-{row}" for row in paths]
    expected = {5000: {"user_id": 50, "request_id": "r-50", "step": "import"}}
    for row in paths:
        said = {"user_id": row, "request_id": f"r-{row}"}
        rows = [row] if row % 3 == 0 else [row * 100, -row * 100, row * 100 + 1, row * 100 + 2]
        expected |= dict.fromkeys(rows, said)
    assert _contexts(recorder) == expected


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
