"""Which change fires which task, and the errors of a wrong registration."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from celery import Celery

from cdc_tasks.changes import EventType, RowChange
from cdc_tasks.errors import CDCError
from cdc_tasks.routing.arguments import ValueMissingError
from cdc_tasks.routing.message_groups import LONGEST_KEY, shown_key
from cdc_tasks.routing.router import BinlogRouter, Call, Parked, RouteError, became, changed
from cdc_tasks.testing import assert_fires, assert_fires_nothing, row_change

TICKET = {"id": 123, "title": "Fix bug", "status": "open"}


def router_with(*routes: tuple[Any, ...], **options: Any) -> BinlogRouter:
    router = BinlogRouter()
    for route in routes:
        router.register(*route, **options)
    return router


def test_a_change_fires_each_route_that_watches_its_table_and_event_in_order_of_registration() -> None:
    router = router_with(
        ("public", "tickets", [EventType.INSERT], "first"),
        ("public", "tickets", EventType.ALL, "second"),
        ("public", "tickets", [EventType.DELETE], "not.this"),
        ("other", "tickets", EventType.ALL, "nor.this"),
    )
    fired = list(router.tasks_for([row_change("tickets", "insert", after=TICKET)]))
    assert [each.route.task for each in fired] == ["first", "second"]


def test_a_task_gets_the_change_as_its_one_argument() -> None:
    router = router_with(("public", "tickets", "insert", "task"))
    change = row_change("tickets", "insert", after=TICKET)
    (call,) = router.tasks_for([change])
    assert isinstance(call, Call)
    assert json.loads(b"[%b]" % call.arguments) == [change.to_message()]


def test_columns_limit_the_rows_that_are_sent() -> None:
    router = router_with(("public", "tickets", "update", "task"), columns=["id", "status"])
    change = row_change(
        "tickets", "update", before=TICKET, after=TICKET | {"status": "closed"}, unavailable=["body"]
    )
    (call,) = router.tasks_for([change])
    message = json.loads(call.arguments)
    assert (message["before"], message["after"]) == (
        {"id": 123, "status": "open"},
        {"id": 123, "status": "closed"},
    )
    assert message["unavailable"] == []


@pytest.mark.parametrize("pattern", ["tickets_*", "tickets_20??", "tickets_[0-9]*", "*"])
def test_globs_in_table_names_match_tables(pattern: str) -> None:
    router = router_with(("public", pattern, "insert", "task"))
    assert_fires(router, row_change("tickets_2026", "insert", after=TICKET), "task")


def test_a_glob_does_not_match_another_schema() -> None:
    router = router_with(("public", "*", "insert", "task"))
    assert_fires_nothing(router, row_change("tickets", "insert", after=TICKET, schema="private"))


def test_names_are_case_sensitive_as_in_the_servers() -> None:
    router = router_with(("public", "Tickets", "insert", "task"))
    assert_fires_nothing(router, row_change("tickets", "insert", after=TICKET))


def test_changed_fires_only_where_the_column_differs() -> None:
    router = router_with(("public", "tickets", "update", "task"), when=changed("status", "title"))
    assert_fires(
        router, row_change("tickets", "update", before=TICKET, after=TICKET | {"title": "x"}), "task"
    )
    assert_fires_nothing(router, row_change("tickets", "update", before=TICKET, after=TICKET))


def test_changed_fires_where_the_old_value_is_unknown() -> None:
    router = router_with(("public", "tickets", "update", "task"), when=changed("status"))
    assert_fires(router, row_change("tickets", "update", after=TICKET), "task")
    assert_fires(router, row_change("tickets", "update", before={"id": 1}, after=TICKET), "task")


def test_became_fires_once_a_value_is_reached_and_not_while_it_stays() -> None:
    router = router_with(("public", "tickets", EventType.ALL, "task"), when=became("status", "closed"))
    closed = TICKET | {"status": "closed"}
    assert_fires(router, row_change("tickets", "update", before=TICKET, after=closed), "task")
    assert_fires(router, row_change("tickets", "insert", after=closed), "task")
    assert_fires_nothing(
        router, row_change("tickets", "update", before=closed, after=closed | {"title": "x"})
    )
    assert_fires_nothing(router, row_change("tickets", "update", before=closed, after=TICKET))
    assert_fires_nothing(router, row_change("tickets", "delete", before=closed))


def test_args_give_the_positional_arguments() -> None:
    router = router_with(("public", "roles", EventType.ALL, "refresh"), args=lambda change: [change.table, 1])
    assert_fires(router, row_change("roles", "truncate"), "refresh", args=["roles", 1])


@pytest.mark.parametrize(
    ("option", "error"),
    [
        ({"when": lambda change: change.after["nope"]}, KeyError),
        ({"args": lambda change: [change.after["nope"]]}, KeyError),
        ({"args": lambda _: "roles"}, TypeError),
        ({"args": lambda _: None}, TypeError),
        ({"args": lambda _: [object()]}, TypeError),
        ({"kwargs": lambda _: ["id"]}, TypeError),
        ({"kwargs": lambda _: {1: "id"}}, TypeError),
    ],
)
def test_a_change_whose_predicate_or_args_raises_is_parked_and_stops_nobody_else(
    option: dict[str, Any], error: type[Exception]
) -> None:
    router = router_with(("public", "tickets", "insert", "broken"), **option)
    router.register("public", "tickets", "insert", "sound")
    parked, call = router.tasks_for([row_change("tickets", "insert", after=TICKET)])
    assert isinstance(parked, Parked)
    assert isinstance(parked.error, error)
    assert isinstance(call, Call)
    assert call.route.task == "sound"


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        (("", "t", "insert", "task"), {}, "schema=''"),
        (("public", " ", "insert", "task"), {}, "table=' '"),
        (("public", "t", "insert", ""), {}, "task=''"),
        (("public", "t", "insert", None), {}, "task=None"),
        (("public", "t", "upsert", "task"), {}, "upsert"),
        (("public", "t", [], "task"), {}, "events=[]"),
        (("public", "t", "insert", "task"), {"when": "status"}, "when='status'"),
        (("public", "t", "insert", "task"), {"args": "id"}, "args='id'"),
        (("public", "t", "insert", "task"), {"args": ["id", ""]}, "args=['id', '']"),
        (("public", "t", "insert", "task"), {"args": {"order": "id"}}, "args={'order': 'id'}"),
        (("public", "t", "insert", "task"), {"kwargs": []}, "kwargs=[]"),
        (("public", "t", "insert", "task"), {"kwargs": ["id", "id"]}, "twice"),
        (("public", "t", "insert", "task"), {"kwargs": {"order": 1}}, "kwargs=[1]"),
        (("public", "t", "all", "task"), {"args": ["id"]}, "TRUNCATE"),
        (("public", "t", "truncate", "task"), {"kwargs": {"order": "id"}}, "TRUNCATE"),
        (("public", "t", "insert", "task"), {"countdown": -1}, "countdown=-1"),
        (("public", "t", "insert", "task"), {"expires": "60"}, "expires='60'"),
        (("public", "t", "insert", "task"), {"expires": float("nan")}, "expires=nan"),
        (("public", "t", "insert", "task"), {"priority": 256}, "priority=256"),
        (("public", "t", "insert", "task"), {"priority": True}, "priority=True"),
        (
            ("public", "t", "insert", "task"),
            {"batch": 2, "args": ["id"], "kwargs": ["id"]},
            "batch, args and kwargs",
        ),
        (("public", "t", "insert", "task"), {"columns": []}, "columns=[]"),
        (("public", "t", "insert", "task"), {"columns": [1]}, "columns=[1]"),
        (("public", "t", "insert", "task"), {"queue": ""}, "queue=''"),
        (("public", "t", "insert", "task"), {"batch": 0}, "batch=0"),
        (("public", "t", "insert", "task"), {"batch": True}, "batch=True"),
        (("public", "t", "insert", "task"), {"coalesce": True}, "args="),
        (
            ("public", "t", "insert", "task"),
            {"coalesce": True, "args": list, "batch": 5},
            "coalesce and batch",
        ),
    ],
)
def test_a_bad_registration_names_the_value_and_the_hint(
    arguments: tuple[Any, ...], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(RouteError) as caught:
        BinlogRouter().register(*arguments, **options)
    assert words in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize("value", [["a", ["b"]], ("a", ("b",)), ["a", ("b",)]])
def test_became_compares_arrays_as_the_lists_that_a_task_receives(value: object) -> None:
    router = router_with(("public", "papers", EventType.ALL, "task"), when=became("tags", value))
    assert_fires(router, row_change("papers", "insert", after={"tags": ["a", ["b"]]}), "task")
    assert_fires_nothing(router, row_change("papers", "insert", after={"tags": ["a"]}))


@pytest.mark.parametrize("value", [["urgent"], {"a": 1}, None, float("nan")])
def test_a_route_has_a_hash_whatever_its_condition_compares_with(value: object) -> None:
    router = router_with(("public", "papers", EventType.ALL, "task"), when=became("data", value))
    assert dict.fromkeys(router.routes)
    assert {became("data", value)}


@pytest.mark.parametrize("predicate", [changed, lambda: changed(""), lambda: became("", 1)])
def test_a_predicate_without_a_column_is_refused(predicate: Any) -> None:
    with pytest.raises(TypeError, match="column"):
        predicate()


def _called_with(call: object) -> tuple[list[Any], dict[str, Any]]:
    assert isinstance(call, Call), call
    return json.loads(b"[%b]" % call.arguments), json.loads(b"{%b}" % call.kwargs)


def test_names_of_columns_give_the_arguments_of_the_row_as_it_is_now() -> None:
    router = router_with(("public", "tickets", ["insert", "update", "delete"], "task"), args=["status", "id"])
    router.register("public", "tickets", "update", "named", kwargs=["id"])
    router.register("public", "tickets", "update", "mapped", kwargs={"ticket": "id", "now": "status"})
    router.register(
        "public", "tickets", "update", "both", args=["id"], kwargs=lambda change: {"t": change.table}
    )
    closed = TICKET | {"status": "closed"}
    calls = list(router.tasks_for([row_change("tickets", "update", before=TICKET, after=closed)]))
    assert [_called_with(each) for each in calls] == [
        (["closed", 123], {}),
        ([], {"id": 123}),
        ([], {"ticket": 123, "now": "closed"}),
        ([123], {"t": "tickets"}),
    ]
    (call,) = router.tasks_for([row_change("tickets", "delete", before=TICKET)])
    assert _called_with(call) == (["open", 123], {})


def test_the_source_sends_the_columns_that_arguments_name_and_those_of_columns() -> None:
    router = BinlogRouter()
    named = router.register("public", "t", "insert", "task", args=["id"], kwargs={"state": "status"})
    limited = router.register("public", "t", "insert", "task", args=["id"], columns=["title"])
    free = router.register("public", "t", "insert", "task", args=["id"], kwargs=lambda _: {})
    assert (named.columns, limited.columns, free.columns) == (("id", "status"), ("title", "id"), None)


def test_an_unchanged_column_that_only_the_old_row_has_is_no_missing_value() -> None:
    router = router_with(("public", "tickets", "update", "task"), args=["id", "body"])
    change = row_change(
        "tickets", "update", before={"id": 1, "body": "long"}, after={"id": 1}, unavailable=["body"]
    )
    (call,) = router.tasks_for([change])
    assert _called_with(call) == ([1, "long"], {})


@pytest.mark.parametrize("options", [{"args": ["id", "body"]}, {"kwargs": {"text": "body"}}])
def test_a_column_that_the_source_did_not_send_parks_the_change_and_never_becomes_none(
    options: dict[str, Any],
) -> None:
    router = router_with(("public", "tickets", "update", "task"), **options)
    change = row_change("tickets", "update", after={"id": 1}, unavailable=["body"])
    (parked,) = router.tasks_for([change])
    assert isinstance(parked, Parked)
    assert isinstance(parked.error, ValueMissingError)
    assert "did not send body of public.tickets with this UPDATE" in str(parked.error)
    assert "REPLICA IDENTITY FULL" in str(parked.error)


def test_a_column_that_no_row_has_is_said_to_be_none_of_the_table() -> None:
    router = router_with(("public", "tickets", "insert", "task"), args=["nope"])
    (parked,) = router.tasks_for([row_change("tickets", "insert", after=TICKET)])
    assert isinstance(parked, Parked)
    assert "public.tickets has no column nope" in str(parked.error)


def test_a_null_is_a_value() -> None:
    router = router_with(("public", "tickets", "insert", "task"), args=["title"])
    (call,) = router.tasks_for([row_change("tickets", "insert", after={"title": None})])
    assert _called_with(call) == ([None], {})


def test_equal_options_do_not_change_a_routes_id() -> None:
    """Ids are part of task ids: they are pinned, so that an upgrade sends nothing twice."""
    plain = router_with(("public", "tickets", "insert", "task"))
    rich = router_with(
        ("public", "tickets", "insert", "task"), args=["id"], countdown=5, priority=3, expires=9
    )
    assert plain.routes[0].id == rich.routes[0].id == "3952fe92"


def test_a_routes_id_survives_new_neighbours_and_differs_between_twins() -> None:
    alone = router_with(("public", "tickets", "insert", "task"))
    crowded = router_with(("public", "a", "insert", "x"), ("public", "tickets", "insert", "task"))
    twins = router_with(("public", "tickets", "insert", "task"), ("public", "tickets", "insert", "task"))
    assert alone.routes[0].id == crowded.routes[1].id == twins.routes[0].id != twins.routes[1].id


def test_a_message_becomes_the_change_again() -> None:
    change = row_change("tickets", "update", before={"id": 1}, after=TICKET, unavailable=["title"])
    assert RowChange.from_message(json.loads(change.to_json())) == change


def test_the_assertion_tells_what_did_fire() -> None:
    router = router_with(("public", "tickets", "insert", "sound"))
    router.register("public", "tickets", "insert", "broken", when=lambda change: change.after["nope"])
    with pytest.raises(AssertionError) as caught:
        assert_fires(router, row_change("tickets", "insert", after=TICKET), "task")
    text = str(caught.value)
    assert "insert on public.tickets fires task 0 times, not 1" in text
    assert "'title': 'Fix bug'" in text
    assert "broken: parked, because of KeyError('nope')" in text


def test_the_assertion_knows_tasks_their_arguments_and_close_names() -> None:
    app = Celery("shop", set_as_current=False, broker="memory://")

    @app.task(name="shop.send", shared=False)
    def send(ticket: int, status: str = "") -> None: ...

    router = router_with(("public", "tickets", "insert", "shop.send"), args=["id"], kwargs=["status"])
    change = row_change("tickets", "insert", after=TICKET)
    assert_fires(router, change, send, args=[123], kwargs={"status": "open"}, app=app)
    with pytest.raises(AssertionError, match=r"No route fires shop\.sent\. Did you mean shop\.send\?"):
        assert_fires(router, change, "shop.sent")
    with pytest.raises(AssertionError, match=r"has no task shop\.sent\. Did you mean shop\.send\?"):
        assert_fires(router, change, "shop.sent", app=app)
    with pytest.raises(AssertionError, match=r"fires shop\.send\(status='new'\) 0 times"):
        assert_fires(router, change, "shop.send", kwargs={"status": "new"})
    wrong = router_with(("public", "tickets", "insert", "shop.send"), kwargs=["title"])
    with pytest.raises(
        AssertionError, match=r"shop\.send\(ticket.*does not take shop\.send\(title='Fix bug'\)"
    ):
        assert_fires(wrong, change, send)


def test_the_assertion_knows_the_order_by_key() -> None:
    router = router_with(
        ("public", "tickets", "insert", "task"), key="id", group="tickets", on_failure="hold"
    )
    change = row_change("tickets", "insert", after=TICKET)
    assert_fires(router, change, "task", key=123)
    assert_fires(router, change, "task", key="123", group="tickets", on_failure="hold")
    for other in ({"key": 124}, {"group": "users"}, {"on_failure": "continue"}, {"key": (123, "a")}):
        wanted = ", ".join(f"{name}={value!r}" for name, value in other.items())
        with pytest.raises(
            AssertionError, match=rf"fires task, {re.escape(wanted)} 0 times, not 1"
        ) as caught:
            assert_fires(router, change, "task", **other)  # type: ignore[arg-type]
        assert "key tickets:123, on_failure hold" in str(caught.value)
    plain = router_with(("public", "tickets", "insert", "task"))
    with pytest.raises(AssertionError, match="fires task, key=123 0 times"):
        assert_fires(plain, change, "task", key=123)
    several = router_with(("public", "tick*", "insert", "task"), key=["status", "id"])
    assert_fires(several, change, "task", key=("open", 123))


def test_a_change_has_no_old_value_that_the_tables_identity_does_not_give() -> None:
    row_change("tickets", "update", before={"id": 1}, after=TICKET, identity=["id"])
    with pytest.raises(ValueError, match="the log does not have the old status, only id"):
        row_change("tickets", "update", before={"id": 1, "status": "new"}, after=TICKET, identity=["id"])


def test_the_assertion_tells_that_nothing_fired() -> None:
    with pytest.raises(AssertionError, match="Nothing fired"):
        assert_fires(BinlogRouter(), row_change("tickets", "insert", after=TICKET), "task")


def test_the_negative_assertion_tells_what_did_fire() -> None:
    router = router_with(("public", "tickets", "insert", "task"))
    with pytest.raises(AssertionError, match="task"):
        assert_fires_nothing(router, row_change("tickets", "insert", after=TICKET))


@pytest.mark.parametrize(
    ("event", "rows"),
    [
        ("insert", {"before": {}, "after": {}}),
        ("insert", {}),
        ("update", {"before": {}}),
        ("delete", {"before": {}, "after": {}}),
        ("truncate", {"after": {}}),
        ("all", {"after": {}}),
    ],
)
def test_a_change_that_no_source_would_send_is_refused(event: str, rows: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"before|after|all"):
        row_change("tickets", event, **rows)


# --- Keys -----------------------------------------------------------------------------------------------


def _key(change: RowChange, schema: str = "public", table: str = "orders", **options: Any) -> str | None:
    router = BinlogRouter()
    router.register(schema, table, ["insert", "update", "delete"], "task", **options)
    (call,) = router.tasks_for([change])
    assert isinstance(call, Call), call
    return call.key


ORDER = {"id": 7, "tenant_id": "acme", "note": None}


def test_a_key_is_made_of_columns_or_by_a_function() -> None:
    new = row_change("orders", "insert", after=ORDER)
    assert _key(new) is None
    assert _key(new, key="id", group="orders") == "orders:7"
    assert _key(new, key=["tenant_id", "id"], group="orders") == 'orders:["acme","7"]'
    assert _key(new, key="note", group="orders") == "orders:null"
    assert _key(new, key=lambda change: change.row["tenant_id"], group="orders") == "orders:acme"
    assert _key(new, key=lambda _: (1, "a"), group="orders") == 'orders:["1","a"]'
    assert _key(new, key=lambda _: None, group="orders") is None
    assert _key(row_change("orders", "delete", before=ORDER), key="id", group="orders") == "orders:7"
    moved = row_change("orders", "update", before=ORDER, after={**ORDER, "id": 8})
    assert _key(moved, key="id", group="orders") == "orders:8"


def test_without_a_group_each_route_has_its_own_keys_and_a_glob_has_them_for_each_table() -> None:
    router = router_with(
        ("public", "orders", "insert", "a"),
        ("public", "orders", "insert", "b"),
        ("public", "*", "insert", "c"),
        key="id",
    )
    keys = [
        call.key
        for table in ("orders", "other")
        for call in router.tasks_for([row_change(table, "insert", after=ORDER)])
        if isinstance(call, Call)
    ]
    assert len(set(keys)) == len(keys) == 4
    shared = {"key": "id", "group": "all"}
    new = row_change("orders", "insert", after=ORDER)
    assert _key(new, **shared) == _key(new, table="*", **shared)


def test_a_key_is_bounded_and_logs_show_a_digest_of_it() -> None:
    long = _key(row_change("orders", "insert", after={"id": "é" * 200}), key="id", group="orders")
    other = _key(row_change("orders", "insert", after={"id": "é" * 201}), key="id", group="orders")
    half = _key(row_change("orders", "insert", after={"id": "\ud800"}), key="id", group="orders")
    assert long != other
    assert all(len(key.encode()) <= LONGEST_KEY for key in (long, other, half) if key)
    assert "mail@example.com" not in shown_key("orders:mail@example.com")
    assert shown_key("orders:1").startswith("orders:#")


def test_a_change_without_its_key_is_parked() -> None:
    router = router_with(("public", "orders", ["update", "delete"], "task"), key="tenant_id")
    (parked,) = router.tasks_for(
        [row_change("orders", "delete", before={"id": 7}, unavailable=["tenant_id"])]
    )
    assert isinstance(parked, Parked)
    assert isinstance(parked.error, ValueMissingError)
    assert "REPLICA IDENTITY FULL" in str(parked.error)


@pytest.mark.parametrize(
    "options",
    [
        {"key": ""},
        {"key": []},
        {"key": 7},
        {"key": ["id", 7]},
        {"group": "orders"},
        {"on_failure": "hold"},
        {"key": "id", "on_failure": "stop"},
        {"key": "id", "coalesce": True, "args": lambda _: []},
        {"key": "id", "group": "orders", "batch": 5},
        {"key": "id", "group": "a:b"},
        {"key": "id", "group": ""},
        {"key": "id", "events": "all"},
    ],
)
def test_a_wrong_key_is_refused_with_a_hint(options: dict[str, Any]) -> None:
    with pytest.raises(CDCError) as refused:
        BinlogRouter().register("public", "orders", options.pop("events", "insert"), "task", **options)
    assert refused.value.hint
