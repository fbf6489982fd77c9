"""Order by key on RabbitMQ: a worker runs the tasks of one key one at a time, in the order of their partition.

A worker consumes from all partitions, each through its own channel. RabbitMQ gives it the messages of those partitions
for which it is the active consumer. It reads up to a hundred messages ahead. For each key one message is handed to the
pool. The others stay unacknowledged until that one is acknowledged: if the worker dies, RabbitMQ gives all of them, in
the same order, to the next worker.

`cdc_tasks/broker/rabbitmq/held_keys.py` handles retries, held keys and lost acknowledgements.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from math import ceil
from time import monotonic, time
from typing import TYPE_CHECKING, Any, Final

import structlog
from amqp.exceptions import AccessRefused, ChannelError
from celery.bootsteps import StartStopStep
from kombu import Consumer as KombuConsumer
from kombu import Producer
from kombu.exceptions import OperationalError

from cdc_tasks.broker.rabbitmq import held_keys
from cdc_tasks.broker.rabbitmq.partitions import counted_queue, is_partition
from cdc_tasks.broker.rabbitmq.queues import existing_queue
from cdc_tasks.cache import CacheAwayError
from cdc_tasks.installed import is_foreign
from cdc_tasks.retry import BrokerBlockedError, UnroutableError
from cdc_tasks.routing.message_groups import KEY_HEADER, RANK_HEADER, shown_key
from cdc_tasks.worker.added_partitions import leave_out, open_added

if TYPE_CHECKING:
    from collections.abc import Callable

    from cdc_tasks.broker.rabbitmq.held_keys import Aside, Record

__all__ = ["KeyedMessages", "KeyedQueues", "start_keyed_messages"]

log = structlog.get_logger()

_AHEAD: Final = 100  # messages of a partition that a worker holds
_AGAIN_AFTER: Final = 1.0  # seconds, if Redis or RabbitMQ did not answer
_SENDING_TAKES: Final = 10.0  # seconds; a worker that has not sent a message by then is dead
_REBALANCE_EVERY: Final = 5.0  # seconds
_SEND_EACH: Final = 6  # rounds of rebalancing
_ACTIVE_FOR: Final = 15.0  # seconds for which a partition counts as ours after its last message
_LOST_ACK: Final = "It has ended, and its acknowledgement was lost."


@dataclass(slots=True)
class _Key:
    """This worker's messages of one key."""

    waiting: deque[Any] = field(default_factory=deque)
    is_running: bool = False
    expected: str | None = None  # a task id: its message was given back, and comes before those that wait


@dataclass(slots=True, kw_only=True)
class _Running:
    """A message that was handed to the pool."""

    key: str
    record: Record | None  # of the key, if the task owned the key before it ran
    task_id: str
    task: str
    delivery: str | None  # as `held_keys.delivery_of`
    is_due_later: bool  # it waits in this worker without using a process (Celery before 5.5, and with `eta`)
    retries: int
    is_redelivered: bool  # another worker may be running it too
    keeps_key: bool = False  # it gave up, and keeps the key until a person decides
    is_retried: bool = False  # its retry owns the key now


