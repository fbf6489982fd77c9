"""Parked changes in the hands of two people, and with what else may be in the way of a replay."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
import redis
from typer.testing import CliRunner, Result

from cdc_tasks.routing.router import BinlogRouter, EventType, Parked
from listener.cli.parked import cli
from listener.core.publisher import BrokerAwayError
from listener.publish.parked import parked_key, store_parked
from listener.publish.redis.connection import RedisConnection
from tests.support.publishing import change, messages

if TYPE_CHECKING:
    from cdc_tasks.changes import Change, RowChange
    from tests.conftest import Broker

KEY = parked_key("cdc:cdc_tasks")


def _drop_the_second(change: Change) -> bool:
    """Drop the second change, as another person, while the first is being replayed."""
    redis.Redis.from_url(change.row["broker"]).hdel(KEY, f"7f00-2-0-{_route(change)}")
    return True


def _route(change: Change) -> str:
    return str(change.row["route"])


def setup() -> BinlogRouter:
    router = BinlogRouter()
    router.register("public", "tickets", EventType.ALL, "tests.first", when=_drop_the_second)
    router.register("public", "documents", EventType.ALL, "tests.second")
    router.register("public", "lost", EventType.ALL, "tests.third", queue="balk")
    router.register(
        "public",
        "named",
        EventType.INSERT,
        "tests.fourth",
        args=["id"],
        kwargs={"ticket": "id"},
        countdown=3600,
        priority=3,
    )
    router.register("public", "listed", EventType.INSERT, "tests.fifth", kwargs=["id"], batch=10)
    return router


@pytest.fixture(autouse=True)
def environment(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELERY_BROKER_URL", broker.url)
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
    monkeypatch.setenv("CDC_ROUTES", f"{__name__}:setup")


def _park(broker: Broker, *changes: RowChange) -> None:
    routes = {route.table: route for route in setup().routes}
    parked = [Parked(routes[each.table], each, TypeError("no")) for each in changes]
    with closing(RedisConnection.of_cache(broker.url)) as connection:
        connection.send(store_parked(KEY, parked))


def _types(*words: str) -> Result:
    return CliRunner().invoke(cli, words)


def test_what_somebody_else_has_dropped_meanwhile_is_not_replayed(broker: Broker) -> None:
    row: dict[str, Any] = {"broker": broker.url, "route": setup().routes[0].id}
    _park(broker, change(1, **row), change(2, **row))
    done = _types("replay", "--all")
    assert done.exit_code == 0
    assert "sent to tests.first" in done.output
    assert "someone has just replayed or dropped it" in done.output
    assert broker.client.llen("celery") == 1


def test_a_drop_of_what_is_gone_says_so(broker: Broker) -> None:
    row = {"broker": broker.url, "route": setup().routes[0].id}
    _park(broker, change(2, **row))
    two = _types("drop", *2 * [f"7f00-2-0-{row['route']}"])
    assert [line.partition(": ")[2][:7] for line in two.output.splitlines()] == ["dropped", "is no l"]


def test_a_text_that_utf_8_cannot_hold_is_replayed_as_it_was(broker: Broker) -> None:
    _park(broker, change(1, table="documents", body={"half": "\ud800"}))
    done = _types("replay", "--all")
    assert (done.exit_code, "sent to tests.second" in done.output) == (0, True)
    ((sent,), *_) = messages(broker.client, "celery")[0]["body"]
    assert sent["after"]["body"] == {"half": "\ud800"}


def test_keyword_arguments_and_options_of_the_route_are_sent_again(broker: Broker) -> None:
    _park(broker, change(1, table="named"), change(2, table="listed"))
    assert _types("replay", "--all").exit_code == 0
    (named,) = messages(broker.client, "celery\x06\x163")
    assert named["body"][:2] == [[1], {"ticket": 1}]
    assert named["headers"]["eta"]
    (listed,) = messages(broker.client, "celery")
    assert listed["body"][:2] == [[[{"id": 2}]], {}]


def test_a_queue_that_is_misspelt_keeps_the_change_parked_and_the_others_going(broker: Broker) -> None:
    _park(broker, change(1, table="lost"), change(2, table="documents"))
    done = _types("replay", "--all")
    assert done.exit_code == 1
    assert "stays parked: EnvelopeError" in done.output
    assert "sent to tests.second" in done.output


def test_a_broker_that_does_not_take_it_keeps_the_change_parked(broker: Broker) -> None:
    _park(broker, change(1, table="documents"))
    broker.client.set("celery", "no list")
    done = _types("replay", "--all")
    assert isinstance(done.exception, BrokerAwayError)
    assert broker.client.hlen(KEY) == 1
