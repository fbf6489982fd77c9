"""Which routes a change fires, which not, and which line said so; and the words on `explain`'s command line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial, wraps
from inspect import currentframe
from pathlib import Path
from typing import Any

import pytest

from cdc_tasks import BinlogRouter, EventType, became, changed, in_context
from cdc_tasks.changes import Change
from cdc_tasks.routing.decorators import on_change, router_of
from cdc_tasks.routing.enqueued import EnqueuedTask
from cdc_tasks.routing.explained import Outcome, Verdict, explain
from cdc_tasks.routing.predicates import When
from cdc_tasks.source_lines import named
from cdc_tasks.testing import row_change
from listener.cli.given_change import GivenChangeError, given_change
from listener.cli.row_filter import RowFilterError, parse_condition, passes
from listener.cli.verdicts import difference
from listener.daemon.settings import ListenerSettings, load
from listener.postgres.codec.change import Transaction

_FILE = str(Path(__file__).relative_to(Path.cwd())) if Path(__file__).is_relative_to(Path.cwd()) else __file__
_HERE: Callable[[int], str] = lambda line: f"{_FILE}:{line}"  # noqa: E731


def _line() -> int:
    """Return the line of the caller."""
    frame = currentframe()
    assert frame is not None
    assert frame.f_back is not None
    return frame.f_back.f_lineno


def _kept(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def wrapper(*arguments: Any) -> Any:
        return function(*arguments)

    return wrapper


def _is_large(change: Change) -> bool:
    if change.row["total"] > 100:  # noqa: SIM103 - the next line but one says no
        return True
    return False


_SAYS_NO = _is_large.__code__.co_firstlineno + 3


class _Large:
    def __call__(self, change: Change) -> bool:
        return _is_large(change)


_SMALL = row_change("orders", "update", before={"id": 7, "total": 5}, after={"id": 7, "total": 6})


def _verdict(when: When | None, change: Change = _SMALL, **options: Any) -> Verdict:
    router = BinlogRouter()
    router.register("public", "orders", ["insert", "update"], "shop.bill", when=when, **options)
    (verdict,) = explain(router, change)
    fired = list(router.tasks_for([change]))  # what really happens is what is explained
    assert (verdict.outcome is Outcome.FIRES) == (bool(fired) and fired[0] == verdict.call)
    return verdict


@pytest.mark.parametrize("when", [_is_large, _kept(_is_large), partial(_is_large)])
def test_the_line_that_returned_false_is_named(when: When) -> None:
    verdict = _verdict(when)
    assert (verdict.outcome, verdict.place) == (Outcome.WHEN, _HERE(_SAYS_NO))


def test_a_condition_is_named_by_its_line() -> None:
    there = lambda change: change.row["total"] > 100  # noqa: E731
    assert named(there) == _HERE(_line() - 1)
    assert _verdict(there).place == _HERE(_line() - 2)
    assert named(_is_large) == f"_is_large ({_HERE(_is_large.__code__.co_firstlineno)})"
    assert named(_Large()) == f"_Large ({_HERE(_Large.__call__.__code__.co_firstlineno)})"
    assert _verdict(_Large()).place == _HERE(_Large.__call__.__code__.co_firstlineno + 1)
    assert named(became("status", "paid")) == "became('status', 'paid')"


def test_a_route_is_named_by_the_line_that_registers_it() -> None:
    router = BinlogRouter()
    router.register("public", "orders", "insert", "shop.bill")
    router.refresh_master_cache("public", "roles")
    first = _line() - 2
    assert [each.place for each in router.routes] == [f"{__file__}:{first}", f"{__file__}:{first + 1}"]
    events, tables = (verdict for verdict in explain(router, _SMALL))
    assert (events.outcome, events.reason, events.place) == (Outcome.EVENT, "it is for insert", _HERE(first))
    assert (tables.outcome, tables.reason) == (Outcome.TABLE, "it is for public.roles")


def test_a_route_of_a_task_is_named_by_the_line_of_its_decorator() -> None:
    from celery import Celery

    app = Celery("explained", set_as_current=False)
    decorate = on_change("orders", EventType.UPDATE)
    line = _line() - 1
    decorate(app.task(name="explained.bill")(_is_large))
    (route,) = [each for each in router_of(app).routes if each.task == "explained.bill"]
    assert route.place == f"{__file__}:{line}"


@pytest.mark.parametrize(
    ("when", "before", "after", "told"),
    [
        (became("status", "paid"), {"status": "new"}, {"status": "paid"}, "status became 'paid'"),
        (became("status", "paid"), {"status": "new"}, {"status": "sent"}, "status is not 'paid'"),
        (became("status", "paid"), {"status": "paid"}, {"status": "paid"}, "status was 'paid' before, too"),
        (became("status", "paid"), {"status": "paid"}, {"id": 7}, "the new row has no status"),
        (
            became("status", "paid"),
            None,
            {"status": "paid"},
            "status is 'paid', and the old value is not known, ",
        ),
        (changed("a", "b"), {"a": 1, "b": 1}, {"a": 1, "b": 2}, "b changed"),
        (changed("a", "b"), {"a": 1, "b": 1}, {"a": 1, "b": 1}, "a and b did not change"),
        (
            changed("a"),
            None,
            {"a": 1},
            "the old or the new value of a is not known, which counts as a change",
        ),
    ],
)
def test_a_ready_made_condition_tells_which_part_of_it_decided(
    when: When, before: dict[str, Any] | None, after: dict[str, Any], told: str
) -> None:
    verdict = _verdict(when, row_change("orders", "update", before=before, after=after))
    assert verdict.reason.startswith(told)
    assert verdict.outcome is (
        Outcome.FIRES if when(row_change("orders", "update", before=before, after=after)) else Outcome.WHEN
    )


def test_a_condition_on_the_context_tells_which_part_of_it_decided() -> None:
    for context, told in (
        (None, "the transaction has no context"),
        ({"user": "anna", "role": "agent"}, "in its context role is not 'admin'"),
        ({"user": "anna", "role": "admin"}, "the context of the transaction matches"),
    ):
        change = replace(_SMALL, context=context)
        assert _verdict(in_context(user="anna", role="admin"), change).reason == told


def test_a_new_row_counts_as_changed() -> None:
    new = row_change("orders", "insert", after={"status": "paid"})
    assert _verdict(changed("status"), new).reason == "insert counts as a change of every column"
    assert _verdict(became("status", "paid"), new).reason == "status is 'paid', and the row is new"


def test_a_function_that_fails_is_told_with_its_line() -> None:
    verdict = _verdict(lambda change: change.row["nothing"])
    line = _line() - 1
    assert (verdict.outcome, verdict.reason, verdict.place) == (
        Outcome.PARKS,
        "when= fails: KeyError",
        _HERE(line),
    )
    verdict = _verdict(None, args=lambda change: [1 / change.row["nothing"]])
    assert (verdict.outcome, verdict.place) == (Outcome.PARKS, _HERE(_line() - 1))
    assert verdict.reason == "args=, kwargs= or key= fails: KeyError"


def test_a_debugger_goes_on_tracing() -> None:
    def trace(*_: Any) -> None:
        return None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        _verdict(_is_large)
        assert sys.gettrace() is trace
    finally:
        sys.settrace(before)


@pytest.mark.parametrize(("task", "outcome"), [("shop.send", Outcome.FIRES), ("other.send", Outcome.PARKS)])
def test_an_enqueued_task_fires_if_a_route_accepts_it(task: str, outcome: Outcome) -> None:
    router = BinlogRouter()
    router.accept("shop.*")
    enqueued: Any = EnqueuedTask.read(
        {"task": task, "args": [7]}, Transaction(8, 0, "source"), 0, "cdc_tasks"
    )
    (verdict,) = explain(router, enqueued)
    assert verdict.outcome is outcome
    assert verdict.reason == ("" if outcome is Outcome.FIRES else "no route accepts it")


def test_a_parked_task_that_was_enqueued_is_explained_without_its_message() -> None:
    router = BinlogRouter()
    router.accept("shop.*")
    for task, outcome in (("shop.send", Outcome.FIRES), ("other.send", Outcome.PARKS)):
        parked = replace(row_change(task, "truncate", schema=""), event=EventType.ENQUEUED)
        (verdict,) = explain(router, parked)
        assert verdict.outcome is outcome


# --- On the command line ------------------------------------------------------------------------------------


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> ListenerSettings:
    """Return those of a database that is away."""
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/nothing")
    return load(ListenerSettings)


def test_a_row_tells_which_columns_are_asked_for_and_not_given(settings: ListenerSettings) -> None:
    given = given_change(settings, BinlogRouter(), ("orders", "update"), None, '{"id": 7}')
    assert "Whether the database has this table is unknown" in given.notes[0]
    router = BinlogRouter()
    router.register("public", "orders", "update", "shop.bill", when=lambda change: change.row.get("total"))
    (verdict,) = explain(router, given.change)
    assert (verdict.outcome, given.lacking) == (Outcome.WHEN, {"total"})


@pytest.mark.parametrize(
    ("words", "rows", "code", "told"),
    [
        (
            ("orders", "updat"),
            (None, "{}"),
            "no_such_event",
            "There is no event updat. Did you mean update?",
        ),
        (("orders", "UPDATE"), (None, "{id: 7}"), "given_row", "--after is not JSON: "),
        (
            ("orders", "update"),
            ("7", "{}"),
            "given_row",
            "--before is not an object with columns and values.",
        ),
        (("orders", "insert"), ("{}", "{}"), "given_change", "There is no row before an insert."),
        (("orders", "delete"), (None, "{}"), "given_change", "There is no row after a delete."),
        (("orders", "delete"), (None, None), "given_change", "The row that a delete removes is missing."),
        (("orders", "update"), (None, None), "given_change", "The row after an update is missing."),
    ],
)
def test_words_that_make_no_change_are_told(
    settings: ListenerSettings,
    words: tuple[str, str],
    rows: tuple[str | None, str | None],
    code: str,
    told: str,
) -> None:
    with pytest.raises(GivenChangeError) as refused:
        given_change(settings, BinlogRouter(), words, *rows)
    assert refused.value.code == code
    assert refused.value.message.startswith(told)
    assert refused.value.hint


# --- watch --where ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("condition", "is_true"),
    [
        ("status=paid", True),
        ('status="paid"', True),
        ("status != paid", False),
        ("total>=12.5", True),  # a numeric is a text in a change
        ("total=12.50", True),
        ("total<9", False),
        ("id<10", True),
        ("id=7", True),
        ("code=7", True),
        ('code="7"', False),  # as texts
        ("code=007", True),
        ("note=null", True),
        ("note!=null", False),
        ("note!=x", True),
        ("note<x", False),
        ("paid=true", True),
        ('tags=["a"]', True),
        ('"odd name"=1', True),
        ("nothing=1", False),
        ("nothing!=1", False),
    ],
)
def test_a_condition_compares_a_column(condition: str, is_true: bool) -> None:
    row = {
        "status": "paid", "total": "12.50", "id": 7, "code": "007", "note": None, "paid": True, "tags": ["a"],
        "odd name": 1,
    }  # fmt: skip
    assert parse_condition(condition).is_true(row) is is_true


@pytest.mark.parametrize("condition", ["", "status", "=paid", "status~paid"])
def test_a_condition_that_cannot_be_read_is_told(condition: str) -> None:
    with pytest.raises(RowFilterError, match="cannot be read"):
        parse_condition(condition)


def test_conditions_hold_for_the_row_before_or_after() -> None:
    paid = row_change(
        "orders", "update", before={"id": 7, "status": "new"}, after={"id": 7, "status": "paid"}
    )
    both = [parse_condition("id=7"), parse_condition("status=new")]
    assert passes(paid, both)
    assert not passes(paid, [parse_condition("id=7"), parse_condition("status=sent")])
    assert passes(row_change("orders", "truncate"), both)


def test_control_characters_do_not_reach_the_terminal() -> None:
    change = row_change("orders", "insert", after={"note\x1b[2J": "\x1b[31m"})
    assert difference(change, has_values=True).isprintable()
    assert difference(change, has_values=False).isprintable()
