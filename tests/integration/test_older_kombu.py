"""A kombu that lacks what the listener leans on: refused in words, before anything is sent."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from kombu.transport import virtual

from cdc_tasks import versions
from listener.publish.check_broker import check_broker
from listener.publish.task_message import EnvelopeError
from tests.support.publishing import celery_app, change, fire, position, redis_publisher, router_to

if TYPE_CHECKING:
    from tests.conftest import Broker

pytestmark = pytest.mark.versions


@pytest.fixture(params=["without the attribute", "of an older version"])
def older_kombu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "without the attribute":
        monkeypatch.delattr(virtual.Channel, "_get_message_priority")
    else:
        monkeypatch.setattr(versions, "installed", lambda name: (5, 7) if name == "celery" else (5, 2, 1))


@pytest.mark.usefixtures("older_kombu")
def test_nothing_is_sent_with_a_kombu_that_would_send_the_template(broker: Broker) -> None:
    with (
        redis_publisher(broker.url) as publisher,
        pytest.raises(EnvelopeError, match="kombu 5") as raised,
    ):
        publisher.publish(fire(router_to(), [change(1)]), checkpoint=position(1))
    assert "'kombu>=" in (raised.value.hint or "")
    assert not broker.client.llen("celery")
    assert broker.client.hget("cdc:test:checkpoint", "position") is None


@pytest.mark.usefixtures("older_kombu")
def test_check_tells_of_it(broker: Broker) -> None:
    found = check_broker(celery_app(broker.url), router_to().routes, durability="memory")
    (told,) = [each for each in found if each.what == "kombu"]
    assert told.state == "problem"
    assert "'kombu>=" in told.hint
