"""RabbitMQ's publisher confirms: which of the messages sent on a channel the broker has confirmed.

RabbitMQ manual, "Consumer Acknowledgements and Publisher Confirms": the messages of a channel in confirm mode are
numbered from 1. An ack or nack is for one number, or for all up to it. A message that no queue accepts is returned
and then acked.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

__all__ = ["Confirms"]


class Confirms:
    """Pure bookkeeping; `watch` connects it to a channel of py-amqp. The sender names its messages."""

    def __init__(self) -> None:
        self.last = 0  # the number of the last message
        self._waiting: dict[int, int] = {}  # names by number, in the order of sending
        self._confirmed: list[int] = []
        self.refused: list[int] = []
        self.returned: dict[str, str] = {}  # reason, by task id

    def watch(self, channel: Any) -> None:
        """Put the channel into confirm mode, and handle its replies."""
        channel.confirm_select()
        channel.events["basic_ack"].add(self.on_ack)
        channel.events["basic_nack"].add(self.on_nack)
        channel.events["basic_return"].add(self.on_return)

    @property
    def is_waiting(self) -> bool:
        return bool(self._waiting)

    def sent(self, name: int) -> None:
        """Note that this message is the channel's next."""
        self.last += 1
        self._waiting[self.last] = name

    def take(self) -> list[int]:
        """Return the names that the broker has confirmed since the last call, including returned messages."""
        confirmed, self._confirmed = self._confirmed, []
        return confirmed

    def on_ack(self, number: int, multiple: bool) -> None:  # noqa: FBT001 - py-amqp's signature
        self._confirmed += self._resolve(number, multiple)

    def on_nack(self, number: int, multiple: bool) -> None:  # noqa: FBT001 - the same
        self.refused += self._resolve(number, multiple)

    def on_return(self, error: Any, exchange: str, routing_key: str, message: Any) -> None:
        self.returned[message.properties["correlation_id"]] = (
            f"{error} (exchange {exchange!r}, routing key {routing_key!r})"
        )

    def _resolve(self, number: int, multiple: bool) -> Iterator[int]:  # noqa: FBT001 - the same
        if not multiple:
            if number in self._waiting:
                yield self._waiting.pop(number)
            return
        while self._waiting and (first := next(iter(self._waiting))) <= number:
            yield self._waiting.pop(first)
