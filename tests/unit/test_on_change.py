"""`@on_change` on a task: which routes it makes, in which order, and what is wrong with it in words."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery, shared_task
from sqlalchemy import Column, Integer, MetaData, Table
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

import cdc_tasks
from cdc_tasks import (
    DELETE,
    INSERT,
    READ,
    TRUNCATE,
    UPDATE,
    BinlogRouter,
    EventType,
    RouteError,
    became,
    on_change,
)
from cdc_tasks.routing import decorators
from cdc_tasks.routing.decorators import declared_routes, router_of
from cdc_tasks.routing.router import Call, Parked
from cdc_tasks.testing import assert_fires, row_change
from listener.daemon.application import router_for
from listener.daemon.settings import RouteSettings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings(
    "ignore::celery.exceptions.CDeprecationWarning"
)  # 5.7 warns of queue=


@pytest.fixture(autouse=True)
def nothing_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decorators, "_declared", [])


@pytest.fixture
def app() -> Iterator[Celery]:
    app = Celery("shop", set_as_current=False, broker="memory://")
    yield app
    app.close()


def _routes(router: BinlogRouter) -> list[tuple[str, str, str]]:
    return [(route.schema, route.table, route.task) for route in router.routes]


def test_the_events_have_short_names() -> None:
    assert {INSERT, UPDATE, DELETE, TRUNCATE, READ} | {EventType.ALL, EventType.ENQUEUED} == set(EventType)
    assert cdc_tasks.UPDATE is EventType.UPDATE


def test_a_task_says_which_changes_it_runs_on_and_stays_the_task_it_is(app: Celery) -> None:
    @on_change("orders_order", UPDATE, when=became("status", "paid"), args=["id"])
    @on_change("billing.refunds", INSERT, kwargs={"order_id": "order"})
    @app.task(name="shop.confirm", shared=False)
    def confirm(order_id: int) -> int:
        return order_id

    assert confirm(7) == 7
    router = router_of(app, schema="shop")
    assert _routes(router) == [
        ("shop", "orders_order", "shop.confirm"),
        ("billing", "refunds", "shop.confirm"),
    ]
    paid = row_change(
        "orders_order",
        UPDATE,
        before={"id": 7, "status": "new"},
        after={"id": 7, "status": "paid"},
        schema="shop",
    )
    assert_fires(router, paid, "shop.confirm", args=[7])


def test_shared_tasks_are_not_evaluated_before_an_app_is_there(tmp_path: Path) -> None:
    code = """
from celery import _state, shared_task
from cdc_tasks import INSERT, on_change

@on_change("orders", INSERT, args=["id"])
@shared_task(queue="mail")
def send(order_id): ...

