"""A step of which Redis did a part only, with a connection that breaks while it is being taken back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from listener.core.publisher import BrokerAwayError, BrokerError
from listener.publish.redis.connection import RedisConnection
from tests.support.publishing import SOURCE, change, fire, position, redis_publisher, router_to

if TYPE_CHECKING:
    from collections.abc import Iterable

    from listener.publish.redis.connection import Command
    from tests.conftest import Broker


def test_a_checkpoint_is_taken_back_although_the_connection_breaks(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuts = iter([True])
    send = RedisConnection.send

    def cut_once(self: RedisConnection, commands: Iterable[Command]) -> list[Any]:
        sent = list(commands)
        if sent[0][0] == "HSET" and next(cuts, False):
            self.close()
            raise BrokerAwayError
        return send(self, sent)

    with redis_publisher(broker.url) as publisher:
        publisher.publish(fire(router_to(), [change(1)]), checkpoint=position(1))
        broker.client.rename("celery", "somewhere")
        broker.client.set("celery", "no list")
        monkeypatch.setattr(RedisConnection, "send", cut_once)
        with pytest.raises(BrokerError, match="did not accept all of a batch"):
            publisher.publish(fire(router_to(), [change(2)]), checkpoint=position(2))
        assert publisher.attach(SOURCE) == position(1)