class _Partition:
    """One partition: its channel, and its running messages. The channel reports acknowledgements to it."""

    def __init__(self, keyed: KeyedMessages, queue: Any) -> None:
        self._keyed = keyed
        self.queue = queue
        self.running: dict[Any, _Running] = {}  # by delivery tag
        self.keys: dict[str, _Key] = {}
        self.ready: deque[str] = deque()  # keys with a message that may run
        self.ended: list[str] = []  # ended deliveries that are not yet recorded in Redis
        self.active_at: float | None = None  # when its last message came
        self.is_leaving = False
        self._open()

    def _open(self) -> None:
        consumer = self._keyed.consumer
        self.channel: Any = consumer.connection.channel()
        self.channel.listener = self
        self.channel.is_closed_alone = True
        self.channel.qos = self  # because other transports' channels have `hold_key` there
        self.channel.basic_qos(0, _AHEAD, False)  # py-amqp's arguments have no names
        taker = KombuConsumer(
            self.channel,
            [self.queue],
            accept=consumer.app.conf.accept_content,
            on_decode_error=consumer.on_decode_error,
            auto_declare=False,
        )
        taker.on_message = self._received
        try:
            taker.consume()
        except ChannelError:
            self.channel.close()  # py-amqp has reopened it
            raise

    def leave(self) -> None:
        """Give the partition to the next worker: RabbitMQ puts our unacknowledged messages back in their place."""
        self.channel.listener = None
        self.channel.close()
        self.keys.clear()
        self.ready.clear()
        self.active_at, self.is_leaving = None, False
        self._open()

    def _received(self, message: Any) -> None:
        self.active_at = monotonic()
        headers = message.headers if isinstance(message.headers, dict) else {}
        name = headers.get(KEY_HEADER)
        key = (
            name if isinstance(name, str) else f"\0{message.delivery_tag}"
        )  # it has no key, so it does not wait
        held = self.keys.setdefault(key, _Key())
        is_expected = held.expected is not None and held.expected == headers.get("id")
        if is_expected:
            held.waiting.appendleft(message)
            held.expected = None
        else:
            _line_up(held.waiting, message)
        if not held.is_running and held.expected is None and (is_expected or len(held.waiting) == 1):
            self.ready.append(key)
        self._keyed.soon()

    def next(self) -> bool:
        """Hand out the next message; return False if there is none. Raises CacheAwayError, without losing anything."""
        if not self.ready or self.is_leaving:
            return False
        key = self.ready[0]
        held = self.keys[key]
        message = held.waiting[0]
        record, has_ended = self._look_up(key, message)
        if not self._is_its_turn(key, message, record, has_ended=has_ended):
            return True
        if record is not None:
            held_keys.begin(key, record)
        self.ready.popleft()
        held.waiting.popleft()
        held.is_running = True
        names = {name: str(message.headers.get(name)) for name in ("id", "task")}
        self.running[message.delivery_tag] = _Running(
            key=key,
            record=record,
            task_id=names["id"],
            task=names["task"],
            delivery=held_keys.delivery_of(message.headers),
            is_due_later=bool(message.headers.get("eta")),
            retries=_retries(message),
            is_redelivered=bool(message.delivery_info.get("redelivered")),
        )
        self._keyed.take(message)
        return True

    def _look_up(self, key: str, message: Any) -> tuple[Record | None, bool]:
        """Return the key's record, and whether the message has already ended; record other ended messages."""
        if key.startswith("\0"):
            return None, False
        is_redelivered = message.delivery_info.get("redelivered")
        redelivered = held_keys.delivery_of(message.headers) if is_redelivered else None
        found = held_keys.look_up(key, self.queue.name, self.ended, redelivered=redelivered)
        self.ended.clear()
        return found

    def _is_its_turn(self, key: str, message: Any, record: Record | None, *, has_ended: bool) -> bool:
        """Return whether the message runs now. If not, it waits or has already run, and others may run."""
        task_id = message.headers.get("id")
        if record is not None and record.id == task_id and not has_ended:
            return True
        if record is not None and record.previous == task_id and not record.is_sent:
            self._keyed.send_first_waiting(key, record)
        reason = _LOST_ACK if has_ended else _why_dropped(key, message, record)
        if has_ended:
            self._note_ended(held_keys.delivery_of(message.headers))  # this acknowledgement may be lost too
        if reason is not None:
            log.info("keyed_message_dropped", of_task_id=task_id, reason=reason)
        elif record is None:
            return True
        elif not held_keys.put_aside(key, message):
            return False  # the key is free now: check again
        self._leave_out(key, message)
        return False

    def _leave_out(self, key: str, message: Any) -> None:
        """Acknowledge a message without running it, and continue with the next one of its key."""
        self.ready.popleft()
        held = self.keys[key]
        held.waiting.popleft()
        self._forget_or_requeue(key, held)
        message.ack_log_error(log, self._keyed.consumer.connection_errors)

    def _forget_or_requeue(self, key: str, held: _Key) -> None:
        if held.waiting:
            self.ready.append(key)
        elif held.expected is None:
            del self.keys[key]

    # --- called by the channel ---

    def hold_key(self, delivery_tag: Any) -> None:
        """Mark a message to keep its key when it is acknowledged: its task has failed, and a person decides."""
        running = self.running.get(delivery_tag)
        if running is not None:
            running.keeps_key = True

    def note_retry(self, delivery_tag: Any, is_sent: bool) -> None:  # noqa: FBT001  # one call, by name there
        """Mark a message to pass its key to its retry when it is acknowledged, if a retry is sent."""
        running = self.running.get(delivery_tag)
        if running is not None:
            running.is_retried = is_sent

    def before_ack(self, delivery_tag: Any) -> bool:
        """Release or hold the key; return False if that is not possible now, to acknowledge later."""
        running = self.running.get(delivery_tag)
        if running is None or running.key.startswith("\0"):
            return True
        if not self._let_key_go(running):
            self._keyed.later(_AGAIN_AFTER, self._acknowledge_again, self.channel, delivery_tag)
            return False
        if not self._keyed.is_stopped:  # if it is, RabbitMQ has given the message to another worker
            self._note_ended(running.delivery)
        return True

    def _let_key_go(self, running: _Running) -> bool:
        try:
            if running.retries and not running.is_retried:
                held_keys.replace_retry(running.task_id, running.retries)
            if running.keeps_key and not running.is_retried:
                held_keys.hold(running.key, running.task_id, running.task, "held")
            elif record := running.record or self._record_of_another(running):
                if record.retries > running.retries and not running.is_retried:
                    held_keys.replace_retry(running.task_id, record.retries)
                self._keyed.advance(running.key, record)
        except CacheAwayError as error:
            log.warning("key_waits_for_redis", key=shown_key(running.key), error=error.message)
            return False
        return True

    def _note_ended(self, delivery: str | None) -> None:
        if delivery is not None:
            self.ended.append(delivery)

    def tell_ended(self) -> None:
        """Record ended messages in Redis. If it does not answer, redelivered messages run again, in their order."""
        try:
            held_keys.note_ended(self.queue.name, self.ended)
        except CacheAwayError as error:
            log.warning("keyed_messages_may_run_again", queue=self.queue.name, error=error.message)
        self.ended.clear()

    def _record_of_another(self, running: _Running) -> Record | None:
        """Return the key's record if it is from a worker that lost this message and may not have sent its retry."""
        if not running.is_redelivered or running.is_retried:
            return None
        record = held_keys.get(running.key)
        return record if record is not None and record.id == running.task_id else None

    def _acknowledge_again(self, channel: Any, delivery_tag: Any) -> None:
        if channel is self.channel:
            with suppress(*self._keyed.consumer.connection_errors):  # the message is redelivered
                channel.basic_ack(delivery_tag)

    def after_ack(self, delivery_tag: Any) -> None:
        """Make the next message of the key ready to run."""
        running = self.running.pop(delivery_tag, None)
        if running is not None:
            held = self.keys[running.key]
            held.is_running = False
            self._forget_or_requeue(running.key, held)
            self._keyed.soon()

    def given_back(self, delivery_tag: Any) -> None:
        """Make the key wait for this message, which RabbitMQ will redeliver."""
        running = self.running.pop(delivery_tag, None)
        if running is not None:
            held = self.keys[running.key]
            held.is_running = False
            held.expected = running.task_id
            self._keyed.soon()