assert _state.default_app is None, "the decorator made an app"
from celery import Celery
from cdc_tasks.routing.decorators import router_of
app = Celery("shop")
(route,) = router_of(app).routes
print(route.task, route.queue)
"""
    (tmp_path / "orders.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", "import orders"],
        cwd=tmp_path, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.split() == ["orders.send", "mail"]


def test_routes_of_code_come_first_and_both_feed_one_router_that_may_be_asked_for_again(app: Celery) -> None:
    on_change("t")(app.task(name="declared", shared=False)(_change))
    written = BinlogRouter()
    written.register("public", "t", "insert", "written")
    first, second = router_of(app, written), router_of(app, written)
    assert [task for _, _, task in _routes(first)] == ["written", "declared"]
    assert first.routes == second.routes == router_of(app, first).routes
    assert first.routes[0].id == written.routes[0].id
    assert len(written.routes) == 1


def test_a_twin_of_a_written_route_has_another_id(app: Celery) -> None:
    task = app.task(name="task", shared=False)(_change)
    on_change("t", INSERT)(task)
    written = BinlogRouter()
    written.register("public", "t", "insert", task)
    assert len({route.id for route in router_of(app, written).routes}) == 2


def test_ids_do_not_depend_on_the_order_of_imports_and_a_reload_declares_nothing_twice(
    tmp_path: Path,
) -> None:
    for name in ("a", "b"):  # twins: their ids depend on their order
        (tmp_path / f"tasks_{name}.py").write_text(
            "from celery import shared_task\n"
            "from cdc_tasks import on_change, INSERT\n"
            f"@on_change('t', INSERT, queue='{name}')\n"
            "@shared_task(name='twin')\n"
            "def task(change): ...\n"
        )
    look = (
        "; from cdc_tasks.routing.decorators import router_of; import importlib"
        "; importlib.reload(tasks_a); print([(r.queue, r.id) for r in router_of().routes])"
    )
    found = {
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", f"import {modules}{look}"],
            cwd=tmp_path, check=True, capture_output=True, text=True,
        ).stdout
        for modules in ("tasks_a, tasks_b", "tasks_b, tasks_a")
    }  # fmt: skip
    (one,) = found
    assert [queue for queue, _ in ast.literal_eval(one)] == ["a", "b"]


def test_a_task_of_another_app_in_the_process_is_left_out(app: Celery) -> None:
    other = Celery("other", set_as_current=False, broker="memory://")
    on_change("t")(other.task(name="other.task", shared=False)(_change))
    on_change("t")(app.task(name="own.task", shared=False)(_change))
    assert [task for _, _, task in _routes(router_of(app))] == ["own.task"]
    assert len(router_of().routes) == len(declared_routes()) == 2


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    __table_args__ = ({"schema": "shop"},)
    id: Mapped[int] = mapped_column(primary_key=True)


class Mixin:
    __tablename__ = "mixed"


class _Meta:
    abstract = False

    def __init__(self, db_table: str, *, abstract: bool = False) -> None:
        self.db_table, self.abstract = db_table, abstract


class DjangoOrder:
    _meta = _Meta("orders_order")


class DjangoOther:
    _meta = _Meta('shop"."orders')


@pytest.mark.parametrize(
    ("table", "names"),
    [
        ("orders", [("home", "orders")]),
        ("shop.orders", [("shop", "orders")]),
        ("orders_*", [("home", "orders_*")]),
        (["a", "b.c"], [("home", "a"), ("b", "c")]),
        (Order, [("shop", "orders")]),
        (Table("plain", MetaData(), Column("id", Integer)), [("home", "plain")]),
        (Mixin, [("home", "mixed")]),
        (DjangoOrder, [("home", "orders_order")]),
        ([DjangoOther, Order, "x"], [("shop", "orders"), ("shop", "orders"), ("home", "x")]),
    ],
)
def test_a_table_is_a_name_or_a_model(table: Any, names: list[tuple[str, str]], app: Celery) -> None:
    on_change(table)(app.task(name="task", shared=False)(_change))
    assert [each[:2] for each in _routes(router_of(app, schema="home"))] == list(dict.fromkeys(names))
    router = BinlogRouter()
    if not isinstance(table, list | str):
        route = router.register("home", table, "insert", "task")
        assert (route.schema, route.table) == names[0]


def _change(change: Any) -> Any:
    return change


def _two(order_id: int, status: str = "new") -> None: ...


def _pair(a: int, b: int) -> None: ...


def _any(*args: Any, **kwargs: Any) -> None: ...


@pytest.mark.parametrize(
    ("function", "options"),
    [
        (_change, {}),
        (_change, {"args": ["id"]}),
        (_change, {"batch": 5, "args": ["id", "status"]}),
        (_two, {"args": ["id"]}),
        (_two, {"args": ["id"], "kwargs": ["status"]}),
        (_two, {"kwargs": {"order_id": "id"}}),
        (_any, {"args": ["id", "x"], "kwargs": ["y"]}),
        (_two, {"args": lambda change: [change.row["id"]]}),
    ],
)
def test_a_call_that_fits_the_task_is_a_route(function: Any, options: dict[str, Any], app: Celery) -> None:
    task = app.task(name="task", shared=False)(function)
    BinlogRouter().register("public", "t", "insert", task, **options)


@pytest.mark.parametrize(
    ("function", "options", "words"),
    [
        (_two, {"args": ["id", "status", "more"]}, "(id, status, more): too many positional"),
        (_two, {"kwargs": {"order": "id"}}, "(order=): missing a required argument: 'order_id'"),
        (_two, {"args": ["id"], "kwargs": {"order_id": "id"}}, "multiple values for argument 'order_id'"),
        (_change, {"args": []}, "missing a required argument: 'change'"),
        (_two, {"args": lambda _: [1], "kwargs": ["state"]}, "has no parameter state"),
        (_pair, {}, "the change as the only argument: missing a required argument: 'b'"),
        (_pair, {"batch": 3}, "the list of a batch"),
    ],
)
def test_a_call_that_does_not_fit_the_task_is_refused_with_the_signature_and_the_place(
    function: Any, options: dict[str, Any], words: str, app: Celery
) -> None:
    task = app.task(name="shop.task", shared=False)(function)
    with pytest.raises(RouteError) as written:
        BinlogRouter().register("public", "t", "insert", task, **options)
    assert "shop.task(" in str(written.value)
    assert words in str(written.value)
    assert written.value.code == "task_arguments"
    on_change("t", INSERT, **options)(task)
    with pytest.raises(RouteError) as declared:
        router_of(app)
    assert words in str(declared.value)
    assert f"{__file__}:" in str(declared.value)


def test_a_bound_task_is_checked_without_its_self(app: Celery) -> None:
    @app.task(name="bound", bind=True, shared=False, autoretry_for=(OSError,))
    def bound(self: Any, order_id: int) -> None: ...

    BinlogRouter().register("public", "t", "insert", bound, args=["id"])
    with pytest.raises(RouteError, match="too many positional"):
        BinlogRouter().register("public", "t", "insert", bound, args=["id", "x"])


def test_a_task_that_celery_does_not_check_is_not_checked_here(app: Celery) -> None:
    task = app.task(name="free", typing=False, shared=False)(_two)
    BinlogRouter().register("public", "t", "insert", task, args=["a", "b", "c"])


def test_what_a_function_returns_is_checked_when_it_fires_and_parks_the_change(app: Celery) -> None:
    task, router = app.task(name="shop.two", shared=False)(_two), BinlogRouter()
    router.register("public", "t", "insert", task, args=lambda change: change.row["list"])
    fits, too_many = router.tasks_for(
        row_change("t", "insert", after={"list": n * ["secret"]}) for n in (2, 3)
    )
    assert isinstance(fits, Call)
    assert json.loads(b"[%b]" % fits.arguments) == ["secret", "secret"]
    assert isinstance(too_many, Parked)
    assert "does not take (3 positional): too many positional arguments" in str(too_many.error)
    assert "secret" not in str(too_many.error)


def test_a_tasks_own_options_are_the_routes_unless_it_has_others(app: Celery) -> None:
    task = app.task(name="own", queue="mail", priority=6, expires=30, shared=False)(_change)
    own = BinlogRouter().register("public", "t", "insert", task)
    other = BinlogRouter().register("public", "t", "insert", task, queue="fast", priority=0, expires=5)
    assert (own.queue, own.priority, own.expires) == ("mail", 6, 30)
    assert (other.queue, other.priority, other.expires) == ("fast", 0, 5)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: on_change("t", "upsert"), "upsert"),
        (lambda: on_change("t", INSERT, arg=["id"]), "no option arg. Did you mean args?"),
        (lambda: on_change("t", args=["id"]), "TRUNCATE"),
        (lambda: on_change([]), "does not name a table"),
        (lambda: on_change(" "), "' '"),
        (lambda: on_change("shop."), "'shop.'"),
        (lambda: on_change(42), "42 is not a table"),
        (
            lambda: on_change(type("Abstract", (), {"_meta": _Meta("", abstract=True)})),
            "Abstract is abstract",
        ),
        (lambda: on_change("t")(_change), "_change is not a Celery task"),
        (lambda: on_change("t")(Order), "Order is a class"),
        (lambda: BinlogRouter().register("public", "t", "insert", _change), "_change is not a Celery task"),
    ],
)
def test_a_mistake_is_told_where_it_stands(wrong: Any, words: str) -> None:
    with pytest.raises(RouteError) as caught:
        wrong()
    assert words in str(caught.value)
    assert caught.value.hint
    assert declared_routes() == ()


def test_decorators_in_the_wrong_order_are_told_with_the_right_one() -> None:
    with pytest.raises(RouteError) as caught:

        @shared_task
        @on_change("orders", INSERT)
        def send(change: Any) -> None: ...

    assert f"{__file__}:" in str(caught.value)
    assert '@on_change("orders_order")\n  @shared_task\n  def send(' in str(caught.value)


def test_a_task_of_ours_that_the_app_lacks_is_told_with_the_module_to_include(tmp_path: Path) -> None:
    (tmp_path / "bare.py").write_text(
        "from celery import Celery\nfrom cdc_tasks import BinlogRouter\n"
        "app = Celery('bare', broker='memory://')\napp.conf.cdc_routes = BinlogRouter()\n"
        "app.conf.cdc_routes.refresh_master_cache('public', 'roles')\n"
    )
    command = [sys.executable, "-m", "listener", "-A", "bare", "routes"]
    # A process of its own: a shared task that is loaded here is one of each app's.
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "has no task cdc_tasks.refresh_master_cache" in done.stderr
    assert 'include=["cdc_tasks.master_cache"]' in done.stderr


@pytest.mark.parametrize(
    ("accepted", "names"), [(["shop.*", "mail.send"], ["shop.*", "mail.send"]), ("shop.*", ["shop.*"])]
)
def test_the_setting_cdc_accept_of_an_app_says_what_transactions_may_enqueue(
    accepted: object, names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"app_that_accepts_{len(names)}"
    (tmp_path / f"{name}.py").write_text(
        f"from celery import Celery\napp = Celery({name!r}, broker='memory://', set_as_current=False)\n"
        f"app.conf.cdc_accept = {accepted!r}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for _ in range(2):  # a reload asks again
        router = router_for(RouteSettings(cdc_app=name))
        assert [each.task for each in router.accepted] == names


def test_a_setting_cdc_accept_that_names_no_task_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "app_that_accepts_a_number.py").write_text(
        "from celery import Celery\napp = Celery('five', broker='memory://', set_as_current=False)\n"
        "app.conf.cdc_accept = [5]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RouteError, match="5"):
        router_for(RouteSettings(cdc_app="app_that_accepts_a_number"))
