"""RabbitMQ's publisher confirms: which of the messages sent on a channel the broker has taken over.

RabbitMQ manual, "Consumer Acknowledgements and Publisher Confirms": messages of a channel in confirm mode are
numbered from 1; an ack or a nack names one, or all up to it. What no queue takes is returned, and then acked.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

__all__ = ["Confirms"]


class Confirms:
    """Pure bookkeeping; `watch` ties it to a channel of py-amqp's."""

    def __init__(self) -> None:
        self.last = 0  # number of the message that was sent last
        self._waiting: dict[int, str] = {}  # task id, by number; in the order of sending
        self._taken: list[str] = []
        self.refused: list[str] = []
        self.returned: dict[str, str] = {}  # reason, by task id

    def watch(self, channel: Any) -> None:
        """Put the channel into confirm mode, and listen to what it says."""
        channel.confirm_select()
        channel.events["basic_ack"].add(self.on_ack)
        channel.events["basic_nack"].add(self.on_nack)
        channel.events["basic_return"].add(self.on_return)

    @property
    def is_waiting(self) -> bool:
        return bool(self._waiting)

    def sent(self, task_id: str) -> None:
        """Note that this message is the channel's next one."""
        self.last += 1
        self._waiting[self.last] = task_id

    def take(self) -> list[str]:
        """Return the task ids that the broker has taken over since this was asked last."""
        taken, self._taken = self._taken, []
        return taken

    def on_ack(self, number: int, multiple: bool) -> None:  # noqa: FBT001 - py-amqp calls it so
        self._taken += [
            task_id for task_id in self._settled(number, multiple) if task_id not in self.returned
        ]

    def on_nack(self, number: int, multiple: bool) -> None:  # noqa: FBT001 - the same
        self.refused += self._settled(number, multiple)

    def on_return(self, error: Any, exchange: str, routing_key: str, message: Any) -> None:
        self.returned[message.properties["correlation_id"]] = (
            f"{error} (exchange {exchange!r}, routing key {routing_key!r})"
        )

    def _settled(self, number: int, multiple: bool) -> Iterator[str]:  # noqa: FBT001 - the same
        if not multiple:
            if number in self._waiting:
                yield self._waiting.pop(number)
            return
        while self._waiting and (first := next(iter(self._waiting))) <= number:
            yield self._waiting.pop(first)
