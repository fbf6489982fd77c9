"""Message groups on RabbitMQ, for people: the same methods as in `cdc_tasks/broker/redis/message_groups.py`."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from kombu import Producer

from cdc_tasks.broker.rabbitmq import held_keys
from cdc_tasks.broker.redis.message_groups import HeldUp, Waiting

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cdc_tasks.broker.rabbitmq.held_keys import Record

__all__ = ["PartitionedGroups"]

_STATES: Final = {"retry": "queued", "turn": "queued", "held": "failed"}


class PartitionedGroups:
    """The keys that are held up. Methods raise CacheAwayError, and kombu's errors if they send."""

    def __init__(self, connection: Any) -> None:
        """Use this connection to RabbitMQ."""
        self._connection = connection

    def held_up(self) -> Iterator[HeldUp]:
        """Yield the keys that are held up, in no particular order."""
        for key, record in held_keys.every():
            yield _held_up(key, record)

    def count(self) -> int:
        """Return how many keys are held up."""
        return held_keys.count()

    def oldest(self, most: int) -> list[HeldUp]:
        """Return the keys that have been held up longest, up to `most`."""
        found = sorted(held_keys.every(), key=lambda each: (each[1].since, each[0]))
        return [_held_up(key, record) for key, record in found[:most]]

    def of_key(self, key: str) -> HeldUp | None:
        """Return the state of a key; None if it is not held up."""
        record = held_keys.get(key)
        return None if record is None else _held_up(key, record)

    def waiting(self, key: str, *, most: int) -> list[Waiting]:
        """Return the first messages that were set aside for a key, in order."""
        _, found = held_keys.waiting(key, most=most)
        return [_waiting(json.loads(each.text)) for each in found]

    def skip(self, key: str, task_id: str) -> bool:
        """Let a key continue without the task that holds it up; return False if another task does by now."""
        record = held_keys.get(key)
        if record is None or record.id != task_id:
            return False
        following = held_keys.release(key, record)
        if following is not None:
            record, message = following
            message.publish(Producer(self._connection.default_channel, auto_declare=False))
            held_keys.sent(key, record)
        return True

    def let_go(self, key: str, task_id: str) -> bool:
        """Let a key continue that this failed task holds; return whether it did hold it."""
        record = held_keys.get(key)
        return record is not None and record.state == "held" and self.skip(key, task_id)


def _held_up(key: str, record: Record) -> HeldUp:
    number, _ = held_keys.waiting(key)
    since = datetime.fromtimestamp(record.since, UTC).isoformat(timespec="seconds")
    return HeldUp(key, record.task, record.id, since, _STATES[record.state], number)


def _waiting(message: dict[str, Any]) -> Waiting:
    return Waiting(str(message["task"]), str(message["id"]), str(message["queue"]))
