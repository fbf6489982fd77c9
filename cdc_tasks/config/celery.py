"""Celery's settings, each with its reason: for workers, for Flower, and for the listener, which has no tasks.

Environment variables set what differs between deployments. For anything else, write a module that starts with
`from cdc_tasks.config.celery import *` and name it in CELERY_CONFIG_MODULE.
"""

from kombu import Exchange, Queue

from cdc_tasks.broker.connection import TRANSPORT_OPTIONS as _TRANSPORT_OPTIONS
from cdc_tasks.broker.queues import DefaultQueue
from cdc_tasks.broker.rabbitmq.partitions import KEYED, partition_queues
from cdc_tasks.environment import variable as _variable
from cdc_tasks.settings import BrokerSettings, load
from cdc_tasks.versions import celery_is

_settings = load(BrokerSettings)
_scheme = _settings.celery_broker_url.get_secret_value().partition("://")[0].partition("+")[0]
_is_rabbitmq = _scheme in {"amqp", "amqps", "pyamqp"}


# --- Broker -----------------------------------------------------------------------------------------------

broker_url = _settings.celery_broker_url.get_secret_value()
if _variable("CELERY_BROKER_URL") != "CELERY_BROKER_URL":
    # In Celery, CELERY_BROKER_URL takes precedence over `broker_url`, but not over these.
    broker_read_url = broker_write_url = broker_url
# If the broker is down, at start-up or later, a worker retries forever: giving up would not help.
broker_connection_retry_on_startup = True
broker_connection_max_retries = None
# A half-open connection is detected within seconds; with the defaults a worker never recovers from one. After two
# heartbeats RabbitMQ gives the connection's unacknowledged messages to other workers.
broker_heartbeat = 4
if _is_rabbitmq:
    # The queue for `celery inspect`. After an undetected broken connection, a worker could not use an exclusive queue
    # again until RabbitMQ detects it too, and the worker would stop.
    control_queue_exclusive = False
    control_queue_durable = True
    # Messages that are due later wait in the broker, if their queue is a quorum queue. A worker keeps those of other
    # queues in its memory; Celery's default has no limit.
    worker_eta_task_limit = 5_000
    broker_transport_options = dict(_TRANSPORT_OPTIONS["amqp"])
elif _scheme in {"redis", "rediss", "sentinel", "unix", "socket"}:
    # If Redis refuses writes (no replica, a full disk), a worker waits as if it were down.
    broker_channel_error_retry = True
    broker_transport_options = dict(_TRANSPORT_OPTIONS["redis"])

# --- Messages ---------------------------------------------------------------------------------------------

# JSON only: with pickle, anyone who can write to the broker could run code here.
task_serializer = result_serializer = event_serializer = "json"
accept_content = result_accept_content = ["json"]
timezone = "UTC"
enable_utc = True
# No code waits for a result; a task's log line and Flower show what it did.
task_ignore_result = True
result_backend = None
# A task that sends others does not fail if the broker is down for a moment.
task_publish_retry = True
task_publish_retry_policy = {"max_retries": 8, "interval_start": 0.1, "interval_step": 0.5, "interval_max": 3}

# --- Queues -----------------------------------------------------------------------------------------------


_default = "celery"  # for tasks without a queue, including those of other applications on this broker
# RabbitMQ's delayed delivery needs a topic exchange. With it a task waits for its retry in the broker, and blocks no
# worker.
_exchange = Exchange("cdc_tasks", type="topic") if _is_rabbitmq else Exchange(_default, type="direct")


# Quorum queues survive the loss of a node. Before 5.5, Celery's worker cannot consume from one.
_queue_type = "quorum" if _is_rabbitmq and celery_is(5, 5) else "classic"


def _own(kind: str) -> Queue:
    name = f"{_settings.cdc_queue_prefix}{kind}"
    if not _is_rabbitmq:
        return Queue(name, Exchange(name, type="direct"), routing_key=name)
    return Queue(name, _exchange, routing_key=name, queue_arguments={"x-queue-type": _queue_type})


# People wait for notifications, readers wait for the cache, no one waits for bulk. A worker takes from all queues in
# turn, so a full queue does not delay the others. A worker for one queue: `celery -A cdc_tasks worker -Q cdc_cache`.
_notifications, _cache, _bulk = _own("notifications"), _own("cache"), _own("bulk")
_default_queue = (
    DefaultQueue(_default, _exchange, routing_key=_default) if _is_rabbitmq else Queue(_default, _exchange)
)
task_queues = [_default_queue, _notifications, _cache, _bulk]
if (
    _is_rabbitmq
):  # tasks with a key, in the order of their messages: `celery -A cdc_tasks worker -Q cdc_keyed`
    task_queues += partition_queues(
        f"{_settings.cdc_queue_prefix}{KEYED}",
        _settings.cdc_key_partitions,
        _exchange,
        counted_type=_queue_type,
    )
task_default_queue = _default  # a route's `queue=` overrides it
task_default_exchange = _exchange.name
task_default_exchange_type = _exchange.type
task_default_routing_key = _default
task_default_queue_type = _queue_type  # of a queue that a settings module adds by its name
# A misspelt queue name is an error; Celery's default would create a queue in which tasks wait forever.
task_create_missing_queues = False
task_routes = {
    "cdc_tasks.refresh_*": {"queue": _cache.name},
    "cdc_tasks.refill_*": {"queue": _cache.name},
    "cdc_tasks.bulk.*": {"queue": _bulk.name},
    "cdc_tasks.*": {"queue": _notifications.name},
}

# --- Running ----------------------------------------------------------------------------------------------

imports = _settings.cdc_task_modules
# A task is acknowledged after it has ended. If its worker process dies, the task is retried, with a limit: a poison
# message does not kill processes forever.
task_acks_late = True
task_reject_on_worker_lost = True
task_retry_on_worker_lost = True
# A failed task is acknowledged: otherwise Redis would drop it, and RabbitMQ would deliver it forever.
task_acks_on_failure = task_acks_on_timeout = True
# Every call in a task has its own time-out; these limits are for tasks that hang anyway.
task_soft_time_limit = 45
task_time_limit = 60
# At most one other task waits behind a slow task.
worker_prefetch_multiplier = 1
# After a lost connection a task cannot be acknowledged, so it is delivered again. It must not run twice at the same
# time.
worker_cancel_long_running_tasks_on_connection_loss = True
# After SIGTERM running tasks have this many seconds to end; tasks that wait for their retry go back to the queue.
worker_soft_shutdown_timeout = 30
worker_enable_soft_shutdown_on_idle = True
# A limit for memory leaks in libraries. Tasks wait 0.2 s for a new process, so the limit is not too low.
worker_max_tasks_per_child = 20_000
worker_max_memory_per_child = 400_000  # kB

# A message of an unknown task becomes a dead letter. Celery would drop it, and log its row.
worker_consumer = "cdc_tasks.worker.consumer:Consumer"

# --- Monitoring -------------------------------------------------------------------------------------------

# Flower needs task events. The event for sent tasks would make the listener five times slower, so it is off.
worker_send_task_events = True
task_send_sent_event = False
worker_hijack_root_logger = False