def _why_dropped(key: str, message: Any, record: Record | None) -> str | None:
    """Return why a message that does not own the key must not run any more; None if it may run."""
    headers = message.headers
    if record is not None and record.previous == headers.get("id") and not held_keys.is_replay(headers):
        return _LOST_ACK
    if headers.get(held_keys.TURN_HEADER):
        return "It has run before."
    retries = 0 if key.startswith("\0") else _retries(message)
    if retries and held_keys.is_replaced(str(headers.get("id")), retries):
        return "It has run before, or the try before it has run again."
    return None


def _retries(message: Any) -> int:
    found = message.headers.get("retries")
    return found if isinstance(found, int) else 0


def _line_up(waiting: deque[Any], message: Any) -> None:
    """Insert a message after the waiting ones, but before those of a later rank."""
    place, rank = len(waiting), _rank(message)
    while rank and place and _rank(waiting[place - 1]) > rank:
        place -= 1
    waiting.insert(place, message)


def _rank(message: Any) -> str:
    found = message.headers.get(RANK_HEADER) if isinstance(message.headers, dict) else None
    return found if isinstance(found, str) else ""


class KeyedMessages:
    """All partitions that a worker consumes from, on one connection."""

    def __init__(self, consumer: Any, take: Callable[[Any], None]) -> None:
        """`take` hands a message to the pool."""
        self.consumer = consumer
        self.take = take
        self._sending: Any = None  # a connection for sending: the consuming one never publishes
        self.is_stopped = False
        self._limit = max(1, consumer.initial_prefetch_count)
        self._is_called_soon = False
        self._partitions: list[_Partition] = []
        self._open(consumer.app)

    def _open(self, app: Any) -> None:
        refused = {}
        own = [queue for queue in app.amqp.queues.consume_from.values() if is_partition(queue)]
        for queue in own or open_added(self.consumer, self.take):
            try:
                self._partitions.append(
                    _Partition(self, queue)
                )  # messages arrive while the next partitions are opened
            except AccessRefused as error:
                refused[queue.name] = str(error)
        if is_foreign(app):
            leave_out(app, refused)
        else:
            app.amqp.queues.do_without(refused)

    @property
    def is_used(self) -> bool:
        """Return whether this worker consumes from a partition."""
        return bool(self._partitions)

    def hand_out(self) -> None:
        """Hand messages to the pool, a few at a time, so that other queues' tasks do not wait for all of them."""
        self._is_called_soon = False
        if self.is_stopped:
            return
        try:
            while self._running() < self._limit and self._next():
                pass
        except CacheAwayError as error:
            log.warning("keyed_messages_wait", error=error.message)
            self.later(_AGAIN_AFTER, self.hand_out)

    def _running(self) -> int:
        return sum(not each.is_due_later for of in self._partitions for each in of.running.values())

    def _next(self) -> bool:
        """Hand out one message of the first partition that has one; next time that partition is the last."""
        for number, partition in enumerate(self._partitions):
            if partition.next():
                self._partitions = [
                    *self._partitions[:number],
                    *self._partitions[number + 1 :],
                    partition,
                ]
                return True
        return False

    def soon(self) -> None:
        """Hand out the messages that may run now, after the caller has returned."""
        if self._is_called_soon:
            return
        self._is_called_soon = True
        if self.consumer.hub is None:  # a pool without an event loop
            self.later(0, self.hand_out)
        else:
            self.consumer.hub.call_soon(self.hand_out)

    def later(self, seconds: float, function: Callable[..., None], *arguments: Any) -> None:
        """Call a function, unless this connection is lost by then."""
        self.consumer.timer.call_after(seconds, self._unless_stopped, (function, *arguments))

    def _unless_stopped(self, function: Callable[..., None], *arguments: Any) -> None:
        if not self.is_stopped:
            function(*arguments)

    def stop(self) -> None:
        """Hand out no more messages. Those that were handed out may still be acknowledged."""
        self.is_stopped = True

    def close(self) -> None:
        """Close the connection for sending; the others close with the consumer's."""
        self.stop()
        for partition in self._partitions:
            partition.tell_ended()
        if self._sending is not None:
            self._sending.release()
            self._sending = None

    # --- keys that were held up ---

    def advance(self, key: str, record: Record) -> None:
        """Send the messages that wait for an ended task. Raises CacheAwayError."""
        following = held_keys.release(key, record)
        if following is not None:
            self._send(key, *following)

    def send_first_waiting(self, key: str, record: Record) -> None:
        """Send the message of a record, the first waiting one. Raises CacheAwayError."""
        _, first = held_keys.waiting(key)
        if first:
            self._send(key, record, first[0])

    def send_unsent(self) -> None:
        """Send messages that a worker could not send, because it died or RabbitMQ accepted no messages."""
        try:
            unsent = [(key, record) for key, record in held_keys.every() if not record.is_sent]
            for key, record in unsent:
                if time() - record.since > _SENDING_TAKES:
                    self.send_first_waiting(key, record)
            if any(time() - record.since <= _SENDING_TAKES for _, record in unsent):
                self.later(_SENDING_TAKES, self.send_unsent)
        except CacheAwayError as error:
            log.warning("keyed_messages_wait", error=error.message)
            self.later(_AGAIN_AFTER, self.send_unsent)

    def _send(self, key: str, record: Record, message: Aside) -> None:
        try:
            if self._sending is None:
                self._sending = self.consumer.app.connection_for_write()
            message.publish(Producer(self._sending.default_channel, auto_declare=False))
        except self._errors() as error:
            log.warning("keyed_message_not_sent", key=shown_key(key), error=repr(error))
            sending, self._sending = self._sending, None
            if sending is not None:
                sending.collect()
            self.later(_AGAIN_AFTER, self.send_unsent)
        else:
            held_keys.sent(key, record)

    def _errors(self) -> tuple[type[Exception], ...]:
        broker: Any = (
            self.consumer.app.connection_for_write()
        )  # not connected: it only names its transport's errors
        ours = (BrokerBlockedError, UnroutableError, OperationalError, OSError)
        return (*ours, *broker.connection_errors, *broker.channel_errors)

    # --- which worker consumes from which partition ---

    def rebalance(self) -> None:
        """Give one partition to another worker if this one has more than its share."""
        for partition in self._partitions:
            if partition.is_leaving and not partition.running:
                partition.leave()
        ours = [each for each in self._partitions if self._is_ours(each) and not each.is_leaving]
        if not ours or len(ours) <= ceil(len(self._partitions) / self._workers(ours[0])):
            return
        ours[0].is_leaving = True
        if not ours[0].running:
            ours[0].leave()
        self.soon()

    def _is_ours(self, partition: _Partition) -> bool:
        """Return whether this worker is probably its active consumer: RabbitMQ does not report it."""
        return partition.active_at is not None and (
            bool(partition.keys) or monotonic() - partition.active_at < _ACTIVE_FOR
        )

    def _workers(self, partition: _Partition) -> int:
        found = existing_queue(partition.channel.connection, counted_queue(partition.queue.name))
        return 1 if found is None else max(1, int(found.consumer_count))


class KeyedQueues(StartStopStep):
    """Stops a worker's keyed messages in time; the consumer starts them, with its message handler."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        consumer.keyed_messages = None

    def start(self, consumer: Any) -> None:
        """Do nothing: there is no message handler yet."""

    def stop(self, consumer: Any) -> None:
        """Hand out no more messages, also when the connection is lost."""
        keyed, consumer.keyed_messages = consumer.keyed_messages, None
        if keyed is not None:
            keyed.close()


def start_keyed_messages(consumer: Any, take: Callable[[Any], None]) -> None:
    """Consume from the partitions, on a RabbitMQ broker; `take` hands a message to the pool."""
    is_amqp = consumer.connection.transport.driver_type == "amqp"
    if not is_amqp:
        return
    keyed = consumer.keyed_messages = KeyedMessages(consumer, take)
    if not keyed.is_used:
        return
    keyed.send_unsent()
    _look_now_and_then(keyed)


def _look_now_and_then(keyed: KeyedMessages) -> None:
    """Every few seconds rebalance; in case an event was lost, also hand out ready messages and send unsent ones."""
    rounds = count(1)

    def look() -> None:
        keyed.later(_REBALANCE_EVERY, look)  # first: an error of the connection ends this call
        keyed.rebalance()
        keyed.hand_out()
        if next(rounds) % _SEND_EACH == 0:
            keyed.send_unsent()

    keyed.later(_REBALANCE_EVERY, look)
